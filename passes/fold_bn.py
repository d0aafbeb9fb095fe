"""fold_bn: batch norms in inference mode become part of the convolution or linear layer beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
from edgecompile.rewrite import argument, nodes, only_user, replace, shape, weight, weight_readers

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldBn(Pass):
    """Fold batch norms into the convolution, transposed convolution or linear layer before or after them.

    before:
        %conv2d = conv2d(%x, c.weight, None, [1, 1], [1, 1])
        %batch_norm = batch_norm(%conv2d, b.weight, b.bias, b.running_mean, b.running_var, False, ...)
    after:
        %conv2d = conv2d(%x, c.weight, c.bias, [1, 1], [1, 1])

    With g = weight / sqrt(var + eps), the layer before gets W g and (b - mean) g + bias; the layers after get
    their input channels scaled by g, and what the shift adds goes into their biases. Computed in float64.

    Kept, with a note: statistics of the batch (training mode), weights that other layers read too, a result
    of the layer before that is used twice, a layer after that pads with zeros (it would pad with the shift
    instead), a batch norm with neither neighbour, weights that would no longer be finite.
    """

    name: ClassVar[str] = "fold_bn"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        readers = weight_readers(program)
        for norm in nodes(program, aten.batch_norm.default):
            reason = _fold(program, norm, readers)
            if reason is None:
                ctx.count("folded")
            else:
                ctx.note(f"{title(norm)} kept: {reason}")
        return program


def scale_and_shift(program: Program, norm: fx.Node) -> tuple[Tensor, Tensor] | None:
    """A batch norm as float64 `scale`, `shift` `[channels]`; None when it takes the batch's statistics."""
    mean, var = (weight(program, argument(norm, n)) for n in ("running_mean", "running_var"))
    if argument(norm, "training") is not False or mean is None or var is None:
        return None
    gamma, beta = (weight(program, argument(norm, n)) for n in ("weight", "bias"))
    scale = (var.detach().double() + float(argument(norm, "eps"))).rsqrt()
    scale = scale if gamma is None else scale * gamma.detach().double()
    shift = -mean.detach().double() * scale
    return scale, shift if beta is None else shift + beta.detach().double()


def _fold(program: Program, norm: fx.Node, readers: Readers) -> str | None:
    """Fold one batch norm, or say why not."""
    pair = scale_and_shift(program, norm)
    if pair is None:
        return "it takes its statistics from the batch"
    if (beta := argument(norm, "bias")) is not None:
        origin = program.origin.get(str(beta.target))
    else:
        origin = None
    before = affine(program, source := argument(norm, "input"))
    if before is not None:
        reason = _into_before(program, norm, before, pair, readers, origin)
        if reason is None:
            replace(program, norm, source)
            return None
    else:
        reason = "no convolution or linear layer beside it"
    after = _into_after(program, norm, pair, readers)
    if after is None:
        replace(program, norm, source)
        return None
    return after or reason


def _into_before(
    program: Program,
    norm: fx.Node,
    found: Affine,
    pair: tuple[Tensor, Tensor],
    readers: Readers,
    origin: str | None,
) -> str | None:
    if not found.spatial and len(shape(norm) or ()) != 2:
        return f"its channels are not the last axis of {found.node.name}"
    if only_user(found.node) is not norm:
        return f"the result of {found.node.name} is used twice"
    if reason := shared(found, readers):
        return reason
    matrix, bias = scaled_output(program, found, *pair)
    if not representable(matrix, bias, found.node.meta["val"].dtype):
        return f"the weights of {found.node.name} would not be finite"
    store(program, found, matrix, bias, origin)
    return None


def _into_after(program: Program, norm: fx.Node, pair: tuple[Tensor, Tensor], readers: Readers) -> str | None:
    """Fold into every reader; None when done, an empty text when there is no layer after it at all."""
    layers = [affine(program, user) for user in norm.users]
    found = [a for a in layers if a is not None and a.source is norm]
    if not found or len(found) != len(layers):
        return ""
    changes = []
    for each in found:
        if not each.spatial and len(shape(norm) or ()) != 2:
            return f"its channels are not the last axis of {each.node.name}'s input"
        if each.pads and bool(pair[1].any()):
            return f"{each.node.name} pads its input with zeros"
        if reason := shared(each, readers):
            return reason
        matrix, bias = scaled_input(program, each, *pair)
        if not representable(matrix, bias, each.node.meta["val"].dtype):
            return f"the weights of {each.node.name} would not be finite"
        changes.append((each, matrix, bias))
    for each, matrix, bias in changes:
        store(program, each, matrix, bias)
    return None
