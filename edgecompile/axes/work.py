"""Multiplications of a program as its groups shrink, from the axes alone: no program is made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import prod

from torch import fx

from edgecompile.axes.couple import Coupling, Group
from edgecompile.axes.dims import Dim, size
from edgecompile.axes.walk import PRIMES


class Work:
    """How many multiplications the products of a program have with so many units of each group.

    Dynamic sizes count as one: the figure is a sample's. Elementwise work counts nothing.
    """

    def __init__(self, coupling: Coupling) -> None:
        self._nodes = [(node, term) for node, terms in coupling.work.items() for term in terms]
        self._terms = [term for _, term in self._nodes]
        atoms = {atom for term in self._terms for dim in term for atom in dim.atoms()}
        self._left = {atom: 1 for atom in atoms if atom.size in PRIMES} | {g.atom: g.size for g in coupling.groups}
        by_atom: dict[Dim, list[int]] = defaultdict(list)
        for index, term in enumerate(self._terms):
            for atom in {atom for dim in term for atom in dim.atoms()}:
                by_atom[atom].append(index)
        self._by_atom = by_atom
        self._values = [self._term(index) for index in range(len(self._terms))]

    @property
    def macs(self) -> int:
        """All of them, as the groups are now."""
        return sum(self._values)

    def by_node(self) -> dict[fx.Node, int]:
        """Those of each product."""
        found: dict[fx.Node, int] = {}
        for (node, _), value in zip(self._nodes, self._values, strict=True):
            found[node] = found.get(node, 0) + value
        return found

    def units(self, group: Group) -> int:
        """What is left of a group."""
        return self._left[group.atom]

    def saved(self, group: Group, left: int) -> int:
        """How many fewer there are when only so many units of a group are left."""
        before = self._left[group.atom]
        self._left[group.atom] = left
        found = sum(self._values[i] - self._term(i) for i in self._by_atom[group.atom])
        self._left[group.atom] = before
        return found

    def set(self, group: Group, left: int) -> None:
        """So many units of a group are left."""
        self._left[group.atom] = left
        for index in self._by_atom[group.atom]:
            self._values[index] = self._term(index)

    def _term(self, index: int) -> int:
        return prod(size(dim, self._left) for dim in self._terms[index])


def macs(coupling: Coupling, keep: Mapping[str, int] | None = None) -> int:
    """Multiplications of a sample when of these groups so many units are left."""
    work = Work(coupling)
    for name, left in (keep or {}).items():
        work.set(coupling[name], left)
    return work.macs
