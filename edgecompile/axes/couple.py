"""Coupled groups: which axes of which weights shrink together, and which cannot and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import fx

from edgecompile.axes import layers, shapes
from edgecompile.axes.dims import Dim, Index, units
from edgecompile.axes.walk import Dims, Found, Walk
from edgecompile.errors import PassError, near
from edgecompile.program import Program


@dataclass(frozen=True)
class Member:
    """An axis of a weight, and for each of its indices the unit of the group that it belongs to, -1 where to none.

    `summed`: a product sums over it, so that a removed unit is one whose share of that sum is gone.
    """

    weight: str
    axis: int
    summed: bool
    units: Index = field(repr=False, compare=False)


@dataclass(frozen=True)
class Group:
    """Units 0 to `size` - 1 that are removed as one: every member loses the indices of a removed unit.

    `name` is its first member's, `layer1.conv1.weight:0`; a second group of the same axis (the heads of a projection,
    and what each head has) counts on with `#2`.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    atom: Dim = field(repr=False, compare=False)


@dataclass(frozen=True)
class Coupling:
    """All groups of a program, and for every axis of a weight that has no part in any the reason."""

    groups: tuple[Group, ...]
    fixed: Mapping[tuple[str, int], str]
    dims: Mapping[fx.Node, Found] = field(repr=False)
    virtual: Mapping[fx.Node, Sequence[Dim]] = field(repr=False)
    weights: Mapping[str, Dims] = field(repr=False)
    work: Mapping[fx.Node, tuple[Dims, ...]] = field(repr=False)

    def __getitem__(self, name: str) -> Group:
        return next(g for g in self.groups if g.name == name)

    def of(self, weight: str, axis: int = 0) -> list[Group]:
        """The groups that an axis of a weight has a part in, in the order of its index."""
        atoms = set(self.weights[weight][axis].atoms())
        return [g for g in self.groups if g.atom in atoms]

    def chosen(self, keep: Mapping[str, Sequence[int]]) -> dict[Dim, Index]:
        """Kept units by atom; raises `PassError` for a group that is not there or would keep nothing."""
        known = {g.name: g for g in self.groups}
        found: dict[Dim, Index] = {}
        for name, given in keep.items():
            if name not in known:
                raise PassError(f"{name}: no such group of axes{near(name, known)}")
            index = np.unique(np.asarray(list(given), np.int64))
            if not len(index) or len(index) != len(list(given)) or index[0] < 0 or index[-1] >= known[name].size:
                raise PassError(f"{name}: kept units must be different numbers from 0 to {known[name].size - 1}")
            found[known[name].atom] = index
        return found


def couple(program: Program) -> Coupling:
    """The coupled axes of a program, by what its operators do with them.

    Every weight axis is an atom, a product of atoms (a reshape) or a sum of them (a concatenation); axes that an
    operator makes one are unified. What reaches an input, an output or an operator that is not known is fixed.
    """
    walk = Walk(program)
    walk.run({**layers.RULES, **shapes.RULES, **layers.quantized()}, layers.pointwise)
    used = {atom for node, found in walk.dims.items() if node.op != "get_attr" for atom in _atoms(found)}
    members: dict[Dim, list[Member]] = {}
    fixed: dict[tuple[str, int], str] = {}
    for name, dims in walk.weights.items():
        for axis, dim in enumerate(dims):
            free = []
            for atom in dict.fromkeys(dim.atoms()):
                if atom not in used:
                    atom.fix("nothing reads it")
                if not atom.fixed and _twice(dim, atom):
                    atom.fix("its index is used twice in one axis")
                if not atom.fixed:
                    free.append(atom)
            for atom in free:
                members.setdefault(atom, []).append(Member(name, axis, (name, axis) in walk.summed, units(dim, atom)))
            if not free:
                fixed[name, axis] = next((a.fixed for a in dim.atoms() if a.fixed), "it has one index")
    groups: list[Group] = []
    names: dict[str, int] = {}
    for atom, found in members.items():
        if atom.fixed:  # by a weight that came later
            continue
        first = f"{found[0].weight}:{found[0].axis}"
        names[first] = names.get(first, 0) + 1
        name = first if names[first] == 1 else f"{first}#{names[first]}"
        groups.append(Group(name, atom.size, tuple(found), atom))
    return Coupling(tuple(groups), fixed, walk.dims, walk.virtual, walk.weights, walk.work)


def _atoms(found: Found) -> list[Dim]:
    every = found if isinstance(found, list) else [found]
    return [atom for dims in every for dim in dims for atom in dim.atoms()]


def _twice(dim: Dim, atom: Dim) -> bool:
    """Whether a product has the atom twice, so that one index would be of two units."""
    dim = dim.found()
    if dim.kind == "product":
        return sum(any(a is atom for a in p.atoms()) for p in dim.parts) > 1 or any(_twice(p, atom) for p in dim.parts)
    return any(_twice(p, atom) for p in dim.parts)
