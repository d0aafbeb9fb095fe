"""fold_scale: multiplications and additions with constants become part of the layer beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._affine import (
    Affine,
    Readers,
    affine,
    representable,
    scaled_input,
    scaled_output,
    shared,
    store,
    title,
)
from edgecompile.program import Program
from edgecompile.rewrite import (
    argument,
    call,
    nodes,
    only_user,
    replace,
    same_type,
    shape,
    weight,
    weight_readers,
)

aten = torch.ops.aten

SCALES = (
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.rsub.Scalar,
    aten.neg.default,
)


@dataclass(frozen=True)
class FoldScale(Pass):
    """Fold scales and shifts by constants, one number or one a channel, into the layers before or after.

    before:
        %linear = linear(%x, l.weight, None) : float32[batch, 8]
        %mul = mul.Tensor(%linear, gamma: float32[8])
        %add = add.Tensor(%mul, 1)
    after:
        %linear = linear(%x, l.weight, l.bias) : float32[batch, 8]

    With `layer_norm=True` the scale and shift of a layer norm go into the linear layers that read it, too;
    that saves their weights but no operator, so it is off unless asked for.

    Kept, with a note when a layer stands beside them: a result that is used twice, weights that other layers
    read too, a layer after that pads with zeros (for shifts), weights that would no longer be finite.
    Constants that differ along any other axis than the channels, and those that change dtype or shape, are
    left in silence.
    """

    layer_norm: bool = False
    name: ClassVar[str] = "fold_scale"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        readers = weight_readers(program)
        reasons: dict[fx.Node, str] = {}
        for node in nodes(program, *SCALES):
            if _into_before(program, node, readers, reasons):
                ctx.count("folded")
        for node in reversed(list(nodes(program, *SCALES))):
            if _into_after(program, node, readers, reasons):
                ctx.count("folded")
                reasons.pop(node, None)
        for node in nodes(program, aten.layer_norm.default) if self.layer_norm else ():
            if _layer_norm(program, node, readers, reasons):
                ctx.count("layer_norms")
        for node, reason in reasons.items():
            ctx.note(f"{title(node)} kept: {reason}")
        return program


def scale_and_shift(program: Program, node: fx.Node, axis: int, channels: int) -> tuple[fx.Node, Tensor, Tensor] | None:
    """A node in `SCALES` as `scale * x + shift` along `axis`: x, and both as float64 `[channels]`."""
    if node.target is aten.neg.default:
        x, pair = node.args[0], _pair(node, torch.tensor(1.0), True)
    else:
        first, second = node.args[:2]
        turned = weight(program, first) is not None
        x, other = (second, first) if turned else (first, second)
        constant = _per_channel(program, other, axis, channels, len(shape(node) or ()))
        if constant is None:
            return None
        pair = _pair(node, constant, turned)
    if pair is None or not isinstance(x, fx.Node) or not same_type(x, node):
        return None
    scale, shift = (t.double().expand(channels) for t in pair)
    return (x, scale, shift) if x.meta["val"].is_floating_point() else None


def _pair(node: fx.Node, constant: Tensor, turned: bool) -> tuple[Tensor, Tensor] | None:
    """Scale and shift of `x op constant`, or of `constant op x` when `turned`."""
    word = str(node.target).split(".")[1]
    if word == "neg":
        return -constant, torch.zeros_like(constant)
    one, zero = torch.ones_like(constant), torch.zeros_like(constant)
    if word == "mul":
        return constant, zero
    if word == "div":
        return None if turned else (1 / constant, zero)
    alpha = argument(node, "alpha")
    match word, turned:
        case "add", False:
            return one, alpha * constant
        case "add", True:
            return alpha * one, constant
        case "sub", False:
            return one, -alpha * constant
        case _:  # constant - alpha * x, the same for `rsub(x, constant)`
            return -alpha * one, constant


def _per_channel(program: Program, value: Any, axis: int, channels: int, rank: int) -> Tensor | None:
    """A number, or a constant that varies along the channels only, as float64 `[]` or `[channels]`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    constant = weight(program, value)
    if constant is None or constant.dtype == torch.bool or constant.is_complex() or constant.dim() > rank:
        return None
    full = constant.detach().double().reshape(*(1,) * (rank - constant.dim()), *constant.shape)
    if full.numel() == 1:
        return full.reshape(())
    return full.flatten() if full.shape[axis] == full.numel() == channels else None


def _into_before(program: Program, node: fx.Node, readers: Readers, reasons: dict[fx.Node, str]) -> bool:
    for found in (affine(program, source) for source in node.all_input_nodes):
        if found is None:
            continue
        pair = scale_and_shift(program, node, _axis(found, node), found.channels_out)
        if pair is None or pair[0] is not found.node:
            continue
        reason = shared(found, readers) or (
            None if only_user(found.node) is node else f"the result of {found.node.name} is used twice"
        )
        if reason is None:
            matrix, bias = scaled_output(program, found, *pair[1:])
            if representable(matrix, bias, found.node.meta["val"].dtype):
                store(program, found, matrix, bias)
                replace(program, node, found.node)
                return True
            reason = f"the weights of {found.node.name} would not be finite"
        reasons[node] = reason
    return False


def _into_after(program: Program, node: fx.Node, readers: Readers, reasons: dict[fx.Node, str]) -> bool:
    layers = [affine(program, user) for user in node.users]
    found = [a for a in layers if a is not None and a.source is node]
    if not found or len(found) != len(layers):
        return False
    pair = scale_and_shift(program, node, _axis(found[0], node), found[0].channels_in)
    if pair is None or len({_axis(a, node) for a in found}) != 1:
        return False
    changed = _scale_inputs(program, found, pair[1:], readers)
    if isinstance(changed, str):
        reasons[node] = changed
        return False
    replace(program, node, pair[0])
    return True


def _scale_inputs(program: Program, found: list[Affine], pair: tuple[Tensor, Tensor], readers: Readers) -> str | None:
    """Fold a scale and shift of their common input into every layer, or into none and say why."""
    changes = []
    for each in found:
        if reason := shared(each, readers):
            return reason
        if each.pads and bool(pair[1].any()):
            return f"{each.node.name} pads its input with zeros"
        matrix, bias = scaled_input(program, each, *pair)
        if not representable(matrix, bias, each.node.meta["val"].dtype):
            return f"the weights of {each.node.name} would not be finite"
        changes.append((each, matrix, bias))
    for each, matrix, bias in changes:
        store(program, each, matrix, bias)
    return None


def _layer_norm(program: Program, node: fx.Node, readers: Readers, reasons: dict[fx.Node, str]) -> bool:
    gamma, beta = (weight(program, argument(node, n)) for n in ("weight", "bias"))
    layers = [affine(program, user) for user in node.users]
    found = [a for a in layers if a is not None and a.source is node and not a.spatial]
    if gamma is None or gamma.dim() != 1 or not found or len(found) != len(layers):
        return False
    scale = gamma.detach().double()
    shift = torch.zeros_like(scale) if beta is None else beta.detach().double()
    if reason := _scale_inputs(program, found, (scale, shift), readers):
        reasons[node] = reason
        return False
    bare = (node.args[0], argument(node, "normalized_shape"), None, None, argument(node, "eps"), False)
    replace(program, node, call(program, aten.layer_norm.default, bare, node))
    return True


def _axis(found: Affine, node: fx.Node) -> int:
    return 1 if found.spatial else len(shape(node) or ()) - 1
