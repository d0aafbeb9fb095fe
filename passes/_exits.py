"""A program with exits on its way, behind each a head of its own: the last layers again, fitted to what comes there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import fx
from torch.nn import functional as F

from edgecompile.axes import Coupling, Work, couple
from edgecompile.data import Dataset
from edgecompile.errors import PassError
from edgecompile.passes._least_squares import Sums, ridge
from edgecompile.passes._stack import between, narrow
from edgecompile.passes._taps import tapped
from edgecompile.program import Program
from edgecompile.rewrite import add_weight, argument, aten, copied, infer, layer, set_weight, weight


@dataclass(frozen=True)
class Exit:
    """A place of the program where it could end, and the part of the multiplications that lies before."""

    place: fx.Node
    macs: float

    @property
    def name(self) -> str:
        """The layer that it is behind."""
        return layer(self.place)


@dataclass(frozen=True)
class Ways:
    """The program with all its outputs: those of the whole first, then as many for each exit, from the first on.

    `linears` are the first linear layer behind the last place and behind each exit, where there is one.
    """

    program: Program
    exits: tuple[Exit, ...]
    names: tuple[str, ...]
    linears: tuple[fx.Node, ...]

    def ending(self, which: int) -> Program:
        """The program that ends at one exit; the last one, or -1, is the whole."""
        made, _ = copied(self.program)
        output = next(n for n in reversed(made.graph.graph.nodes) if n.op == "output")
        count = len(self.names)
        at = 0 if which in (-1, len(self.exits)) else (which + 1) * count
        output.args = (tuple(output.args[0][at : at + count]),)
        return replace(made, output_names=self.names).refreshed()


def ways(who: str, program: Program, count: int) -> Ways:
    """The program with up to `count` exits, evenly spread over its work; they copy its last layers.

    Raises `PassError`, in the name of the pass `who`, for a fixed batch, where the program does not narrow to one value
    between its layers, and where nothing fits its last layers.
    """
    if program.batch is not None:
        raise PassError(f"{who}: needs a dynamic batch, and the program's is fixed at {program.batch}")
    coupling = couple(program)
    ends = _ends(program, coupling)
    if len(ends) < 2:
        raise PassError(f"{who}: this program does not narrow to one value between layers: use drop_layers or prune")
    *places, last = ends
    tail = _tail(who, program, last)
    fitting = [p for p in places if _fits(program, p, last, tail)]
    if not fitting:
        raise PassError(f"{who}: the last layers fit behind no other: use drop_layers or prune")
    work = _before(program, coupling, fitting)
    chosen = _spread(fitting, work, count)
    made, known = _with(program, [e.place for e in chosen], last, tail)
    first = next((n for n in tail if n.target is aten.linear.default), None)
    linears = () if first is None else tuple(one[first] for one in known)
    return Ways(made, tuple(chosen), program.output_names, linears)


def settle_heads(found: Ways, data: Dataset) -> None:
    """Fit the first linear layer behind each exit to what the whole program's own gives, by ridge regression."""
    program = found.program
    if not found.linears:
        return
    final, *heads = found.linears
    module = tapped(program, [final, *(argument(h, "input") for h in heads)])
    sums = [[Sums(), Sums()] for _ in heads]
    with torch.no_grad():
        for number, batch in enumerate(data):
            _, (wanted, *inputs) = module(*batch.inputs)
            for halves, head, x in zip(sums, heads, inputs, strict=True):
                rows = x.flatten(0, -2).double()
                if argument(head, "bias") is not None:
                    rows = F.pad(rows, (0, 1), value=1.0)
                halves[number % 2].add(rows, wanted.flatten(0, -2).double())
    for head, halves in zip(heads, sums, strict=True):
        read, bias = argument(head, "weight"), argument(head, "bias")
        own = [value.detach().double() for n in (read, bias) if (value := weight(program, n)) is not None]
        new = ridge(halves, torch.cat([value.reshape(len(value), -1) for value in own], 1))
        for node, part in zip((read, bias), (new[:, : own[0].shape[1]], new[:, -1]), strict=True):
            if node is not None:
                set_weight(program, node, part.to(node.meta["val"].dtype).contiguous())


def _ends(program: Program, coupling: Coupling) -> list[fx.Node]:
    """The narrow places right behind a product that still have positions or pixels, or all where none has."""
    cost = Work(coupling).by_node()
    places = narrow(program, coupling)
    found = [n for n in places[:1] if n in cost]
    found += [b for a, b in pairwise(places) if any(n in cost for n in between(program, a, b))]
    wide = [n for n in found if len(n.meta["val"].shape) > 2]
    outputs = set(program.outputs())
    return [n for n in (wide or found) if n not in outputs]


def _tail(who: str, program: Program, last: fx.Node) -> list[fx.Node]:
    """What comes behind the last place, in order; raises `PassError` where an output does not come from there."""
    reached, found = {last}, []
    for node in program.graph.graph.nodes:
        if node.op == "call_function" and reached & set(node.all_input_nodes):
            reached.add(node)
            found.append(node)
    if any(o not in reached for o in program.outputs()):
        raise PassError(f"{who}: the program returns a value from before its last layers")
    return found


def _fits(program: Program, place: fx.Node, last: fx.Node, tail: Sequence[fx.Node]) -> bool:
    """Whether a copy of the last layers can stand behind a place and give the same shapes."""
    try:
        made = _with(program, [place], last, tail)[0]
    except Exception:  # whatever an operator says to a shape that it does not take
        return False
    outputs, count = made.outputs(), len(program.output_names)
    types = [(str(n.meta["val"].dtype), [str(s) for s in n.meta["val"].shape]) for n in outputs]
    return types[:count] == types[count:]


def _with(
    program: Program, places: Sequence[fx.Node], last: fx.Node, tail: Sequence[fx.Node]
) -> tuple[Program, list[dict[fx.Node, fx.Node]]]:
    """The program with a copy of the last layers behind each place, its weights their own, and where its nodes are.

    The first of these is for the program's own nodes.
    """
    made, copies = copied(program)
    output = next(n for n in reversed(made.graph.graph.nodes) if n.op == "output")
    outputs = list(output.args[0])
    heads = [copies]
    for number, place in enumerate(places):
        known = {last: copies[place]}
        for node in tail:
            known[node] = _copy(program, made, node, known, copies, output, f"exits.{number}")
        outputs += [known[o] for o in program.outputs()]
        heads.append(known)
    output.args = (tuple(outputs),)
    names = [*program.output_names, *(f"{n}@{i}" for i in range(len(places)) for n in program.output_names)]
    return replace(made, output_names=tuple(names), origin=dict(made.origin)).refreshed(), heads


def _copy(
    program: Program,
    made: Program,
    node: fx.Node,
    known: Mapping[fx.Node, fx.Node],
    copies: Mapping[fx.Node, fx.Node],
    output: fx.Node,
    name: str,
) -> fx.Node:
    """A node again, on other inputs and with weights of its own; a linear layer's fit what it reads."""

    def other(source: fx.Node) -> fx.Node:
        if source in known:
            return known[source]
        value = weight(program, source)
        if value is None or source.op != "get_attr":
            return copies[source]
        value = value.detach().clone()
        if node.target is aten.linear.default and source is argument(node, "weight"):
            wide = known[argument(node, "input")].meta["val"].shape[-1]
            value = value if wide == value.shape[1] else value.new_zeros(value.shape[0], int(wide))
        return add_weight(made, f"{name}.{source.target}".replace(".", "_"), value, output)

    with made.graph.graph.inserting_before(output):
        new = made.graph.graph.node_copy(node, other)
    new.meta = {**node.meta, "custom": dict(node.meta.get("custom", {}))}
    infer(new)
    return new


def _before(program: Program, coupling: Coupling, places: Sequence[fx.Node]) -> list[float]:
    """The part of the multiplications before each place."""
    cost = Work(coupling).by_node()
    total = max(1, sum(cost.values()))
    found = []
    for place in places:
        needed, todo = {place}, [place]
        while todo:
            for source in todo.pop().all_input_nodes:
                if source not in needed:
                    needed.add(source)
                    todo.append(source)
        found.append(sum(c for n, c in cost.items() if n in needed) / total)
    return found


def _spread(places: Sequence[fx.Node], work: Sequence[float], count: int) -> list[Exit]:
    """So many of them, nearest to even parts of the work."""
    chosen: set[int] = set()
    for k in range(min(count, len(places))):
        rest = [i for i in range(len(places)) if i not in chosen]
        chosen.add(min(rest, key=lambda i: abs(work[i] - (k + 1) / (count + 1))))
    return [Exit(places[i], work[i]) for i in sorted(chosen)]
