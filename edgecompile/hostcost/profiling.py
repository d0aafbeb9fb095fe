"""Measure this CPU once: the costs of a run, and the usual operators on a grid of widths."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from edgecompile.hostcost import constants, grid
from edgecompile.hostcost.cut import take_apart, time_alone_us
from edgecompile.hostcost.table import Table, default_folder, load

Progress = Callable[[int, int], None]

MOST_SECONDS = 300.0
_SAVE_EVERY_S = 10.0
_PASSES = 2


def profile(
    folder: Path | None = None, threads: int = 1, seconds: float = 240, progress: Progress | None = None
) -> Path:
    """Measure for at most `seconds` (never over five minutes) and store the table; its path.

    `folder`: where the tables are, the user's data folder unless given. Every point of the grid is measured, then every
    one again, and the faster time stays: what disturbs one moment seldom disturbs both. What is measured already is
    kept, so a profile that was interrupted, or ran out of time, goes on where it stopped; one that is whole is not
    touched (delete the file to measure anew). `progress(done, total)` counts points.
    """
    end = time.monotonic() + min(seconds, MOST_SECONDS)
    table = load(folder or default_folder(), threads)
    if table.constants is None or table.constants.quick:
        table.constants = constants.measure(threads)
        table.save()
    points = list(grid.points())
    saved = time.monotonic()
    try:
        for index, (turn, point) in enumerate(itertools.product(range(_PASSES), points)):
            now = time.monotonic()
            if now > end:
                break
            if table.done.get(point.name, 0) <= turn:
                _measure(point, table, threads)
                table.done[point.name] = turn + 1
            if progress is not None:
                progress(index + 1, _PASSES * len(points))
            if now - saved > _SAVE_EVERY_S:
                table.save()
                saved = now
    finally:
        table.save()
    return table.path


def _measure(point: grid.Point, table: Table, threads: int) -> None:
    """Time the nodes that ONNX Runtime makes of a point."""
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as scratch:
        path = Path(scratch) / "point.onnx"
        path.write_bytes(grid.build(point))
        cuts = take_apart(path, threads)
    known = table.done.get(point.name, 0)
    for cut in cuts:
        if not cut.view and (known or cut.key not in table.times):
            us = time_alone_us(cut, threads)
            table.add(cut, min(us, table.times.get(cut.key, us)))
