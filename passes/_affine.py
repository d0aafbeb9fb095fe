"""Convolutions, transposed convolutions and linear layers with constant weights, as one kind: y = W x + b."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgecompile.program import Program
from edgecompile.rewrite import add_weight, argument, layer, set_weight, shape, weight

aten = torch.ops.aten

CONV = {
    aten.conv1d.default: 1,
    aten.conv2d.default: 2,
    aten.conv3d.default: 3,
}
TRANSPOSED = {
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.conv_transpose3d.input: 3,
}
Readers = Mapping[str, Sequence[fx.Node]]


@dataclass(frozen=True)
class Affine:
    """One such layer.

    Weights are `[out, in / groups, *kernel]`, for a transposed convolution `[in, out / groups, *kernel]`.
    `spatial` counts the spatial axes: 0 for a linear layer, whose channels are the last axis; else channels
    are axis 1.
    """

    node: fx.Node
    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    spatial: int
    transposed: bool

    @property
    def channel_axis(self) -> int:
        return 1 if self.spatial else -1

    @property
    def groups(self) -> int:
        return int(argument(self.node, "groups")) if self.spatial else 1

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(int(k) for k in (shape(self.weight) or ())[2:])

    @property
    def channels_out(self) -> int:
        first, second = (int(s) for s in (shape(self.weight) or ())[:2])
        return second * self.groups if self.transposed else first

    @property
    def channels_in(self) -> int:
        first, second = (int(s) for s in (shape(self.weight) or ())[:2])
        return first if self.transposed else second * self.groups

    def ints(self, name: str) -> tuple[int, ...]:
        """`stride`, `dilation` or `output_padding`, one number a spatial axis."""
        values = [int(v) for v in argument(self.node, name)]
        return tuple(values * self.spatial if len(values) == 1 else values)

    @property
    def padding(self) -> tuple[int, ...]:
        """Zeros on both sides of each spatial axis."""
        return self.ints("padding") if self.spatial else ()

    @property
    def pads(self) -> bool:
        """Whether zeros are read at the borders, where a shift of the input would not be seen."""
        return self.transposed or any(self.padding)

    @property
    def pointwise(self) -> bool:
        """A linear layer, or a 1x1 convolution that mixes all channels at each place and moves nothing."""
        if not self.spatial:
            return True
        ones = (1,) * self.spatial
        plain = not self.transposed and self.groups == 1 and not self.pads
        return plain and self.kernel == ones and self.ints("stride") == ones

    def matrix(self, program: Program) -> Tensor:
        """The weight in float64."""
        value = weight(program, self.weight)
        assert value is not None
        return value.detach().double()

    def shift(self, program: Program) -> Tensor:
        """The bias in float64, zeros when there is none."""
        value = weight(program, self.bias)
        return torch.zeros(self.channels_out, dtype=torch.float64) if value is None else value.detach().double()


def affine(program: Program, node: Any) -> Affine | None:
    """The layer that a node is; None for any other node and for weights that are computed or not floats."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if node.target is aten.linear.default:
        spatial, transposed = 0, False
    elif node.target in CONV:
        spatial, transposed = CONV[node.target], False
    elif node.target in TRANSPOSED:
        spatial, transposed = TRANSPOSED[node.target], True
    else:
        return None
    if any(name in node.kwargs for name in ("input", "weight", "bias")):
        return None
    source, matrix, bias = argument(node, "input"), argument(node, "weight"), argument(node, "bias")
    value = weight(program, matrix)
    if value is None or not value.is_floating_point() or (bias is not None and weight(program, bias) is None):
        return None
    sizes = shape(source)
    if sizes is None or value.dim() != (spatial + 2) or (spatial and len(sizes) != spatial + 2):
        return None  # an input without a batch axis has its channels elsewhere
    return Affine(node, source, matrix, bias, spatial, transposed)


def shared(found: Affine, readers: Readers) -> str | None:
    """Why the layer's weights may not be changed: someone else reads them too. None when they may."""
    for part in (found.weight, found.bias):
        others = [n for n in readers.get(str(part.target), ()) if n is not found.node] if part is not None else []
        if others:
            return f"{part and part.target} is shared with {others[0].name}"
    return None


def scaled_output(program: Program, found: Affine, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of `scale * (W x + b) + shift`; `scale` and `shift` are float64 `[channels_out]`."""
    matrix = found.matrix(program)
    if found.transposed:
        split = matrix.reshape(found.groups, -1, *matrix.shape[1:])
        by_group = scale.reshape(found.groups, 1, -1, *(1,) * found.spatial)
        matrix = (split * by_group).flatten(0, 1)
    else:
        matrix = matrix * scale.reshape(-1, *(1,) * (matrix.dim() - 1))
    return matrix, found.shift(program) * scale + shift


def scaled_input(program: Program, found: Affine, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of `W (scale * x + shift) + b`, exact with a shift only where `found.pads` is false."""
    matrix, groups = found.matrix(program), found.groups
    if found.transposed:
        return matrix * scale.reshape(-1, *(1,) * (matrix.dim() - 1)), found.shift(program)
    split = matrix.reshape(groups, -1, *matrix.shape[1:])  # [groups, out / groups, in / groups, *kernel]
    ones = (1,) * found.spatial
    added = (split * shift.reshape(groups, 1, -1, *ones)).flatten(2).sum(2).flatten()
    return (split * scale.reshape(groups, 1, -1, *ones)).flatten(0, 1), found.shift(program) + added


def composed(program: Program, first: Affine, second: Affine) -> tuple[Tensor, Tensor]:
    """Weight and bias of `second(first(x))` for a `second` that is pointwise and a `first` with one group."""
    outer = second.matrix(program).flatten(1)  # [out, mid]
    inner = first.matrix(program)
    matrix = (outer @ inner.flatten(1)).reshape(-1, *inner.shape[1:])
    return matrix, outer @ first.shift(program) + second.shift(program)


def representable(matrix: Tensor, bias: Tensor, dtype: torch.dtype) -> bool:
    """Whether new float64 weights are finite once stored as `dtype`."""
    return bool(matrix.to(dtype).isfinite().all()) and bool(bias.to(dtype).isfinite().all())


def store(program: Program, found: Affine, matrix: Tensor, bias: Tensor, origin: str | None = None) -> None:
    """Write float64 weights back in the layer's dtype and names; `origin` is the teacher's, of a new bias."""
    dtype = found.node.meta["val"].dtype
    set_weight(program, found.weight, nn.Parameter(matrix.to(dtype)))
    if found.bias is not None:
        set_weight(program, found.bias, nn.Parameter(bias.to(dtype)))
    elif bool(bias.any()):
        owner = str(found.weight.target)
        name = owner.removesuffix("weight") + "bias" if owner.endswith("weight") else f"{owner}_bias"
        added = add_weight(program, name, nn.Parameter(bias.to(dtype)), found.node, origin)
        args = list(found.node.args)
        found.node.args = (*args[:2], added, *args[3:])


def title(node: fx.Node) -> str:
    """How a note names a node: `conv2d_1 (layer2.conv1)`."""
    return f"{node.name} ({layer(node)})"
