"""What the passes that compress weights alone share: which weights, and how the smaller ones stand in the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, fx
from torch._ops import OpOverload

from edgecompile.errors import PassError, near
from edgecompile.pass_manager import Context
from edgecompile.passes._affine import CONV, TRANSPOSED
from edgecompile.passes._placement import matcher
from edgecompile.program import Program
from edgecompile.rewrite import add_weight, call, layer, weight

aten = torch.ops.aten
Q = torch.ops.quantized_decomposed
_READERS: dict[OpOverload, int] = {
    **dict.fromkeys((*CONV, *TRANSPOSED, aten.linear.default), 1),
    aten.embedding.default: 0,
}
"""Operators with a weight worth compressing -> its argument."""


@dataclass(frozen=True)
class Matrix:
    """One weight, its readers, and the axis of its output channels (of its rows, for an embedding)."""

    name: str
    node: fx.Node
    value: Tensor
    readers: tuple[fx.Node, ...]
    axis: int


def matrices(program: Program, keep_float: Sequence[str], smallest: int, ctx: Context, who: str) -> Iterator[Matrix]:
    """The float weights that layers read, from `smallest` numbers up; a note for each that is left."""
    kept = matcher(tuple(keep_float))
    calls = [n for n in program.graph.graph.nodes if n.op == "call_function"]
    for glob in keep_float:
        if not any(map(matcher((glob,)), calls)):
            known = {layer(n) for n in calls if n.target in _READERS}
            raise PassError(f"{who}: keep_float: {glob!r} matches no layer{near(glob, known)}")
    nodes: dict[str, list[fx.Node]] = {}
    for node in program.graph.graph.nodes:
        if node.op == "get_attr":
            nodes.setdefault(str(node.target), []).append(node)
    for name, same in nodes.items():
        value = weight(program, same[0])
        readers = tuple(user for node in same for user in node.users)
        if value is None or not value.is_floating_point() or not any(_reads(u, same) for u in readers):
            continue
        title = f"{name} ({layer(readers[0])})"
        if any(map(kept, readers)):
            ctx.note(f"{title} stays float: keep_float")
        elif not all(_reads(u, same) for u in readers):
            ctx.note(f"{title} stays float: it is read by other operators too")
        elif value.numel() < smallest:
            ctx.count("too_small")
        elif not bool(value.isfinite().all()):
            ctx.note(f"{title} stays float: it is not finite")
        else:
            axis = 1 if readers[0].target in TRANSPOSED else 0
            yield Matrix(name, same[0], value.detach().float(), readers, axis)


def _reads(user: fx.Node, same: Sequence[fx.Node]) -> bool:
    """Whether a node is a layer and reads the weight as its weight and nothing else."""
    position = _READERS.get(user.target) if isinstance(user.target, OpOverload) else None
    return position is not None and [i for i, a in enumerate(user.args) if a in same] == [position]


def substitute(program: Program, matrix: Matrix, make: Callable[[fx.Node], fx.Node]) -> None:
    """Let the readers of a weight read what `make` puts in front of the first of them."""
    first = min(matrix.readers)
    made = make(first)
    for reader in matrix.readers:
        reader.update_arg(_READERS[reader.target], made)  # type: ignore[index]


def stored(program: Program, matrix: Matrix, word: str, value: Tensor, before: fx.Node) -> fx.Node:
    """A part of the compressed weight: `conv.weight` -> `conv.weight_data`."""
    origin = program.origin.get(matrix.name, matrix.name)
    return add_weight(program, f"{matrix.name}_{word}", value.contiguous(), before, origin)


def integers(
    program: Program, matrix: Matrix, data: Tensor, scale: Tensor, zero: Tensor, limits: tuple[int, int], like: fx.Node
) -> fx.Node:
    """`scale * (data - zero)` in the graph: one scale a channel, or `[rows, groups]` of them for groups along a row."""
    parts = {"data": data, "scale": scale, "zero": zero}
    names = [stored(program, matrix, k, v, like) for k, v in parts.items()]
    if scale.dim() == 1:
        args = (*names, matrix.axis, *limits, torch.int8)
        return call(program, Q.dequantize_per_channel.default, args, like)
    size = data.shape[1] // scale.shape[1]
    args = (*names, *limits, torch.int8, size, torch.float32)
    flat = call(program, Q.dequantize_per_channel_group.default, args, like)
    if matrix.value.dim() == 2:
        return flat
    return call(program, aten.reshape.default, (flat, list(matrix.value.shape)), like)


def palette(program: Program, matrix: Matrix, indices: Tensor, lut: Tensor, like: fx.Node) -> fx.Node:
    """`lut[indices]` in the graph, or with `[groups, numbers]` in the table `lut[row, indices]`."""
    node = stored(program, matrix, "indices", indices, like)
    table = stored(program, matrix, "lut", lut, like)
    chosen: list[fx.Node] = [call(program, aten.to.dtype, (node, torch.int64), like)]
    if lut.dim() == 2:
        rows = torch.arange(indices.shape[0]) // (indices.shape[0] // lut.shape[0])
        rows = rows.reshape(-1, *[1] * (indices.dim() - 1))
        chosen.insert(0, stored(program, matrix, "row", rows, like))
    return call(program, aten.index.Tensor, (table, chosen), like)
