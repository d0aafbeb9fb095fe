"""A program's latency on this machine: the artifact that it would become, priced operator by operator."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgecompile import hostcost
from edgecompile.building.fixed import at_batch
from edgecompile.cost.result import Estimate, Latency, OperatorRow
from edgecompile.errors import SpecError
from edgecompile.program import Program
from edgecompile.target import Target

_EVIDENCE = "operators of the emitted file measured alone on this CPU; python -m tests.bench.host shows how they add up"


def host_estimate(
    program: Program, target: Target, batch: int = 1, threads: int = 1, dtype: str | None = None
) -> Estimate:
    """Emit the program at a batch, let the runtime optimise it, and add up its operators.

    Operators that no table has are timed alone, some milliseconds each, and kept in the user's data folder. Raises
    `SpecError` for a `dtype` other than the program's own: here the real artifact is priced, not one that might be.
    """
    if dtype not in (None, "float"):
        raise SpecError(
            f"--dtype {dtype}: on host the program is priced as it is; build it with quantize, then estimate it"
        )
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as scratch:
        artifact = target.emit(at_batch(program, batch), Path(scratch), {})
        found = hostcost.price(artifact.path, threads)
        size = artifact.path.stat().st_size
    wide = (found.high / found.ms) ** 1.5
    rows = [
        OperatorRow(
            row.name,
            "",
            row.op,
            "int8" if "Q" in row.op else "fp32",
            1e3 * row.ms,
            1e3 * row.ms / wide,
            1e3 * row.ms * wide,
            "compute" if row.macs else "memory",
            "CPU",
            row.macs or 0,
            row.in_bytes + row.out_bytes + row.weight_bytes,
            0.0,
        )
        for row in found.rows
    ]
    run = 1e3 * found.run_ms
    start = OperatorRow("start", "", "start", "fp32", run, run / wide, run * wide, "launch", "CPU", 0, 0, 0.0)
    biggest = max((row.in_bytes + row.out_bytes for row in found.rows), default=0)
    integers = any(row.dtype == "int8" for row in rows)
    return Estimate(
        "host",
        "int8+fp32" if integers else "fp32",
        batch,
        Latency(found.ms, found.low, found.high, "predicted"),
        True,
        (*rows, start),
        (size + biggest) / 1e6,
        _EVIDENCE,
        (),
        found.notes,
    )
