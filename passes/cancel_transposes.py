"""cancel_transposes: transposes and reshapes in a row become one or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from edgecompile.pass_manager import Context, Pass
from edgecompile.program import Program
from edgecompile.rewrite import argument, call, infer, nodes, only_user, replace, same_type, shape

aten = torch.ops.aten

TRANSPOSES = (
    aten.permute.default,
    aten.transpose.int,
    aten.swapaxes.default,
    aten.t.default,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.numpy_T.default,
)
# keep the row-major order of the elements, so that a chain of them depends on its last shape only
RESHAPES = (
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)
# one tensor in, one out, each element by itself: they commute with transposes and reshapes
ELEMENTWISE = (
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.mish.default,
    aten.softplus.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.exp.default,
    aten.abs.default,
    aten.neg.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.clamp.default,
    aten.dropout.default,
)


@dataclass(frozen=True)
class CancelTransposes(Pass):
    """Cancel transposes and reshapes that undo each other, also through elementwise operators; join others.

    before:
        %permute = permute(%x, [0, 2, 3, 1])
        %relu = relu(%permute)
        %permute_1 = permute(%relu, [0, 3, 1, 2])
    after:
        %relu = relu(%x)

    `permute`, `transpose`, `t`, `movedim` join to one `permute`; `reshape`, `flatten`, `unflatten`, `squeeze`
    and `unsqueeze` to one `reshape`.

    Kept: pairs with an operator between them that has an axis (softmax, layer norm) or several inputs, or
    whose result someone else reads in the layout between; reshapes with more than one dynamic size, with a
    note.
    """

    name: ClassVar[str] = "cancel_transposes"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        for node in nodes(program, *TRANSPOSES):
            current: fx.Node | None = node
            while current is not None and (current.target in TRANSPOSES) and (ends := _transposes(current)):
                current = _rewrite(program, current, *ends)
                ctx.count("transposes")
        for node in nodes(program, *RESHAPES):
            current = node
            while current is not None and (current.target in RESHAPES) and (ends := _reshapes(current, ctx)):
                current = _rewrite(program, current, *ends)
                ctx.count("reshapes")
        return program


def order(node: fx.Node) -> list[int]:
    """Axis i of a transpose's result is axis `order[i]` of its input."""
    rank = len(shape(node) or ())
    if node.target is aten.permute.default:
        return [int(d) % rank for d in argument(node, "dims")]
    # torch itself says where each axis goes: sizes 0, 1, 2, ... name the axes
    probe = torch.empty(tuple(range(rank)), device="meta")
    return [int(size) for size in node.target(probe, *node.args[1:], **node.kwargs).shape]  # type: ignore[operator]


def _chain(node: fx.Node, kinds: tuple[object, ...]) -> tuple[fx.Node, list[fx.Node]] | None:
    """The next node of `kinds` above, and the elementwise operators on the way, nearest first."""
    between: list[fx.Node] = []
    source = node.args[0]
    while isinstance(source, fx.Node):
        if source.target in kinds:
            return source, between
        if source.target not in ELEMENTWISE or only_user(source) is None:
            return None
        between.append(source)
        source = source.args[0]
    return None


Ends = tuple[fx.Node, list[fx.Node], list[int] | None]
"""The upper of two nodes, what is between, and the argument of what replaces both (None: nothing does)."""


def _transposes(node: fx.Node) -> Ends | None:
    if (chain := _chain(node, TRANSPOSES)) is None:
        return None
    above, between = chain
    first = order(above)
    joined = [first[axis] for axis in order(node)]
    if joined == list(range(len(joined))):
        return above, between, None
    # where others read the upper one it stays, and joining would save nothing
    return None if only_user(above) is None else (above, between, joined)


def _reshapes(node: fx.Node, ctx: Context) -> Ends | None:
    if (chain := _chain(node, RESHAPES)) is None:
        return None
    above, between = chain
    if same_type(above.args[0], node):
        return above, between, None
    if between or only_user(above) is None:
        return None
    sizes = shape(node) or ()
    dynamic = [size for size in sizes if not isinstance(size, int)]
    if len(dynamic) > 1 or (dynamic and 0 in sizes):
        ctx.note(f"{node.name} kept: its shape has several dynamic sizes or is empty")
        return None
    return above, between, [size if isinstance(size, int) else -1 for size in sizes]


def _rewrite(
    program: Program, node: fx.Node, above: fx.Node, between: list[fx.Node], joined: list[int] | None
) -> fx.Node:
    """Let the operators below `above` read its input, and one node or none do what the two did."""
    end = above.args[0]
    assert isinstance(end, fx.Node)
    for each in reversed(between):
        each.replace_input_with(each.args[0], end)  # type: ignore[arg-type]
        infer(each)
        end = each
    if joined is None:
        replace(program, node, end)
        _drop(program, above)
        return end
    target = aten.permute.default if node.target in TRANSPOSES else aten.reshape.default
    new = call(program, target, (end, joined), node)
    replace(program, node, new)
    _drop(program, above)
    return new


def _drop(program: Program, above: fx.Node) -> None:
    """A dead node would count as a reader of what it reads."""
    if not above.users:
        program.graph.graph.erase_node(above)
