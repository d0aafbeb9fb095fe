"""Branches that end in a sum and can be left out: found in the graph, whatever the modules are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from edgecompile.axes import Coupling, Work
from edgecompile.functional import acts
from edgecompile.program import Program
from edgecompile.rewrite import aten, copied, layer, same_type


@dataclass(frozen=True)
class Branch:
    """A sum of which one operand stays: `inside` is what nobody else reads, with this many multiplications."""

    total: fx.Node
    stays: fx.Node
    inside: frozenset[fx.Node]
    macs: int
    name: str


def branches(program: Program, coupling: Coupling) -> list[Branch]:
    """Every branch with multiplications, in graph order: residual blocks, and either side of one with a projection."""
    graph = program.graph.graph
    everything = live(graph, {})
    cost = Work(coupling).by_node()
    found = []
    for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        if len(operands) != 2 or node.kwargs.get("alpha", 1) != 1 or not all(same_type(a, node) for a in operands):
            continue
        for stays in operands:
            after = live(graph, {node: stays})
            inside = everything - after - {node}
            if any(
                n.op == "placeholder" and everything & set(n.users) and not after & set(n.users) for n in graph.nodes
            ):
                continue  # an input would not be looked at
            macs = sum(cost.get(n, 0) for n in inside)
            if macs:
                first = next(n for n in graph.nodes if n in inside and n in cost)
                found.append(Branch(node, stays, frozenset(inside), macs, layer(first)))
    return found


def live(graph: fx.Graph, instead: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """What the outputs need when these nodes are only what stands for them."""
    found: set[fx.Node] = set()
    todo = [n for n in graph.nodes if n.op in ("output", "placeholder")]
    while todo:
        node = todo.pop()
        if node in found:
            continue
        found.add(node)
        todo += [instead[node]] if node in instead else node.all_input_nodes
    return found


class Without(fx.Interpreter):
    """Runs a program as if these branches were not there."""

    def __init__(self, program: Program, dropped: Iterable[Branch]) -> None:
        super().__init__(program.graph)
        self._instead = {b.total: b.stays for b in dropped}
        self._live = live(program.graph.graph, self._instead)

    def run_node(self, n: fx.Node) -> Any:
        if n in self._instead:
            return self.env[self._instead[n]]
        return super().run_node(n) if n in self._live else None


def dropped(program: Program, chosen: Iterable[Branch]) -> tuple[Program, dict[fx.Node, fx.Node]]:
    """A copy without these branches, not retraced, and what is left of the nodes by those of the program."""
    made, copies = copied(program)
    instead = {branch.total: branch.stays for branch in chosen}
    for total, stays in instead.items():
        while stays in instead:  # what stays is itself the end of a branch that goes
            stays = instead[stays]
        copies[total].replace_all_uses_with(copies[stays])
    made.graph.graph.eliminate_dead_code(acts)
    made.graph.recompile()
    alive = set(made.graph.graph.nodes)
    return made, {old: new for old, new in copies.items() if new in alive}


def separate(found: list[Branch]) -> list[Branch]:
    """Of branches that end in one sum the one with the most work, and none that has another inside."""
    best: dict[fx.Node, Branch] = {}
    for branch in found:
        if branch.total not in best or branch.macs > best[branch.total].macs:
            best[branch.total] = branch
    chosen = list(best.values())
    return [b for b in chosen if not any(o.total in b.inside for o in chosen if o is not b)]


def distance(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """The squared difference of outputs as a share of their squares, added up over the outputs."""
    total = 0.0
    for a, b in zip(found, wanted, strict=True):
        if b.is_floating_point():
            total += float((a - b).double().pow(2).sum() / b.double().pow(2).sum().clamp(min=1e-300))
    return total
