"""Tiles measured in place: neighbouring tiles of the hottest sums, in the whole program, beside the estimated ones."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from edgecompile.store import Cache, key
from edgecompile.targets import _tvm_graph
from edgecompile.targets._tvm_choice import Task, Tile, choose, ranked, read
from edgecompile.targets._tvm_tiles import task as task_of

if TYPE_CHECKING:
    from pathlib import Path

    from edgecompile.targets._tvm_elements import Simd

_HOT = 0.01
"""The share of the time from which a task is tried."""
_TRIES = 12
"""Tiles of a task beside the estimated one."""
_BETTER = 0.97
"""The share of the estimated tile's time below which another is taken."""
_TURNS = 9
_TURN_S = 0.15
"""How often and for how long each of two builds runs in turn."""


@dataclass(frozen=True)
class Tuned:
    """Tiles that were measured or remembered; their time as a share of the estimated ones', None where not measured."""

    tiles: tuple[tuple[Task, Tile], ...]
    tried: int
    ratio: float | None

    def facts(self) -> dict[str, object]:
        """For a manifest: the tiles, which are a recorded decision; no time, which would differ each time."""
        return {"tiles": [{"sum": asdict(task), "tile": asdict(tile)} for task, tile in self.tiles]}


@dataclass(frozen=True)
class _Build:
    """A program as it runs: a call, and the tasks of its functions by name."""

    call: Callable[[], Any]
    machine: Any
    tasks: Mapping[str, Task]

    def times(self, seconds: float) -> dict[str, float]:
        """Seconds a call of each function, in one turn."""
        spent: dict[str, float] = defaultdict(float)
        begun = [0.0]

        def seen(_function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> int:
            if before:
                begun[0] = time.perf_counter()
            else:
                spent[name] += time.perf_counter() - begun[0]
            return 0

        self.call()  # the other build's data leave the cache
        self.machine.set_instrument(seen)
        count, end = 0, time.perf_counter() + seconds
        while not count or time.perf_counter() < end:
            self.call()
            count += 1
        self.machine.set_instrument(_nothing)
        return {name: value / count for name, value in spent.items()}


def _nothing(*_arguments: Any) -> int:
    return 0


def tuned(module: Any, target: Any, simd: Simd, inputs: Sequence[Any], seconds: float, log: Log) -> Tuned:
    """The fastest tiles of the tasks that take most of the time, found within `seconds`.

    Every round gives each of these tasks its next tile, builds the program once, and runs it in turn with the build of
    the estimated tiles: times are medians of ratios of the same function in the same program. What the log holds is not
    measured again: in the end it holds every task of the program, so that the next build has the same tiles.
    """
    end = time.perf_counter() + seconds
    base = _built(module, target, simd, inputs)
    tasks = sorted(set(base.tasks.values()))
    known = log.read(tasks)
    if len(known) == len(tasks):
        return Tuned(_others(known, simd), 0, None)
    shares = _by_task(base, base.times(_TURN_S * 3))
    hot = [t for t in shares if t is not None and shares[t] > _HOT * sum(shares.values()) and t not in known]
    left = {t: [c for c in ranked(t, simd) if c != choose(t, simd)][:_TRIES] for t in hot}
    best = {t: (1.0, choose(t, simd)) for t in hot}
    tried, longest = 0, 0.0
    while any(left.values()) and time.perf_counter() + longest < end:
        start = time.perf_counter()
        trial = {t: tiles.pop(0) for t, tiles in left.items() if tiles}
        ratios = _compared(base, _built(module, target, replace(simd, tuned=read(trial)), inputs))
        for t, tile in trial.items():
            best[t] = min(best[t], (ratios.get(t, 1.0), tile))
        tried += len(trial)
        longest = max(longest, time.perf_counter() - start)
    found = {t: tile for t, (ratio, tile) in best.items() if ratio < _BETTER}
    tiles = _others(known | found, simd)
    whole: float | None = _whole(base, _built(module, target, replace(simd, tuned=tiles), inputs)) if tiles else 1.0
    if whole is not None and whole > 1:  # each alone was faster, together they are not
        tiles, found, whole = _others(known, simd), {}, None
    log.write({t: found.get(t, choose(t, simd)) for t in tasks if t not in known})
    return Tuned(tiles, tried, whole)


def _others(tiles: Mapping[Task, Tile], simd: Simd) -> tuple[tuple[Task, Tile], ...]:
    """Those that are not the estimated ones."""
    return read({t: tile for t, tile in tiles.items() if tile != choose(t, simd)})


def _built(module: Any, target: Any, simd: Simd, inputs: Sequence[Any]) -> _Build:
    import tvm
    from tvm import relax, tirx

    fused = _tvm_graph.summed(module, target, simd)
    tasks = {n.name_hint: task_of(f) for n, f in fused.functions_items() if isinstance(f, tirx.PrimFunc)}
    scheduled, _ = _tvm_graph.with_code(fused, simd)
    machine = relax.VirtualMachine(_tvm_graph.executable(scheduled, target), tvm.cpu())
    run, held = machine["main"], [tvm.runtime.tensor(v) for v in inputs]
    return _Build(lambda: run(*held), machine, {name: t for name, t in tasks.items() if t is not None})


def _by_task(build: _Build, times: Mapping[str, float]) -> dict[Task | None, float]:
    """What is spent in each task, and in all else under None."""
    found: dict[Task | None, float] = defaultdict(float)
    for name, value in times.items():
        found[build.tasks.get(name)] += value
    return found


def _compared(base: _Build, other: _Build) -> dict[Task | None, float]:
    """The other build's time as a share of the first's, by task: the median over turns."""
    found: dict[Task | None, list[float]] = defaultdict(list)
    for _ in range(_TURNS):
        ours, theirs = (_by_task(b, b.times(_TURN_S)) for b in (other, base))
        for t, value in ours.items():
            if theirs.get(t):
                found[t].append(value / theirs[t])
    return {t: statistics.median(values) for t, values in found.items()}


def _whole(base: _Build, other: _Build) -> float:
    """The other build's time as a share of the first's, all functions together."""
    return statistics.median(
        sum(other.times(_TURN_S).values()) / sum(base.times(_TURN_S).values()) for _ in range(_TURNS)
    )


@dataclass(frozen=True)
class Log:
    """Tiles in the cache by task, CPU, compiler and the time that was given: another program finds its tasks there."""

    cache: Cache
    facts: Mapping[str, Any]

    def read(self, tasks: Sequence[Task]) -> dict[Task, Tile]:
        """Those of these tasks that were measured."""
        found = {}
        for t in tasks:
            folder = self.cache.get(self._key(t))
            if folder is not None:
                found[t] = Tile(**json.loads((folder / "tile.json").read_text()))
        return found

    def write(self, tiles: Mapping[Task, Tile]) -> None:
        """Keep what was measured."""
        for t, tile in tiles.items():

            def fill(folder: Path, tile: Tile = tile) -> None:
                (folder / "tile.json").write_text(json.dumps(asdict(tile)))

            self.cache.put(self._key(t), fill)

    def _key(self, t: Task) -> str:
        return key("tvm tile", dict(self.facts), asdict(t))
