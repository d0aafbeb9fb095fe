"""Choosing under a budget: one level of each item, so that the least is lost and the times of all parts fit.

An item is anything with levels: the width of a coupled group, whether a branch is there, the precision. A part is
anything that takes time; how long depends on the levels of a few items together (a convolution's on both its widths).
The choice is a mixed-integer program with the tables linearised, solved by HiGHS, and what comes back is added up anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecompile.errors import PassError
from edgecompile.silence import mute

Floats = NDArray[np.float64]
Choice = tuple[int, ...]
"""The level of each item."""
_GAP = 5e-3
_SECONDS = 4.0
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Item:
    """What is lost at each level, 0 where nothing is; the unit is any, the same for all items."""

    name: str
    lost: tuple[float, ...]


@dataclass(frozen=True)
class Part:
    """What takes time: a table with an axis for each of these items (by their place), their levels along it."""

    name: str
    items: tuple[int, ...]
    times: Floats


@dataclass(frozen=True)
class Problem:
    """Items, and parts whose times add up to the whole."""

    items: tuple[Item, ...]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            wanted = tuple(len(self.items[i].lost) for i in part.items)
            if part.times.shape != wanted or not bool(np.isfinite(part.times).all()) or float(part.times.min()) < 0:
                raise ValueError(f"{part.name}: times of shape {part.times.shape}, expected {wanted}, none below 0")

    def time(self, choice: Choice) -> float:
        """What all parts take together."""
        return float(sum(part.times[tuple(choice[i] for i in part.items)] for part in self.parts))

    def lost(self, choice: Choice) -> float:
        """What is lost by all items together."""
        return float(sum(item.lost[level] for item, level in zip(self.items, choice, strict=True)))


def solve(problem: Problem, budget: float) -> Choice:
    """The choice that loses least of those within the budget, to half a percent; where HiGHS takes long, a good one.

    Raises `PassError` where none is within it, with the time of the fastest.
    """
    found = _milp(problem, budget)
    if found is None:
        start = fastest(problem)
        if problem.time(start) > budget:
            raise PassError(f"{budget:.4g} is out of reach: the fastest choice takes {problem.time(start):.4g}")
        found = _improved(problem, start, budget)
    return found


def fastest(problem: Problem) -> Choice:
    """The choice that takes least time, whatever is lost."""
    found = _milp(problem, None)
    return found if found is not None else _hastened(problem)


def _hastened(problem: Problem) -> Choice:
    """Every item at its fastest level given the others, until none is better."""
    choice = tuple(len(item.lost) - 1 for item in problem.items)
    while True:
        steps = [(problem.time(other), other) for other in _neighbours(problem, choice)]
        best = min(steps, default=(0.0, choice))
        if not steps or best[0] >= problem.time(choice):
            return choice
        choice = best[1]


def _improved(problem: Problem, choice: Choice, budget: float) -> Choice:
    """One item at a time to the level that saves most of the loss for its time, while the budget holds."""
    while True:
        time, lost = problem.time(choice), problem.lost(choice)
        steps = []
        for other in _neighbours(problem, choice):
            saved, took = lost - problem.lost(other), problem.time(other)
            if saved > 0 and took <= budget:
                steps.append((saved / max(took - time, 1e-12), other))
        if not steps:
            return choice
        choice = max(steps)[1]


def _neighbours(problem: Problem, choice: Choice) -> list[Choice]:
    """All choices that differ in one item."""
    return [
        (*choice[:i], level, *choice[i + 1 :])
        for i, item in enumerate(problem.items)
        for level in range(len(item.lost))
        if level != choice[i]
    ]


def _milp(problem: Problem, budget: float | None) -> Choice | None:
    """The choice that loses least within a budget, or the fastest one; None where there is none."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    starts = np.cumsum([0, *(len(i.lost) for i in problem.items)])
    count = int(starts[-1])
    sizes = [p.times.size for p in problem.parts]
    places = np.cumsum([count, *sizes])
    total = int(places[-1])
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    right: list[float] = []

    def row(indices: Sequence[int], factors: Sequence[float], value: float) -> None:
        rows.extend([len(right)] * len(indices))
        columns.extend(indices)
        values.extend(factors)
        right.append(value)

    for i in range(len(problem.items)):
        levels = range(int(starts[i]), int(starts[i + 1]))
        row(list(levels), [1.0] * len(levels), 1.0)
    for part, place in zip(problem.parts, places, strict=False):
        cells = np.arange(part.times.size).reshape(part.times.shape) + int(place)
        if not part.items:
            row([int(place)], [1.0], 1.0)
        for axis, item in enumerate(part.items):
            for level in range(part.times.shape[axis]):
                across = np.take(cells, level, axis).ravel().tolist()
                row([*across, int(starts[item]) + level], [*([1.0] * len(across)), -1.0], 0.0)
    matrix = csr_array((values, (rows, columns)), shape=(len(right), total))
    times = np.concatenate([np.zeros(count), *(p.times.ravel() for p in problem.parts)])
    lost = np.concatenate([[v for i in problem.items for v in i.lost], np.zeros(total - count)])
    constraints = [LinearConstraint(matrix, right, right)]
    if budget is not None:
        constraints.append(LinearConstraint(csr_array(times[None]), -np.inf, budget * (1 - _ROUNDING)))
    with mute():
        result = milp(
            times if budget is None else lost / max(float(np.max(lost)), 1e-300),
            integrality=np.concatenate([np.ones(count), np.zeros(total - count)]),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": _GAP, "time_limit": _SECONDS},
        )
    if result.x is None:
        return None
    parts = np.split(result.x[:count], starts[1:-1])
    choice = tuple(int(np.argmax(p)) for p in parts)
    if budget is not None and problem.time(choice) > budget:
        return None
    return choice
