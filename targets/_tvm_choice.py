"""Which register tile a sum gets: the one with the least estimated time, or the one that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edgecompile.targets._tvm_elements import Simd

ROWS, VECTORS = 14, 8
"""The largest tile."""


@dataclass(frozen=True, order=True)
class Tile:
    """Rows and columns (in vectors) that are accumulated in registers."""

    rows: int
    vectors: int


@dataclass(frozen=True, order=True)
class Task:
    """A sum whose tile can be chosen: rows and columns of the result, and how many products go into one value.

    A `window` (a depthwise convolution, a pool) loads a vector for each of its values, a product of `float` or `int8`
    a vector of weights a column and one value a row.
    """

    kind: Literal["float", "int8", "window"]
    rows: int
    columns: int
    depth: int


def choose(task: Task, simd: Simd) -> Tile:
    """The measured tile of a task, else the estimated one."""
    return dict(simd.tuned).get(task) or ranked(task, simd)[0]


def ranked(task: Task, simd: Simd) -> tuple[Tile, ...]:
    """The tiles that are worth a try, by their estimated time, the best first."""
    columns = task.columns
    if task.kind == "int8" and columns > simd.lanes:  # whole vectors, of which the last overlaps
        columns -= columns % simd.lanes
    return _ranked(task.rows, columns, task.kind != "window", simd.lanes, simd.registers)


@lru_cache(maxsize=4096)
def _ranked(rows: int, columns: int, shared: bool, lanes: int, registers: int) -> tuple[Tile, ...]:
    """All tiles that fit into the registers by their estimated time, those within two thirds of the best's speed.

    With `shared`, a step loads a vector of weights a column and broadcasts one value a row (a contraction). Without, it
    loads a vector a row and column (a depthwise convolution, a pool), and half of the registers are left for what
    neighbouring taps read again. Loads go beside the products where a product can broadcast by
    itself (AVX-512, NEON); with AVX2 each row costs a load, as much as a product.
    """
    load = 1.0 if lanes == 8 else 0.8
    wide = -(-columns // lanes)
    times: dict[Tile, float] = {}
    for r in range(1, min(rows, ROWS) + 1):
        for v in range(1, min(wide, VECTORS) + 1):
            if (r * v if shared else 2 * r * v) + v + 1 > registers:
                continue
            tiles = -(-rows // r) * -(-wide // v)
            step = max(r * v, load * (r + v) if shared else r * v, 4.0)
            times[Tile(r, v)] = tiles * (step + 0.15)
    found = sorted(times, key=lambda tile: round(times[tile], 6))  # of equal ones the first
    return tuple(t for t in found if times[t] <= 1.5 * times[found[0]]) or (Tile(1, 1),)


def read(tiles: Mapping[Task, Tile]) -> tuple[tuple[Task, Tile], ...]:
    """Measured tiles in one order, those left out that no code could be made for."""
    fit = {t: c for t, c in tiles.items() if 1 <= c.rows <= min(t.rows, ROWS) and 1 <= c.vectors <= VECTORS}
    return tuple(sorted(fit.items()))
