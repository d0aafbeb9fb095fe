"""remove_identity: operators that change nothing go, in a program that only infers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch._ops import OpOverload

from edgecompile import functional
from edgecompile.pass_manager import Context, Pass
from edgecompile.program import Program
from edgecompile.rewrite import argument, call, replace, same_type, shape, weight

aten = torch.ops.aten

ASSERTS = (aten._assert_tensor_metadata.default, aten._assert_async.msg, aten._assert_async.default)
DROPOUTS = (
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    *functional.DROPOUTS,
)
COPIES = (
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.positive.default,
    aten.lift.default,
)
CASTS = (
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
)
# shape operators that are identities exactly when the shape stays, since elements keep their row-major order
SHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.view_as.default,
    aten.reshape_as.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.broadcast_to.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.repeat.default,
    aten.slice.Tensor,
    aten.narrow.default,
    aten.adaptive_avg_pool2d.default,
)
IDEMPOTENT = (aten.relu.default, aten.relu6.default, aten.abs.default, aten.ceil.default, aten.floor.default)
NON_NEGATIVE = (
    aten.relu.default,
    aten.relu6.default,
    aten.sigmoid.default,
    aten.abs.default,
    aten.softmax.int,
)
ZEROS = (aten.zeros_like.default, aten.zeros.default, aten.new_zeros.default)
ONES = (aten.ones_like.default, aten.ones.default, aten.new_ones.default)
STRIDED = (aten.as_strided.default, aten.view_as_complex.default, aten.view.dtype)


@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Remove dropout, copies, casts, reshapes, slices, pads, additions and the like that change nothing.

    before:
        %dropout = dropout(%x, 0.1, False) : float32[batch, 8]
        %to = to.dtype(%dropout, torch.float32) : float32[batch, 8]
        %view = view(%to, [%sym_size_int, 8]) : float32[batch, 8]
        %mul = mul.Tensor(%view, 1) : float32[batch, 8]
        %relu = relu(%mul) : float32[batch, 8]
        %relu_1 = relu(%relu) : float32[batch, 8]
    after:
        %relu = relu(%x) : float32[batch, 8]

    A `view` that stays becomes `reshape`, so that copies which only made memory contiguous can go, and a cast
    that stays becomes `_to_copy`; assertions about dtypes and devices, which the captured program has already
    passed, go too.

    Kept: a program with operators in place, with a note; all copies of a program that reads memory by strides
    (`as_strided`, `view_as_complex`), with a note; dropout in training mode, with a note; anything whose type
    differs from its input's for any batch.
    """

    name: ClassVar[str] = "remove_identity"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        graph = program.graph.graph
        if (write := functional.first_write(graph)) is not None:
            ctx.note(f"program left alone: {write.name} writes in place")
            return program
        strided = next((n for n in graph.nodes if n.target in STRIDED), None)
        if strided is not None:
            ctx.note(f"copies kept: {strided.name} reads memory by strides")
        for node in list(graph.nodes):
            if node.op != "call_function":
                continue
            if node.target in ASSERTS:
                graph.erase_node(node)  # not counted: retracing writes one beside each cast that stays
            elif (source := _same(program, node, strided is None)) is not None:
                replace(program, node, source)
                ctx.count("removed")
            elif node.target in DROPOUTS and argument(node, "train"):
                ctx.note(f"{node.name} kept: it drops at random, in training mode")
            else:
                _settle(program, node)
        return program


def _same(program: Program, node: fx.Node, copies: bool) -> fx.Node | None:
    """The argument whose value the node returns unchanged, if there is one."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(node.target, OpOverload):
        return None
    if node.target in BINARY:
        return _neutral(program, node)
    if not same_type(node, source):
        return None
    match node.target:
        case target if target in DROPOUTS:
            same = not argument(node, "train") or argument(node, "p") == 0
        case target if target in COPIES:
            same = copies
        case target if target in CASTS:
            same = node.meta["val"].device == source.meta["val"].device
        case aten.permute.default:
            rank = len(shape(node) or ())
            same = [int(d) % rank for d in argument(node, "dims")] == list(range(rank))
        case aten.transpose.int:
            rank = len(shape(node) or ())
            same = int(argument(node, "dim0")) % rank == int(argument(node, "dim1")) % rank
        case aten.pad.default | aten.constant_pad_nd.default:
            same = not any(argument(node, "pad"))  # one more before and one less after is a shift
        case aten.slice.Tensor:
            same = argument(node, "step") == 1
        case target if target in IDEMPOTENT:
            same = source.target is target or (target is aten.relu.default and source.target in NON_NEGATIVE)
        case target:
            same = target in SHAPES
    return source if same else None


ADDITIONS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
BINARY = (*ADDITIONS, *PRODUCTS, aten.pow.Tensor_Scalar)


def _neutral(program: Program, node: fx.Node) -> fx.Node | None:
    """The x of `x + 0`, `0 + x`, `x - 0`, `x * 1`, `1 * x`, `x / 1`, `x ** 1`, where the types agree."""
    first, second = node.args[0], node.args[1]
    element = 0 if node.target in ADDITIONS else 1
    if same_type(node, first) and _is(program, second, element) and isinstance(first, fx.Node):
        return first
    commutes = node.target in (aten.add.Tensor, aten.mul.Tensor) and node.kwargs.get("alpha", 1) == 1
    if commutes and same_type(node, second) and _is(program, first, element) and isinstance(second, fx.Node):
        return second
    return None


def _is(program: Program, value: Any, element: int) -> bool:
    """Whether an operand is this number everywhere."""
    if not isinstance(value, fx.Node):
        return isinstance(value, (int, float)) and value == element
    if value.target in (ZEROS if element == 0 else ONES):
        return True
    constant = weight(program, value)
    # a trainable weight that starts at 0 or 1 is still to be trained
    return constant is not None and not constant.requires_grad and bool((constant == element).all())


def _settle(program: Program, node: fx.Node) -> None:
    """A view becomes `reshape`, which asks nothing of memory, a cast `_to_copy`, which asserts nothing."""
    if node.target in (aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default
    elif node.target in CASTS and node.target is not aten._to_copy.default:
        value, given = node.meta["val"], shape(node.args[0])
        if given is None or value.device != node.args[0].meta["val"].device:  # type: ignore[union-attr]
            return
        replace(program, node, call(program, aten._to_copy.default, (node.args[0],), node, {"dtype": value.dtype}))
