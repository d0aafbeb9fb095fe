"""merge_linear: two linear maps in a row become one where that costs less."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._affine import Affine, Readers, affine, composed, representable, shared, store, title
from edgecompile.program import Program
from edgecompile.rewrite import infer, only_user, weight_readers


@dataclass(frozen=True)
class MergeLinear(Pass):
    """Merge a linear layer or 1x1 convolution into the layer that feeds it, where that needs fewer MACs.

    before:
        %linear = linear(%x, a.weight: float32[64, 32], a.bias)
        %linear_1 = linear(%linear, b.weight: float32[16, 64], b.bias)
    after:
        %linear_1 = linear(%x, b.weight: float32[16, 32], b.bias)

    W = W2 W1 and b = W2 b1 + b2, in float64. The first may be a convolution of any kernel, stride and padding
    with one group; the second must be linear or a 1x1 convolution with stride 1, one group and no padding.

    Kept, with a note: a merged layer that needs more MACs or weights (a bottleneck, a low-rank pair), weights
    that other layers read too, weights that would no longer be finite. A first result that is used twice is
    left in silence.
    """

    name: ClassVar[str] = "merge_linear"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        readers = weight_readers(program)
        for node in list(program.graph.graph.nodes):
            second = affine(program, node)
            if second is None or not second.pointwise:
                continue
            first = affine(program, second.source)
            if first is None or only_user(first.node) is not node or not _fits(first, second):
                continue
            if reason := _merge(program, first, second, readers):
                ctx.note(f"{title(second.node)} not merged with {first.node.name}: {reason}")
            else:
                ctx.count("merged")
        return program


def _fits(first: Affine, second: Affine) -> bool:
    return first.spatial == second.spatial and not first.transposed and first.groups == 1


def _merge(program: Program, first: Affine, second: Affine, readers: Readers) -> str | None:
    if reason := shared(first, readers) or shared(second, readers):
        return reason
    kernel = math.prod(first.kernel)
    # at each place of the output: both layers have as many, for the second moves nothing
    apart = kernel * first.channels_in * first.channels_out + second.channels_in * second.channels_out
    merged = kernel * first.channels_in * second.channels_out
    if merged > apart:
        return f"{merged} MACs at each place instead of {apart}"
    matrix, bias = composed(program, first, second)
    if not representable(matrix, bias, second.node.meta["val"].dtype):
        return "the merged weights would not be finite"
    rows = program.kept.get(str(second.weight.target), {}).get(0)
    columns = program.kept.get(str(first.weight.target), {}).get(1)
    store(program, second, matrix, bias, program.origin.get(str(first.bias.target)) if first.bias else None)
    _keep(program, str(second.weight.target), {0: rows, 1: columns})
    _move(first, second)
    return None


def _keep(program: Program, name: str, axes: dict[int, tuple[int, ...] | None]) -> None:
    """The merged weight's rows are the second layer's, its columns the first's."""
    found = {axis: indices for axis, indices in axes.items() if indices is not None}
    kept = program.kept
    if isinstance(kept, dict) and (found or name in kept):
        kept[name] = found


def _move(first: Affine, second: Affine) -> None:
    """Turn the second node into the merged one: the first's geometry, the second's weights and name."""
    node = second.node
    bias = node.args[2] if len(node.args) > 2 else None
    node.target = first.node.target
    node.args = (first.source, second.weight, bias, *first.node.args[3:])
    node.kwargs = dict(first.node.kwargs)
    infer(node)
