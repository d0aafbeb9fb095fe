"""Run cells: a child process for each model, watched from here; whatever becomes of it is a row."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from edgecompile.matrix.cells import Cell, host_keys
from edgecompile.matrix.compare import Distance, judge
from edgecompile.matrix.ledger import Ledger, Row

Progress = Callable[[str, int, int], None]
Found = dict[str, Any]
_LOOK_S = 0.2


@dataclass(frozen=True)
class Limits:
    """What a cell may take: seconds, and megabytes of memory with its child processes (80 % of this machine's)."""

    seconds: float = 1800
    memory_mb: float = field(default_factory=lambda: _memory_mb() * 0.8)


def run(
    cells: Sequence[Cell], ledger: Ledger, limits: Limits, refresh: bool = False, progress: Progress | None = None
) -> list[Row]:
    """The rows of all cells, in order; those that the ledger has are not run again, unless `refresh`."""
    tell = progress or (lambda what, done, total: None)
    todo = [cell for cell in cells if refresh or ledger.get(cell.key) is None]
    done = [cell for cell in cells if cell not in todo]
    keys = host_keys(todo) if todo else {}

    def begun(cell: Cell) -> None:
        tell(_words(cell), len(done), len(cells))

    for _, group in groupby(todo, lambda cell: cell.model):
        with contextlib.closing(_model(list(group), limits, begun)) as ends:
            for cell, found in ends:
                host = ledger.get(keys[cell.model, cell.mode])
                row = _row(cell, found, host.cosine if host is not None else None)
                ledger.put(cell.key, row)
                done.append(cell)
                tell(f"{_words(cell)}: {row.status}", len(done), len(cells))
    ended = (ledger.get(cell.key) for cell in cells)
    return [row for row in ended if row is not None]


def _words(cell: Cell) -> str:
    return f"{cell.model} {cell.target} {cell.mode}"


def _model(
    cells: list[Cell], limits: Limits, begun: Callable[[Cell], None]
) -> Generator[tuple[Cell, Found], None, None]:
    """Cells of one model with what came of them; a child that dies at one of them is started anew behind it."""
    while cells:
        done = 0
        for cell, found in _child(cells, limits, begun):
            done += 1
            yield cell, found
        cells = cells[done:]


def _row(cell: Cell, found: Found, host: float | None) -> Row:
    row = Row(cell.model, cell.target, cell.mode, **{"status": "built", **found})
    if row.status != "built" or row.error is None or row.cosine is None or row.norm is None:
        return row
    status, why = judge(Distance(row.error, row.cosine, row.norm), cell.mode, row.dtype, host)
    return Row(cell.model, cell.target, cell.mode, **{**found, "status": status, "why": why})


def _child(cells: Sequence[Cell], limits: Limits, begun: Callable[[Cell], None]) -> Iterator[tuple[Cell, Found]]:
    """What a child process makes of the cells, as long as it lives; at least one, be it the reason of its death."""
    with tempfile.TemporaryDirectory(prefix="edgecompile-matrix-") as place:
        folder = Path(place)
        asked = [{"target": cell.target, "mode": cell.mode} for cell in cells]
        order = {"model": cells[0].model, "cells": asked, "parent": os.getpid()}
        (folder / "order.json").write_text(json.dumps(order))
        (folder / "lines").touch()
        with _started(folder) as process, (folder / "lines").open() as lines:
            watch = _Watch(process, limits)
            index, running = 0, 0
            begun(cells[0])
            while True:
                ended = process.poll() is not None
                for line in _whole_lines(lines):
                    if "begin" in line:
                        watch.again()
                        running = line["begin"]
                        continue
                    yield cells[index], {**line["found"], "seconds": line["seconds"], "peak_mb": watch.peak_mb}
                    index += 1
                    if index < len(cells):
                        begun(cells[index])
                if ended or index == len(cells):
                    break
                if watch.look() is not None:
                    _kill(process)
                    continue
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_S)
            if running == index < len(cells):  # else it ended between two cells: the next child takes them
                why = watch.broken or _death(process.returncode, folder / "said")
                seconds = time.monotonic() - watch.since
                yield cells[index], {"status": "failed", "why": why, "seconds": seconds, "peak_mb": watch.peak_mb}


@contextlib.contextmanager
def _started(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The child in a session of its own, so that Ctrl-C is ours to handle; nothing of it outlives the block."""
    paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder)}
    command = [sys.executable, "-W", "ignore", "-m", "edgecompile.matrix.child", str(folder / "order.json")]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Watch:
    """Time and memory of a child and its children since the last cell began."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        import psutil

        self.limits, self.since, self.peak_mb, self.broken = limits, time.monotonic(), 0.0, ""
        self._tree: Any = None
        with contextlib.suppress(psutil.Error):
            self._tree = psutil.Process(process.pid)

    def again(self) -> None:
        """A new cell begins."""
        self.since, self.peak_mb = time.monotonic(), 0.0

    def look(self) -> str | None:
        """The limit that is broken, in words."""
        import psutil

        used = 0
        with contextlib.suppress(psutil.Error):
            for one in (self._tree, *self._tree.children(recursive=True)) if self._tree is not None else ():
                with contextlib.suppress(psutil.Error):
                    used += one.memory_info().rss
        self.peak_mb = max(self.peak_mb, used / 1e6)
        if self.peak_mb > self.limits.memory_mb:
            self.broken = f"stopped at {self.peak_mb:.0f} MB of memory, more than {self.limits.memory_mb:.0f}"
        elif time.monotonic() - self.since > self.limits.seconds:
            self.broken = f"stopped after {self.limits.seconds:g} s"
        return self.broken or None


def _whole_lines(file: Any) -> Iterator[dict[str, Any]]:
    """Lines that have come in since; a half written one waits for its end."""
    while True:
        at = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(at)
            return
        yield json.loads(line)


def _death(code: int, said: Path) -> str:
    from edgecompile.ingest.rules import text_safe

    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the process was ended by {name}"
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
    return text_safe(f"the process ended with code {code}: {(lines or ['no message'])[-1]}", 600)


def _memory_mb() -> float:
    import psutil

    return float(psutil.virtual_memory().total) / 1e6
