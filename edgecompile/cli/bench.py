"""`edgecompile bench`: the latency predictor fitted and validated, and the matrix of models and targets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecompile import errors

app = typer.Typer(help="The predictor against measurements, and all models on all targets.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Write = Annotated[bool, typer.Option("--write", help="Replace the shipped table (in a checkout).")]
Device = Annotated[str | None, typer.Option("--device", help="A fit or a device; all of them by default.")]


def _chosen(device: str | None) -> list[str]:
    from edgecompile.cost.fit import fit_names
    from edgecompile.device import DeviceProfile

    names = fit_names()
    if device is None:
        return names
    name = device if device in names else DeviceProfile.load(device).fit
    if name not in names:
        raise errors.SpecError(f"--device {device}: no published latency to fit; fits are {', '.join(names)}")
    return [name]


@app.command("fit")
def fit(device: Device = None, write: Write = False, json_: Json = False) -> int:
    """Fit the parameters of each device's law to the calibration rows, as the shipped `fits.json` was made."""
    from edgecompile.cli.progress import table
    from edgecompile.cost.fit import PARENTS, calibration, fit_names
    from edgecompile.cost.fit import fit as solve
    from edgecompile.cost.predict import fits
    from edgecompile.cost.tables import fits_text, folder

    chosen = _chosen(device)
    found: dict[str, Any] = {}
    for name in fit_names():
        if name in chosen or name in {PARENTS.get(c) for c in chosen}:
            found[name] = solve(calibration(fit=name), found.get(PARENTS.get(name, "")))
    found = {name: found[name] for name in chosen}
    if write:
        from edgecompile.store import write_atomic

        whole = {**(fits() if device else {}), **found}
        write_atomic(folder() / "fits.json", fits_text(whole).encode())
    if json_:
        sys.stdout.write(fits_text(found))
        return errors.OK
    rows = [
        (name, dtype, ", ".join(f"{k} {v:g}" for k, v in of.items()))
        for name, dtypes in found.items()
        for dtype, of in dtypes.items()
    ]
    table(rows, ("fit", "dtype", "parameters"))
    return errors.OK


@app.command("validate")
def validate(device: Device = None, write: Write = False, json_: Json = False) -> int:
    """Print how far predictions are from measured latencies when each row's group was left out of the fit."""
    from edgecompile.cli.progress import table
    from edgecompile.cost import tables
    from edgecompile.cost.fit import calibration
    from edgecompile.cost.validate import as_rows, pooled_coverage
    from edgecompile.cost.validate import validate as lines_of

    lines = lines_of(_chosen(device))
    if write and device is None:
        from edgecompile.store import write_atomic

        devices = sorted({r.device for r in calibration()})
        write_atomic(tables.folder() / "validation.json", tables.validation_text(lines, devices).encode())
    if json_:
        sys.stdout.write(json.dumps(as_rows(lines), indent=2) + "\n")
        return errors.OK
    table([tables.cells(line) for line in lines], tables.HEADER)
    sys.stdout.write(f"intervals of 90 % hold {100 * pooled_coverage(lines):.1f} % of all rows\n")
    return errors.OK


@app.command("products")
def products() -> int:
    """Print the GPU law beside measured matrix products of an A100, by their number of rows."""
    import numpy as np

    from edgecompile.cli.progress import table
    from edgecompile.cost.products import BANDS, ratios

    rows, found = ratios()
    cells = []
    for low, high in (*BANDS, (1, 1 << 20)):
        some = found[(rows >= low) & (rows <= high)]
        error = np.abs(some - 1)
        cells.append(
            (
                f"{low} to {high}",
                len(some),
                f"{np.median(some):.3f}",
                f"{100 * np.median(error):.1f} %",
                f"{100 * np.quantile(error, 0.9):.1f} %",
            )
        )
    table(cells, ("rows", "n", "predicted/measured", "median error", "p90"))
    return errors.OK


@app.command("learn")
def learn(json_: Json = False) -> int:
    """Show how few measured networks pull a new device in: each fitted device in turn is treated as one."""
    from edgecompile.cli.progress import table
    from edgecompile.cost.learn import COUNTS, curve

    rows = curve()
    if json_:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return errors.OK
    cells = [
        (name, *(f"{100 * row[str(k)]:.0f} %" if str(k) in row else "" for k in COUNTS)) for name, row in rows.items()
    ]
    table(cells, ("new device", *(f"{k} measured" for k in COUNTS)))
    return errors.OK


@app.command("matrix")
def matrix(
    only: Annotated[list[str] | None, typer.Option(help="A model, or several with commas; repeat for more.")] = None,
    targets: Annotated[list[str] | None, typer.Option(help="artifact@device or a deployment; repeat for more.")] = None,
    shard: Annotated[str, typer.Option(help="Every n-th model from the i-th on, as i/n.")] = "1/1",
    ledger: Annotated[Path | None, typer.Option(help="Where rows are kept (default: the user's cache folder).")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Run cells again that the ledger has.")] = False,
    table: Annotated[Path | None, typer.Option(help="Write the rows to this CSV file.")] = None,
    limit_s: Annotated[float, typer.Option(help="Seconds that a cell may take.", min=1)] = 1800,
    limit_mb: Annotated[float | None, typer.Option(help="Megabytes of memory (default: 80 % of all).", min=1)] = None,
    json_: Json = False,
) -> int:
    """Build every shipped model for every target, in float and INT8, and hold what runs here to the teacher.

    Each cell ends as equal, differs, built (nothing here runs it), refused or failed, with a reason. Finished cells are
    kept in the ledger and not run again.
    """
    import platformdirs

    from edgecompile import matrix as cells
    from edgecompile.cli import progress
    from edgecompile.store import write_atomic

    limits = cells.Limits(limit_s) if limit_mb is None else cells.Limits(limit_s, limit_mb)
    asked = cells.shard(cells.plan(_words(only), _words(targets)), shard)
    place = ledger or platformdirs.user_cache_path("edgecompile") / "matrix.sqlite"
    with cells.Ledger(place) as kept, progress.progress() as tell:
        rows = cells.run(asked, kept, limits, refresh, tell)
    if table is not None:
        write_atomic(table, cells.csv_text(rows).encode())
    if json_:
        sys.stdout.write(json.dumps([cells.plain(row) for row in rows], indent=2, allow_nan=False) + "\n")
    else:
        progress.table([cells.cells_of(row) for row in rows], cells.HEADER)
        sys.stdout.write(cells.summary(rows) + "\n")
    failed = {"failed": errors.UNSUPPORTED, "differs": errors.ACCURACY}
    return errors.first_code(failed[row.status] for row in rows if row.status in failed)


def _words(given: list[str] | None) -> list[str]:
    """Several words in one option, with commas that stand in no brackets."""
    import re

    return [word for text in given or () for word in re.split(r"\s*,\s*(?![^()]*\))", text) if word]
