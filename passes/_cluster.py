"""Few numbers for many: the palette with the smallest squared error over sorted values, exactly or by Lloyd's steps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_EXACT = 400
"""Up to so many different values the best palette is found by dynamic programming."""
_STEPS = 100


def palette_of(values: Array, count: int) -> Array:
    """At most `count` numbers, ascending, for the values; never worse than evenly spaced ones.

    With up to 400 different values no palette is better; with more, Lloyd's steps from quantiles and from an even
    grid end where neither moving a number nor regrouping the values helps.
    """
    unique, weights = np.unique(np.asarray(values, np.float64).reshape(-1), return_counts=True)
    if len(unique) <= count:
        return unique
    if len(unique) <= _EXACT:
        return _exact(unique, weights, count)
    sums = _Sums(unique, weights)
    total = np.cumsum(weights)
    quantiles = unique[np.searchsorted(total, (np.arange(count) + 0.5) / count * total[-1])]
    even = np.linspace(unique[0], unique[-1], count)
    return min((_lloyd(unique, sums, start) for start in (quantiles, even)), key=lambda found: sums.error(found))


def nearest(values: Array, palette: Array) -> Array:
    """The index of the nearest number of an ascending palette for each value; of the lower one in the middle."""
    borders = (palette[1:] + palette[:-1]) / 2
    return np.searchsorted(borders, values, side="left")


class _Sums:
    """Sums of counts, values and squares up to each of the sorted values."""

    def __init__(self, unique: Array, weights: Array) -> None:
        self.unique = unique
        columns = (weights.astype(np.float64), weights * unique, weights * unique * unique)
        self.count, self.first, self.second = (np.concatenate([[0.0], np.cumsum(c)]) for c in columns)

    def cost(self, start: Array | int, end: Array | int) -> Array:
        """The squared error of one number for the values `start..end - 1`."""
        count = self.count[end] - self.count[start]
        first = self.first[end] - self.first[start]
        found: Array = self.second[end] - self.second[start] - first * first / np.maximum(count, 1)
        return np.maximum(found, 0)

    def error(self, palette: Array) -> float:
        """The squared error of a palette over all values."""
        chosen = palette[nearest(self.unique, palette)]
        return float((np.diff(self.count) * (self.unique - chosen) ** 2).sum())


def _lloyd(unique: Array, sums: _Sums, palette: Array) -> Array:
    for _ in range(_STEPS):
        edges = np.searchsorted(unique, (palette[1:] + palette[:-1]) / 2, side="right")
        edges = np.concatenate([[0], edges, [len(unique)]])
        count = np.diff(sums.count[edges])
        means = np.diff(sums.first[edges]) / np.maximum(count, 1)
        moved = np.sort(np.where(count > 0, means, palette))
        if np.array_equal(moved, palette):
            break
        palette = moved
    return palette


def _exact(unique: Array, weights: Array, count: int) -> Array:
    """The best cut of the sorted values into `count` runs: `best[j]` is the least error of the first j values."""
    sums, size = _Sums(unique - unique.mean(), weights), len(unique)
    places = np.arange(size + 1)
    best = sums.cost(0, places)
    cuts = []
    for _ in range(1, count):
        table = best[:, None] + sums.cost(places[:, None], places[None, :])
        table[places[:, None] >= places[None, :]] = np.inf
        table[0, 0] = 0.0
        cut = table.argmin(0)
        cuts.append(cut)
        best = table[cut, places]
    edges = [size]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1]]))
    edges.append(0)
    runs = [slice(a, b) for b, a in itertools.pairwise(edges) if b > a]
    return np.array(sorted(np.average(unique[run], weights=weights[run]) for run in runs))
