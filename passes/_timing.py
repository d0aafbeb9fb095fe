"""How long a program would take at widths that were never built: a model of its parts, fitted to some that were.

A part's time is linear in its multiplications with every width rounded up to the block, with its own class's rate; what
is not a product goes with the values that it writes; and each operator has a start. The rates begin as one rate for all
products, and move from it as far as the times of a few random choices say (ridge, none below 0).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as every
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, fx

from edgecompile.axes import Coupling
from edgecompile.axes.dims import Dim, size
from edgecompile.axes.walk import PRIMES
from edgecompile.passes._branches import Branch
from edgecompile.plan import Floats, Part
from edgecompile.rewrite import argument

_VALUES = "values"
_RIDGE, _BEGIN = 0.001, 0.8
"""How strongly the rates hold to what they begin with, and which share of the time is the products' there."""
_INTEGERS = 16
"""Channels that integer kernels compute together at least, whatever the block of the floats is."""
_MOST = 700
"""Combinations of levels of one part; an operator that more groups meet in is taken at their full width."""


@dataclass(frozen=True)
class Layout:
    """The items of a choice: groups with the units left at each level, then branches, then (maybe) the precision."""

    coupling: Coupling
    widths: Mapping[str, Sequence[int]]
    branches: Sequence[Branch]
    block: int

    @property
    def names(self) -> list[str]:
        """Items in order: group names, then the layers that branches begin with."""
        return [*self.widths, *(b.name for b in self.branches)]


@dataclass(frozen=True)
class Piece:
    """A node that takes time: its class, the items that change it, and for each combination of their levels its work.

    `there` is 0 where the branch that it lies in is gone.
    """

    kind: str
    items: tuple[int, ...]
    work: Floats
    there: Floats


def pieces(layout: Layout, block: int) -> list[Piece]:
    """Every product by its multiplications, and everything else by the values that it writes."""
    found = []
    cost = layout.coupling.work
    for node in layout.coupling.dims:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            continue
        if node in cost:
            terms, kind = cost[node], _kind(node)
        else:
            dims: Any = layout.coupling.dims[node]
            terms, kind = (tuple(dims),), _VALUES
        found.append(_piece(layout, block, node, terms, kind))
    return found


def _piece(layout: Layout, block: int, node: fx.Node, terms: Sequence[Sequence[Dim]], kind: str) -> Piece:
    groups = {g.atom: i for i, g in enumerate(layout.coupling.groups) if g.name in layout.widths}
    order = list(layout.widths)
    places = {atom: order.index(layout.coupling.groups[i].name) for atom, i in groups.items()}
    atoms = {atom for term in terms for dim in term for atom in dim.atoms()}
    items = sorted({places[a] for a in atoms if a in places})
    levels = [list(layout.widths[order[i]]) for i in items]
    while prod(map(len, levels)) > _MOST:
        items.pop()
        levels.pop()
    base = {a: 1 for a in atoms if a.size in PRIMES}
    by_item = {i: a for a, i in places.items() if a in atoms}
    work = np.zeros([len(v) for v in levels])
    for cell in every(*(range(len(v)) for v in levels)):
        left = base | {by_item[i]: levels[k][cell[k]] for k, i in enumerate(items)}
        work[cell] = sum(prod(_size(d, left, by_item.values(), block) for d in term) for term in terms)
    there = np.ones_like(work)
    for place, branch in enumerate(layout.branches):
        if node in branch.inside:
            items = [*items, len(order) + place]
            work, there = (np.stack([v, np.zeros_like(v)], -1) for v in (work, there))
    return Piece(kind, tuple(items), work, there)


def _size(dim: Dim, left: Mapping[Dim, int], free: Iterable[Dim], block: int) -> int:
    """What is left of an axis; whole blocks of one that is a width."""
    count = size(dim, left)
    return -(-count // block) * block if set(dim.atoms()) & set(free) else count


def _kind(node: fx.Node) -> str:
    """Operators of one kind have one rate: depthwise and other convolutions, by their kernel; products of matrices."""
    if "conv" not in str(node.target):
        return str(node.target)
    shape = argument(node, "weight").meta["val"].shape
    kind = "depthwise" if int(argument(node, "groups")) > 1 else "conv"
    return f"{kind} {list(shape[2:])}"


@dataclass(frozen=True)
class Model:
    """A program's time: a constant, one for each product and each other operator, and a rate for each class's work."""

    pieces: Sequence[Piece]
    start: float
    each: Mapping[bool, float]
    rates: Mapping[str, float]

    def parts(self) -> list[Part]:
        """The tables that a plan is made of."""
        found = [Part("start", (), np.asarray(self.start))]
        for piece in self.pieces:
            times = piece.work * self.rates[piece.kind] + piece.there * self.each[piece.kind == _VALUES]
            found.append(Part(piece.kind, piece.items, times))
        return found

    def time(self, choice: Sequence[int]) -> float:
        """What one choice takes."""
        return float(sum(p.times[tuple(choice[i] for i in p.items)] for p in self.parts()))


def fitted(layout: Layout, choices: Sequence[Sequence[int]], times: Sequence[float], integer: bool = False) -> Model:
    """The model that the times of these choices say, floats or integers; the first choice is the whole program."""
    from scipy.optimize import nnls

    found = pieces(layout, max(layout.block, _INTEGERS) if integer else layout.block)
    kinds = sorted({p.kind for p in found})
    features = np.array([_features(found, kinds, choice) for choice in choices])
    scale = np.maximum(features[0], 1e-12)
    y = np.asarray(times, float) / times[0]
    work = np.array([0.0 if kind == _VALUES else s for kind, s in zip(kinds, scale, strict=False)])
    prior = np.array([*(_BEGIN * work / max(work.sum(), 1e-12)), *[(1 - _BEGIN) / 4] * 3])
    prior[[k == _VALUES for k in kinds] + [False] * 3] = (1 - _BEGIN) / 4
    weight = np.sqrt(_RIDGE * len(choices))
    rates, _ = nnls(
        np.vstack([features / scale / y[:, None], weight * np.eye(len(prior))]),
        np.concatenate([np.ones(len(y)), weight * prior]),
    )
    rates = rates / scale * times[0]
    made = dict(zip(kinds, map(float, rates), strict=False))
    return Model(found, float(rates[-1]), {False: float(rates[-3]), True: float(rates[-2])}, made)


def _features(found: Sequence[Piece], kinds: Sequence[str], choice: Sequence[int]) -> list[float]:
    """The work of each class, how many products and how many other operators there are, and one."""
    sums, there = dict.fromkeys(kinds, 0.0), [0.0, 0.0]
    for piece in found:
        cell = tuple(choice[i] for i in piece.items)
        sums[piece.kind] += float(piece.work[cell])
        there[piece.kind == _VALUES] += float(piece.there[cell])
    return [*sums.values(), *there, 1.0]
