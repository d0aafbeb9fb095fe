"""Axes that shrink together, as terms: an atom, a product of axes (a reshape), a sum of axes (a concatenation).

Equal axes are unified. An atom takes the form of what it is unified with; two forms are split until they agree: 64 read
as 4 heads of 16 and as 8 groups of 8 becomes 4 times 2 times 8. What cannot be split is fixed, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from typing import Literal

import numpy as np

Index = np.ndarray[tuple[int], np.dtype[np.int64]]


class Dim:
    """An axis of so many indices. Its `kind` and `parts` say what it is made of; an atom has none."""

    __slots__ = ("_same", "fixed", "kind", "parts", "size")

    def __init__(self, size: int, fixed: str | None = None) -> None:
        self.size = size
        self.fixed = fixed if size != 1 else "it has one index"
        self.kind: Literal["atom", "product", "sum"] = "atom"
        self.parts: tuple[Dim, ...] = ()
        self._same: Dim | None = None

    def found(self) -> Dim:
        """The axis that stands for all that were unified with this one."""
        dim = self
        while dim._same is not None:
            dim = dim._same
        if dim is not self:
            self._same = dim
        return dim

    def atoms(self) -> Iterator[Dim]:
        """The atoms that it is made of, in order, one as often as it appears."""
        dim = self.found()
        if dim.kind == "atom":
            yield dim
        for part in dim.parts:
            yield from part.atoms()

    def fix(self, why: str) -> None:
        """Nothing of this axis may be removed, for this reason; the first reason stays."""
        for atom in self.atoms():
            atom.fixed = atom.fixed or why

    def __repr__(self) -> str:
        dim = self.found()
        sign = {"atom": "", "product": "*", "sum": "+"}[dim.kind]
        return sign.join(map(repr, dim.parts)).join("()") if dim.parts else f"{dim.size}@{id(dim) % 9973}"


def product(parts: Sequence[Dim]) -> Dim:
    """The axis that a reshape makes of several, the last one fastest; parts of one index are left out."""
    return _joined("product", parts)


def concatenation(parts: Sequence[Dim]) -> Dim:
    """The axis of a concatenation; empty parts are left out."""
    return _joined("sum", parts)


def _joined(kind: Literal["product", "sum"], parts: Sequence[Dim]) -> Dim:
    flat: list[Dim] = []
    nothing = 1 if kind == "product" else 0
    for part in (p.found() for p in parts if p.size != nothing):
        flat += part.parts if part.kind == kind else [part]
    if len(flat) == 1:
        return flat[0]
    dim = Dim(prod(p.size for p in flat) if kind == "product" else sum(p.size for p in flat))
    if flat:
        dim.kind, dim.parts = kind, tuple(flat)
    return dim


def unify(a: Dim, b: Dim, why: str = "its index is read in two ways that do not fit") -> None:
    """Let two axes be one; where their forms do not fit, both are fixed for the reason `why`."""
    a, b = a.found(), b.found()
    if a is b:
        return
    if a.size != b.size:
        raise ValueError(f"axes of {a.size} and {b.size} cannot be the same")
    if a.kind != "atom" and b.kind == "atom":
        a, b = b, a
    if a.kind == "atom":
        if any(atom is a for atom in b.atoms()):  # only of size 0 or 1 besides
            b.fix(why)
            return
        a._same = b
        if a.fixed:
            b.fix(a.fixed)
        return
    if a.kind == b.kind:
        fits = _aligned(a, b, a.kind, why)
    else:
        fits = _sum_as_product(*((a, b) if a.kind == "sum" else (b, a)), why)
    if not fits:
        a.fix(why)
        b.fix(why)


def _parts(dim: Dim) -> list[Dim]:
    """The parts in their present form: what became a form of the same kind is spread out."""
    dim = dim.found()
    spread = [p for part in dim.parts for p in (_parts(part) if part.found().kind == dim.kind else [part.found()])]
    return [p for p in spread if dim.kind == "sum" or p.size != 1]


def split(dim: Dim, sizes: Sequence[int], kind: Literal["product", "sum"], why: str) -> list[Dim] | None:
    """The axis as a product or sum of axes of these sizes; None, and nothing done, where its form forbids it.

    A product must be given all its factors but those of 1, which come back as fixed axes of their own.
    """
    made = [Dim(size) for size in sizes]
    whole = _joined(kind, made)
    if whole.size != dim.size:
        return None
    unify(dim, whole, why)
    return made


def _aligned(a: Dim, b: Dim, kind: Literal["product", "sum"], why: str) -> bool:
    """Two products, or two sums, split until their parts are the same, from the last one on."""
    first, second = _parts(a), _parts(b)
    while first and second:
        x, y = first.pop(), second.pop()
        if x.size == y.size:
            unify(x, y, why)
            continue
        if x.size < y.size:
            x, y, first, second = y, x, second, first
        rest = x.size // y.size if kind == "product" else x.size - y.size
        pair = split(x, (rest, y.size), kind, why)
        if pair is None:  # 6 * 4 beside 8 * 3
            return False
        unify(pair[1], y, why)
        first.append(pair[0].found())
    return True


def _sum_as_product(total: Dim, by: Dim, why: str) -> bool:
    """A concatenation of whole rows: each part is some of the product's first factor times the others."""
    factors = _parts(by)
    inner = product(factors[1:])
    parts = _parts(total)
    if any(p.size % inner.size for p in parts):
        return False
    outer = [Dim(p.size // inner.size) for p in parts]
    for part, count in zip(parts, outer, strict=True):
        unify(part, product([count, inner]), why)
    unify(factors[0], concatenation(outer), why)
    return True


def regrouped(old: Sequence[Dim], sizes: Sequence[int], why: str) -> list[Dim]:
    """The axes of a reshape in row-major order: old axes and new ones in the smallest groups of equal product."""
    new = [Dim(size) for size in sizes]
    if prod(d.size for d in old) != prod(sizes):
        raise ValueError(f"{[d.size for d in old]} cannot be reshaped to {list(sizes)}")
    if not prod(sizes):
        for dim in (*old, *new):
            dim.fix(why)
        return new
    before, after = (list(accumulate((d.size for d in dims), mul, initial=1)) for dims in (old, new))
    i = j = 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while before[i] != after[j]:
            if before[i] < after[j]:
                i += 1
            else:
                j += 1
        unify(product(old[start_i:i]), product(new[start_j:j]), why)
    return new


def kept(dim: Dim, chosen: Mapping[Dim, Index]) -> Index:
    """The indices along an axis that remain when of each chosen atom these remain."""
    dim = dim.found()
    if dim.kind == "atom":
        return chosen.get(dim, np.arange(dim.size))
    parts = [kept(p, chosen) for p in dim.parts]
    sizes = [p.size for p in dim.parts]
    if dim.kind == "sum":
        starts = np.cumsum([0, *sizes[:-1]])
        return np.concatenate([part + start for part, start in zip(parts, starts, strict=True)])
    found = np.zeros(1, np.int64)
    for part, size in zip(parts, sizes, strict=True):
        found = (found[:, None] * size + part[None, :]).reshape(-1)
    return found


def units(dim: Dim, atom: Dim) -> Index:
    """For each index along an axis which unit of the atom it belongs to, -1 where to none."""
    dim = dim.found()
    if dim is atom:
        return np.arange(dim.size)
    if dim.kind == "atom":
        return np.full(dim.size, -1)
    parts = [units(p, atom) for p in dim.parts]
    if dim.kind == "sum":
        return np.concatenate(parts)
    found = np.full(1, -1)
    for part in parts:
        found = np.where(part[None, :] >= 0, part[None, :], found[:, None]).reshape(-1)
    return found


def size(dim: Dim, left: Mapping[Dim, int]) -> int:
    """How many indices an axis has when so many of each of these atoms are left."""
    dim = dim.found()
    if dim.kind == "atom":
        return left.get(dim, dim.size)
    parts = [size(p, left) for p in dim.parts]
    return prod(parts) if dim.kind == "product" else sum(parts)
