"""Time several callables side by side, so that whatever disturbs one disturbs all.

Times taken one after the other, or on another day, differ by more than what is to be found. Here the callables take
turns within each round, every second round is in reversed order (ABBA: a linear drift cancels), and rounds are
compared in pairs. What stays is where buffers happen to lie, for the life of a process: bind aligned buffers of the
runtime.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Call = Callable[[], object]
Clock = Callable[[], int]
Progress = Callable[[int, int], None]
Answer = TypeVar("Answer", bound=str)

_MOST_PER_SLOT = 1000
FEWEST_ROUNDS = 8  # below this not even [fastest, slowest] holds the median with 99 %: 2 ** (1 - 8) < 1 %


@dataclass(frozen=True)
class Samples:
    """Everything that was measured of one callable: per round, the seconds per call of each sample.

    A sample is the mean over `calls_per_sample` calls (1 unless a call is too short for the clock).
    """

    rounds: tuple[tuple[float, ...], ...]
    calls_per_sample: int = 1

    def raw(self) -> list[float]:
        """All samples in the order of measuring, in seconds per call."""
        return [seconds for samples in self.rounds for seconds in samples]


@dataclass(frozen=True)
class _Plan:
    """How a set of callables is timed; made once, so that later rounds can be put beside earlier ones."""

    calls: Mapping[str, Call]
    inner: int
    per_slot: Mapping[str, int]
    long: frozenset[str]
    round_s: float
    seed: int
    clock: Clock


def interleave(
    calls: Mapping[str, Call],
    rounds: int = 30,
    slot_s: float = 0.02,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    sample_s: float = 50e-6,
    least: int = 3,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Samples]:
    """Time the callables in `rounds` rounds of one slot each; samples by name.

    A slot lasts about `slot_s` and holds at least `least` samples, after an untimed call unless one fills the slot. A
    sample lasts at least about `sample_s`: shorter calls are repeated inside it, equally often for all callables.
    `sample_s=0` times single calls, as quantiles need. `clock` gives nanoseconds. `progress(done, total)` is called
    between rounds.
    """
    plan = _planned(calls, slot_s, seed, sample_s, least, clock)
    return _timed(plan, range(rounds), rounds, progress)


def settle(
    calls: Mapping[str, Call],
    ask: Callable[[Mapping[str, Samples]], Answer],
    rounds: int = 30,
    cap: int = 240,
    slot_s: float = 0.02,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    sample_s: float = 50e-6,
    least: int = 3,
    enough_s: float = math.inf,
    clock: Clock = time.perf_counter_ns,
) -> tuple[dict[str, Samples], Answer]:
    """As `interleave`, doubling the rounds until `ask(samples)` is not "inconclusive", up to `cap` rounds.

    Each look is one more chance of a false answer: with the default cap there are four, at 99 % each. Of calls that
    take so long that the first rounds would last over `enough_s`, there are fewer, but as many as an interval needs.
    """
    plan = _planned(calls, slot_s, seed, sample_s, least, clock)
    rounds = math.ceil(min(rounds, cap, max(FEWEST_ROUNDS, enough_s / plan.round_s)))
    samples = _timed(plan, range(rounds), rounds, progress)
    answer = ask(samples)
    while answer == "inconclusive" and rounds < cap:
        target = min(2 * rounds, cap)
        more = _timed(plan, range(rounds, target), target, progress)
        samples = {name: Samples(samples[name].rounds + more[name].rounds, plan.inner) for name in calls}
        rounds, answer = target, ask(samples)
    return samples, answer


def order(names: list[str], index: int, seed: int) -> list[str]:
    """The order within round `index`: two rounds share one shuffled order, the second takes it backwards.

    Shuffled per pair of rounds, so that no period of the machine's own keeps step with ours.
    """
    shuffled = list(names)
    random.Random(f"{seed}/{index // 2}").shuffle(shuffled)
    return shuffled[::-1] if index % 2 else shuffled


def _planned(calls: Mapping[str, Call], slot_s: float, seed: int, sample_s: float, least: int, clock: Clock) -> _Plan:
    """Warm every callable up, and see how long a call takes."""
    with _no_collection():
        seconds = {name: _estimated(call, slot_s, clock) for name, call in calls.items()}
    inner = max(1, math.ceil(sample_s / min(seconds.values(), default=1.0)))
    per_slot = {
        name: max(least, min(_MOST_PER_SLOT, round(slot_s / (inner * taken)))) for name, taken in seconds.items()
    }
    long = frozenset(name for name, taken in seconds.items() if taken > slot_s)
    counts = {name: per_slot[name] * inner + (name not in long) for name in calls}
    return _Plan(calls, inner, per_slot, long, sum(counts[n] * seconds[n] for n in calls), seed, clock)


def _estimated(call: Call, slot_s: float, clock: Clock) -> float:
    """Seconds of the fastest of a few calls, or of a long one, after two that may compile, allocate, fault pages in."""
    call()
    call()
    fastest = total = 0.0
    for i in range(20):
        start = clock()
        call()
        taken = max(clock() - start, 1) * 1e-9
        fastest, total = (taken if i == 0 else min(fastest, taken)), total + taken
        if total > slot_s and (i >= 2 or taken > slot_s):
            break
    return fastest


def _timed(plan: _Plan, indices: range, total: int, progress: Progress | None) -> dict[str, Samples]:
    measured: dict[str, list[tuple[float, ...]]] = {name: [] for name in plan.calls}
    with _no_collection():
        for index in indices:
            for name in order(list(plan.calls), index, plan.seed):
                measured[name].append(_slot(plan, name))
            if progress is not None:
                progress(index + 1, total)
    return {name: Samples(tuple(rounds), plan.inner) for name, rounds in measured.items()}


def _slot(plan: _Plan, name: str) -> tuple[float, ...]:
    call, clock = plan.calls[name], plan.clock
    if name not in plan.long:
        call()  # untimed: brings back into the caches what the others have pushed out, which long calls hardly notice
    samples = []
    for _ in range(plan.per_slot[name]):
        start = clock()
        for _ in range(plan.inner):
            call()
        samples.append((clock() - start) / plan.inner * 1e-9)
    return tuple(samples)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the timed part, and leave it as it was found.

    It is not run before: beside a few loaded networks that takes longer than most timings.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
