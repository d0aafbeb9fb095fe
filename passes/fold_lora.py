"""fold_lora: low-rank adapters become part of the weights that they adapt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._affine import Affine, Readers, affine, composed, representable, shared, store, title
from edgecompile.passes.fold_scale import SCALES, scale_and_shift
from edgecompile.program import Program
from edgecompile.rewrite import nodes, only_user, replace, shape, weight_readers

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldLora(Pass):
    """Fold low-rank adapters: W x + s B (A x) becomes (W + s B A) x.

    before:
        %linear = linear(%x, base.weight, base.bias)
        %linear_1 = linear(%x, a.weight: float32[4, 64], None)
        %linear_2 = linear(%linear_1, b.weight: float32[64, 4], None)
        %mul = mul.Tensor(%linear_2, 2.0)
        %add = add.Tensor(%linear, %mul)
    after:
        %linear = linear(%x, base.weight, base.bias)

    Linear layers, and convolutions with a pointwise second (Hu et al., LoRA, 2021). Run `remove_identity`
    first: it takes the adapter's dropout away. Biases are allowed, and the scale may be one number or one a
    channel.

    Kept, with a note: weights that other layers read too, results that are used twice, geometries that
    differ, weights that would no longer be finite.
    """

    name: ClassVar[str] = "fold_lora"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        readers = weight_readers(program)
        for node in nodes(program, aten.add.Tensor):
            if node.kwargs.get("alpha", 1) != 1:
                continue
            for base, delta in (node.args[:2], node.args[1::-1]):
                reason = _fold(program, node, base, delta, readers)
                if reason is None:
                    ctx.count("folded")
                    break
                if reason:
                    ctx.note(f"{title(node)} kept: {reason}")
        return program


def _fold(program: Program, node: fx.Node, base_node: Any, delta: Any, readers: Readers) -> str | None:
    """Fold one adapter: None when done, a reason, or an empty text where there is no adapter."""
    base = affine(program, base_node)
    if base is None:
        return ""
    scale = torch.ones(base.channels_out, dtype=torch.float64)
    shift = torch.zeros_like(scale)
    inner: list[fx.Node] = []
    while isinstance(delta, fx.Node) and delta.target in SCALES:
        axis = 1 if base.spatial else len(shape(delta) or ()) - 1
        if (step := scale_and_shift(program, delta, axis, base.channels_out)) is None:
            return ""
        scale, shift = scale * step[1], scale * step[2] + shift
        inner.append(delta)
        delta = step[0]
    up = affine(program, delta)
    down = affine(program, up.source) if up is not None else None
    if up is None or down is None or down.source is not base.source or not up.pointwise or up.node is base.node:
        return ""
    if reason := _differs(base, down, up):
        return reason
    for each in (base.node, down.node, up.node, *inner):
        if only_user(each) is None:
            return f"the result of {each.name} is used twice"
    if reason := shared(base, readers):
        return reason
    matrix, bias = composed(program, down, up)
    matrix = base.matrix(program) + matrix * scale.reshape(-1, *(1,) * (matrix.dim() - 1))
    bias = base.shift(program) + bias * scale + shift
    if not representable(matrix, bias, node.meta["val"].dtype):
        return f"the weights of {base.node.name} would not be finite"
    store(program, base, matrix, bias)
    # the base may stand after the adapter's nodes, but always before the sum
    replace(program, node, base.node)
    return None


def _differs(base: Affine, down: Affine, up: Affine) -> str | None:
    if base.transposed or down.transposed or down.spatial != base.spatial or up.spatial != base.spatial:
        return f"{down.node.name} and {base.node.name} are different operators"
    if base.groups != 1 or down.groups != 1:
        return f"{base.node.name} or {down.node.name} has groups"
    if up.channels_out != base.channels_out:
        return f"{up.node.name} and {base.node.name} have different channels"
    if base.spatial:
        same = base.kernel == down.kernel and base.padding == down.padding
        if not same or any(base.ints(n) != down.ints(n) for n in ("stride", "dilation")):
            return f"{down.node.name} has another kernel, stride, padding or dilation than {base.node.name}"
    return None
