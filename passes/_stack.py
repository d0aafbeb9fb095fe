"""Where a program narrows to one value, and the layers that repeat between such places: found in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, fx

from edgecompile.axes import Coupling, Work
from edgecompile.program import Program
from edgecompile.rewrite import aten, weight

_MOST = 40
"""Narrow places within one layer."""
_EMBEDDING = aten.embedding.default


@dataclass(frozen=True)
class Layer:
    """What lies between two narrow places: the value that enters, the nodes in order, the last of them what leaves."""

    enters: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def leaves(self) -> fx.Node:
        """The value that the next layer reads."""
        return self.nodes[-1]


def narrow(program: Program, coupling: Coupling) -> list[fx.Node]:
    """Values behind which nothing reads what was computed before with weights, in order.

    Masks and positions, which no product or embedding has gone into, may be read on, and outputs may be returned.
    """
    graph = program.graph.graph
    cost = Work(coupling).by_node()
    order = {node: place for place, node in enumerate(graph.nodes)}
    heavy: set[fx.Node] = set()
    last: dict[fx.Node, int] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and (node in cost or node.target is _EMBEDDING or heavy & set(inputs)):
            heavy.add(node)
        for source in inputs if node.op != "output" else ():
            last[source] = order[node]
    found, alive = [], set[fx.Node]()
    for node in graph.nodes:
        if node.op == "output":
            break
        place = order[node]
        alive = {v for v in alive if last[v] > place}
        if node in heavy and last.get(node, -1) > place:
            alive.add(node)
            if alive == {node} and isinstance(node.meta.get("val"), Tensor):
                found.append(node)
    return found


def stacks(program: Program, coupling: Coupling) -> list[list[Layer]]:
    """Runs of two or more layers that compute the same with weights of the same shapes, one behind the other."""
    places = narrow(program, coupling)
    cost = Work(coupling).by_node()
    pieces = [between(program, a, b) for a, b in pairwise(places)]
    forms = [_form(program, a, nodes) for a, nodes in zip(places, pieces, strict=False)]
    works = [any(n in cost for n in nodes) for nodes in pieces]
    found: list[list[Layer]] = []
    start = 0
    while start < len(pieces):
        period, count = _repeated(forms, works, start)
        if count < 2:
            start += 1
            continue
        layers = []
        for k in range(count):
            at = start + k * period
            layers.append(Layer(places[at], tuple(n for piece in pieces[at : at + period] for n in piece)))
        found.append(layers)
        start += period * count
    return found


def weights_of(layer: Layer) -> list[tuple[fx.Node, fx.Node]]:
    """Every weight that a layer reads: who reads it, and the node that gives it."""
    return [(node, value) for node in layer.nodes for value in node.all_input_nodes if value.op == "get_attr"]


def _repeated(forms: Sequence[Any], works: Sequence[bool], start: int) -> tuple[int, int]:
    """The shortest period from here that repeats with work in it, and how often."""
    for period in range(1, min(_MOST, (len(forms) - start) // 2) + 1):
        first = forms[start : start + period]
        count = 1
        while forms[start + count * period : start + (count + 1) * period] == first:
            count += 1
        if count > 1 and any(works[start : start + period]):
            return period, count
    return 1, 1


def between(program: Program, first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes that the last needs and that need the first, in order."""
    needed, todo = {last}, [last]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source is not first and source not in needed and source.op == "call_function":
                needed.add(source)
                todo.append(source)
    reached = {first}
    nodes = []
    for node in program.graph.graph.nodes:
        if node in needed and reached & set(node.all_input_nodes):
            reached.add(node)
            nodes.append(node)
    return nodes


def _form(program: Program, enters: fx.Node, nodes: Sequence[fx.Node]) -> tuple[Any, ...]:
    """What the nodes compute: operators and arguments, inner values by their place, weights by their shapes."""
    known: dict[fx.Node, Any] = {enters: "enters"}
    form = []
    for place, node in enumerate(nodes):
        form.append((node.target, _said(program, node.args, known), _said(program, node.kwargs, known)))
        known[node] = place
    return tuple(form)


def _said(program: Program, value: Any, known: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        if value in known:
            return known[value]
        found = weight(program, value)
        return value.name if found is None else ("weight", tuple(found.shape), found.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(_said(program, v, known) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((k, _said(program, v, known)) for k, v in value.items()))
    return value
