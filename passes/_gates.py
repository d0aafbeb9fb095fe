"""Hard-concrete gates on units of coupled groups, the size that they lead one to expect, and what is kept in the end.

Louizos, Welling and Kingma (2018), as CoFi and DPHuBERT use them: a gate is 0 or 1 with some probability and between
them otherwise, and the gradient of its parameter is that of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgecompile.axes import Coupling, Group, cut
from edgecompile.axes.dims import Dim, size
from edgecompile.axes.walk import PRIMES
from edgecompile.passes import _local
from edgecompile.passes._branches import distance
from edgecompile.passes._shrinking import step_of
from edgecompile.program import Program
from edgecompile.rewrite import argument, set_weight, weight

BETA, LOW, HIGH, EDGE = 2 / 3, -0.1, 1.1, 1e-6
FIRST, MOST = 4.6, log(100.0)
"""The parameter of a gate at first, open 99 times of 100, and the largest size of one."""
_SAME = 1e-3


def sampled(alpha: Tensor, chance: Tensor) -> Tensor:
    """Gates between 0 and 1, from their parameters and as many chances between 0 and 1."""
    chance = chance * (1 - 2 * EDGE) + EDGE
    stretched = torch.sigmoid((torch.log(chance) - torch.log1p(-chance) + alpha) / BETA)
    return (LOW + (HIGH - LOW) * stretched).clamp(0, 1)


def open_probability(alpha: Tensor) -> Tensor:
    """How probable it is that a gate is not 0."""
    return torch.sigmoid(alpha - BETA * log(-LOW / HIGH))


def settled(alpha: Tensor) -> Tensor:
    """What an open gate is when nothing is sampled any more."""
    return torch.sigmoid(0.8 * alpha / BETA)


@dataclass(frozen=True)
class Gates:
    """The groups that can have gates, where each one's begin in the vector of all, and the layers that read them.

    `index` is for the weight of each such layer, for each group that it sums over, by its inputs the place of their
    gate; behind all is one that is open.
    """

    coupling: Coupling
    groups: tuple[Group, ...]
    starts: Mapping[str, int]
    index: Mapping[str, Sequence[Tensor]]

    @property
    def count(self) -> int:
        """All units."""
        return sum(g.size for g in self.groups)

    @staticmethod
    def of(program: Program, coupling: Coupling) -> Gates:
        """Groups of which a closed gate is the same as a removed unit: tried on the example inputs, each by itself.

        Not so for widths that a norm goes over, and where a layer that sums over the group can't be solved for.
        """
        found = _local.readers(program, coupling)
        groups = [g for g in coupling.groups if _covered(g, found[g.name]) and _same(program, coupling, g, found)]
        starts, place = {}, 0
        for group in groups:
            starts[group.name] = place
            place += group.size
        index: dict[str, list[Tensor]] = {}
        for group in groups:
            for reader in found[group.name]:
                read = argument(reader.node, "weight")
                wide = int(read.meta["val"].shape[1])
                own = torch.full((wide,), place)
                index.setdefault(str(read.target), []).append(own)
                each = reader.weight.shape[1] // wide
                for unit in range(group.size):
                    own[reader.columns[unit] // each] = starts[group.name] + unit
        return Gates(coupling, tuple(groups), starts, index)

    def expected(self, opened: Tensor, params: bool) -> Tensor:
        """Multiplications (or numbers in weights) to be expected from how probable it is that each gate is open.

        Gates are independent, so that the expectation of a product of widths is the product of theirs.
        """
        left: dict[Any, Any] = {g.atom: opened[s : s + g.size].sum() for g, s in self._placed()}
        found: Tensor = _total(self.coupling, left, params)
        return found

    def size(self, left: Mapping[str, int], params: bool) -> float:
        """The same with so many units left of some groups."""
        return float(_total(self.coupling, {g.atom: left[g.name] for g in self.groups if g.name in left}, params))

    def kept(self, opened: Sequence[float], share: float, params: bool, block: int) -> dict[str, list[int]]:
        """Units to keep in whole blocks, so that at most `share` is left: the least probable go first.

        Of each group its next block, the one first that is least probable for what it saves.
        """
        scores = {g.name: np.asarray(opened[s : s + g.size]) for g, s in self._placed()}
        order = {name: np.argsort(value, kind="stable") for name, value in scores.items()}
        left = {g.name: g.size for g in self.groups}
        whole = now = float(_total(self.coupling, {}, params))
        while now > share * whole:
            best: tuple[float, Group, int, float] | None = None
            for group in self.groups:
                step = step_of(group, block)
                after = (left[group.name] - 1) // step * step
                if after < min(step, group.size):
                    continue
                sizes = {g.atom: left[g.name] for g in self.groups} | {group.atom: after}
                then = float(_total(self.coupling, sizes, params))
                going = order[group.name][group.size - left[group.name] : group.size - after]
                price = float(scores[group.name][going].sum()) / max(now - then, 1e-9)
                if best is None or price < best[0]:
                    best = price, group, after, then
            if best is None:
                break
            left[best[1].name], now = best[2], best[3]
        return {
            g.name: sorted(int(i) for i in order[g.name][g.size - left[g.name] :])
            for g in self.groups
            if left[g.name] < g.size
        }

    def fold(self, program: Program, values: Tensor) -> None:
        """Multiply gates into the weights of the layers that read the units, in place."""
        padded = torch.cat([values.double(), torch.ones(1, dtype=torch.float64)])
        for node in program.graph.graph.find_nodes(op="get_attr"):
            for index in self.index.get(str(node.target), ()):
                value = weight(program, node)
                assert value is not None
                scale = padded[index].reshape(1, -1, *[1] * (value.dim() - 2))
                set_weight(program, node, (value.detach().double() * scale).to(value.dtype))

    def _placed(self) -> list[tuple[Group, int]]:
        return [(g, self.starts[g.name]) for g in self.groups]


def _total(coupling: Coupling, left: Mapping[Dim, Any], params: bool) -> Any:
    """Multiplications or numbers in weights when so much is left of some atoms."""
    terms = list(coupling.weights.values()) if params else [t for ts in coupling.work.values() for t in ts]
    atoms = {atom for term in terms for dim in term for atom in dim.atoms()}
    known = {atom: 1 for atom in atoms if atom.size in PRIMES} | dict(left)
    total: Any = 0.0
    for term in terms:
        value: Any = 1.0
        for dim in term:
            value = value * size(dim, known)
        total = total + value
    return total


def _covered(group: Group, found: Sequence[_local.Reader]) -> bool:
    """Whether every layer that sums over a group is known."""
    known = {str(argument(r.node, "weight").target) for r in found}
    return bool(found) and {m.weight for m in group.members if m.summed} <= known


def _same(program: Program, coupling: Coupling, group: Group, found: Mapping[str, list[_local.Reader]]) -> bool:
    """Whether closing half of a group's gates gives what removing those units gives."""
    left = list(range(0, group.size, 2))
    names = {r.node: argument(r.node, "weight") for r in found[group.name]}
    before = {node: weight(program, read) for node, read in names.items()}
    with torch.no_grad():
        removed = cut(program, {group.name: left}, coupling)[0](*program.inputs)
        for reader in found[group.name]:
            value = before[reader.node]
            assert value is not None
            closed = value.detach().clone().flatten(1)
            closed[:, reader.columns[[u for u in range(group.size) if u not in left]].flatten()] = 0
            set_weight(program, names[reader.node], closed.reshape(value.shape))
        masked = program(*program.inputs)
        for node, value in before.items():
            assert value is not None
            set_weight(program, names[node], value)
    return distance(masked, removed) < _SAME**2
