"""Values that a student shares with the teacher it came from: paired by provenance, read from one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgecompile.axes import Coupling, couple
from edgecompile.axes.dims import Dim, Index, kept
from edgecompile.program import Program
from edgecompile.rewrite import argument, aten

ACTIVATIONS = (
    aten.relu.default, aten.gelu.default, aten.silu.default, aten.hardswish.default, aten.hardtanh.default,
    aten.leaky_relu.default, aten.tanh.default, aten.sigmoid.default, aten.mish.default, aten.elu.default,
)  # fmt: skip
_SUMS = (aten.add.Tensor,)
_ATTENTION = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class Pair:
    """A value of both, and of the teacher's the indices along each axis that the student still has."""

    student: fx.Node
    teacher: fx.Node
    kept: tuple[tuple[int, Tensor], ...] = ()

    def of(self, value: Tensor) -> Tensor:
        """The teacher's value with what the student has left of it."""
        for axis, index in self.kept:
            value = value.index_select(axis, index.to(value.device))
        return value


def features(student: Program, teacher: Program, count: int) -> list[Pair]:
    """Up to `count` values between layers, evenly spread: the sums that end residual branches, else activations."""
    pairs = _pairs(student, teacher, (*_SUMS, *ACTIVATIONS))
    sums = [p for p in pairs if p.student.target in _SUMS]
    return _spread(sums or pairs, count)


def attentions(student: Program, teacher: Program, count: int) -> list[Pair]:
    """Up to `count` attentions of both, evenly spread; what is kept is of the heads."""
    return _spread(_pairs(student, teacher, (_ATTENTION,)), count)


def _spread(pairs: list[Pair], count: int) -> list[Pair]:
    """So many of them, the last one always among them."""
    if len(pairs) <= count:
        return pairs
    return [pairs[round((i + 1) * len(pairs) / count) - 1] for i in range(count)]


def _pairs(student: Program, teacher: Program, targets: Iterable[Any]) -> list[Pair]:
    """Calls of these operators that come from one node of the teacher, in the student's order."""
    wanted = set(targets)
    known = {origin(n): n for n in teacher.graph.graph.nodes if n.target in wanted}
    found = [(n, known[origin(n)]) for n in student.graph.graph.nodes if n.target in wanted and origin(n) in known]
    found = [(s, t) for s, t in found if _is_value(s) and s.target is t.target]
    if not found:
        return []
    coupling = couple(teacher)
    chosen = survivors(student, coupling)
    pairs = []
    for one, other in found:
        place = other.args[0] if other.target is _ATTENTION else other
        axes = (1,) if other.target is _ATTENTION else range(1, len(other.meta["val"].shape))
        kept_ = _kept(coupling, place, axes, chosen)
        if _fits(one, other, kept_):
            pairs.append(Pair(one, other, kept_))
    return pairs


def survivors(student: Program, coupling: Coupling) -> dict[Dim, Index]:
    """Of each group of the teacher the units that the student's weights still have."""
    by_origin = {student.origin.get(name, name): name for name in student.weights()}
    found: dict[Dim, Index] = {}
    for group in coupling.groups:
        for member in group.members:
            name = by_origin.get(member.weight)
            left = student.kept.get(name, {}).get(member.axis) if name is not None else None
            if left is not None:
                units = np.unique(member.units[np.asarray(left, np.int64)])
                found[group.atom] = units[units >= 0]
                break
    return found


def _kept(
    coupling: Coupling, node: Any, axes: Iterable[int], chosen: Mapping[Dim, Index]
) -> tuple[tuple[int, Tensor], ...]:
    dims = coupling.dims.get(node)
    if not isinstance(dims, (list, tuple)) or not chosen or (dims and not isinstance(dims[0], Dim)):
        return ()
    pairs = []
    for axis in axes:
        dim = dims[axis]
        assert isinstance(dim, Dim)
        if any(atom in chosen for atom in dim.atoms()):
            index = kept(dim, chosen)
            if len(index) != dim.size:
                pairs.append((axis, torch.from_numpy(index)))
    return tuple(pairs)


def _fits(one: fx.Node, other: fx.Node, found: Sequence[tuple[int, Tensor]]) -> bool:
    """Whether both have one shape once the teacher's indices are picked; sizes that are dynamic may be any."""
    mine, theirs = list(one.meta["val"].shape), list(other.meta["val"].shape)
    if other.target is _ATTENTION:
        mine, theirs = mine[1:2], theirs[1:2]
        found = [(0, index) for _, index in found]
    for axis, index in found:
        theirs[axis] = len(index)
    return len(mine) == len(theirs) and all(
        a == b for a, b in zip(mine, theirs, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


def _is_value(node: fx.Node) -> bool:
    """A float tensor with a batch and something else."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2


def origin(node: fx.Node) -> str:
    """The teacher's node that a node comes from."""
    return str(node.meta.get("custom", {}).get("origin", node.name))


def tapped(program: Program, seen: Sequence[fx.Node], training: bool = False, own: bool = False) -> fx.GraphModule:
    """A module that returns a program's outputs and the values of these nodes.

    It has the program's very weights, unless they are to be its `own`. Of an attention the probabilities are seen. With
    `training`, batch norms take the statistics of the batch and follow them.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs: Any = graph.graph_copy(program.graph.graph, copies)
    values = []
    for node in seen:
        value = copies[node]
        if node.target is _ATTENTION:
            given = [argument(value, name) for name in ("query", "key", "attn_mask", "is_causal", "scale")]
            value = graph.call_function(probabilities, tuple(given))
        values.append(value)
    graph.output((tuple(outputs), tuple(values)))
    if training:
        for node in graph.find_nodes(op="call_function", target=aten.batch_norm.default):
            node.update_arg(5, True)
    return fx.GraphModule(copy.deepcopy(program.graph) if own else program.graph, graph)


def probabilities(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """Where attention looks, [batch, heads, queries, keys], in float32."""
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    table = query.float() @ key.float().transpose(-1, -2)
    table = table * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        hidden = torch.ones(table.shape[-2:], dtype=torch.bool, device=table.device).triu(1)
        table = table.masked_fill(hidden, float("-inf"))
    if mask is not None:
        table = table.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else table + mask.float()
    return table.softmax(-1)
