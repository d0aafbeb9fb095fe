"""The tables that `edgecompile bench fit` and `bench validate` print and write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompile.cost.predict import Fitted

if TYPE_CHECKING:
    from edgecompile.cost.validate import Line

HEADER = (
    "fit", "dtype", "groups", "n", "median", "p90", "Spearman", "covered", "interval",
    "MACs alone", "MACs + activations",
)  # fmt: skip


def fits_text(found: Mapping[str, Fitted]) -> str:
    """`fits.json`: the parameters of every fit by dtype."""
    return json.dumps({"command": "edgecompile bench fit --write", "fits": found}, indent=1, sort_keys=True) + "\n"


def validation_text(lines: Sequence[Line], devices: Sequence[str]) -> str:
    """`validation.json`: every line of the table, and the devices that were measured."""
    from edgecompile.cost.validate import as_rows

    body = {"command": "edgecompile bench validate --write", "devices": sorted(devices), "lines": as_rows(lines)}
    return json.dumps(body, indent=1) + "\n"


def cells(line: Line) -> tuple[str, ...]:
    """A line of the validation table as text; a baseline as its median and 90th percentile."""

    def percent(value: float) -> str:
        return f"{100 * value:.1f} %"

    return (
        line.fit,
        line.dtype,
        str(line.groups),
        str(line.n),
        percent(line.median),
        percent(line.p90),
        f"{line.spearman:.3f}",
        percent(line.coverage),
        f"x{line.spread:.2f}",
        f"{percent(line.macs_median)} / {percent(line.macs_p90)}",
        f"{percent(line.bytes_median)} / {percent(line.bytes_p90)}",
    )


def folder() -> Path:
    """The folder of the installed profiles, which a checkout can write to."""
    import edgecompile.device_profiles

    return Path(edgecompile.device_profiles.__path__[0])
