"""The matrix as text: a table of rows, a CSV file, and one line over all."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from edgecompile.matrix.ledger import Row, Status

HEADER = ("model", "target", "mode", "status", "dtype", "error", "cosine", "MB", "seconds", "peak MB", "why")


def cells_of(row: Row) -> tuple[str, ...]:
    """A row as the table shows it."""
    return (
        row.model,
        row.target,
        row.mode,
        row.status,
        row.dtype,
        "" if row.error is None else f"{row.error:.1e}",
        "" if row.cosine is None else f"{row.cosine:.6f}",
        "" if row.artifact_mb is None else f"{row.artifact_mb:.3g}",
        f"{row.seconds:.1f}",
        f"{row.peak_mb:.0f}",
        row.why,
    )


def plain(row: Row) -> dict[str, object]:
    """A row for JSON, which has no number for infinity."""
    values = dataclasses.asdict(row).items()
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values}


def csv_text(rows: Sequence[Row]) -> str:
    """All rows below a head, as a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([head.replace(" ", "_").lower() for head in HEADER])
    writer.writerows(cells_of(row) for row in rows)
    return text.getvalue()


def summary(rows: Sequence[Row]) -> str:
    """`10 cells: 8 equal, ...; 9 of 10 built (90.0 %)`."""
    counts = Counter(row.status for row in rows)
    built = sum(counts[status] for status in ("equal", "differs", "built"))
    words = ", ".join(f"{counts[status]} {status}" for status in get_args(Status))
    share = f"; {built} of {len(rows)} built ({100 * built / len(rows):.1f} %)" if rows else ""
    return f"{len(rows)} cells: {words}{share}"
