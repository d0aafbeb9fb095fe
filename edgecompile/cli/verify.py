"""`edgecompile verify` and `edgecompile run`: bundles looked at again, and used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecompile import errors

Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads; by default as it was built.")]


def verify(
    folder: Annotated[str, typer.Argument(help="A bundle that `build` left, such as out/host.")],
    threads: Threads = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check a bundle again: the hash of every file, its golden outputs, and its latency budget.

    Exit 9 when a file is not the one that was built, 4 when outputs differ, 3 when the budget is missed here.
    """
    from edgecompile.building.check import check

    found = check(Path(folder), threads)
    if json_:
        rows = [vars(f) for f in found.findings]
        sys.stdout.write(
            json.dumps({"folder": found.folder, "exit_code": found.exit_code, "findings": rows}, indent=2) + "\n"
        )
    else:
        for one in found.findings:
            print(f"{one.state:8}{one.what:10}{one.said}")
    return found.exit_code


def run(
    folder: Annotated[str, typer.Argument(help="A bundle that `build` left.")],
    input: Annotated[list[str], typer.Option("--input", help="x.npy, NAME=x.npy, or an .npz with all inputs.")],
    output: Annotated[str | None, typer.Option("--output", help="Write all outputs to this .npz.")] = None,
    threads: Threads = None,
) -> int:
    """Run a bundle's artifact on inputs of your own, in its runtime on this machine."""
    import numpy as np

    from edgecompile.building.check import check_hashes, load, read_manifest
    from edgecompile.building.feed import feed
    from edgecompile.store import write_atomic

    path = Path(folder)
    manifest = read_manifest(path)
    check_hashes(path, manifest)
    session, _ = load(path, manifest, threads or int(manifest.get("threads", 1)))
    if session is None:
        raise errors.TargetError(
            f"{folder}: there is no runtime for {manifest['kind']} on this machine", rule="toolchain"
        )
    found = session(feed(input, manifest["inputs"]))
    arrays: dict[str, Any] = {n: t.numpy() for n, t in zip(manifest["outputs"], found, strict=True)}
    for name, value in arrays.items():
        flat = value.reshape(-1)
        shown = np.array2string(flat[:8], precision=5, separator=", ", max_line_width=1000).strip("[]")
        print(f"{name}: {value.dtype} {'x'.join(map(str, value.shape))}  {shown}{', ...' if flat.size > 8 else ''}")
    if output:
        import io

        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomic(Path(output), buffer.getvalue())
    return errors.OK
