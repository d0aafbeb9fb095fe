"""compress_weights: weights in 8 or 4 bits beside scales, activations as they are; needs no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx

from edgecompile.errors import PassError
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._compact import Matrix, integers, matrices, substitute
from edgecompile.program import Program

_TINY = 2.0**-14
"""The smallest scale: the smallest half-precision number that is written in full."""
_SHRINKS = 16


@dataclass(frozen=True)
class CompressWeights(Pass):
    """Store the weights of layers and embeddings as integers with scales, and compute in floats.

    before:
        %y = conv2d(%x, w: float32[16, 64, 3, 3])
    after:
        %f = dequantize_per_channel_group(w_data: int8[16, 576], w_scale: float32[16, 2], w_zero, -7, 7, int8, 288)
        %y = conv2d(%x, reshape(%f, [16, 64, 3, 3]))

    `group` input channels of an output channel share a scale (`group=0`: all of them do, `dequantize_per_channel`);
    layers whose channels are no multiple of it have one scale an output channel. `symmetric` has no zero points, so
    that zeros stay zeros. Scales are half-precision numbers, which every runtime holds as they are, and are chosen
    among a few for the smallest squared error. Weights of fewer than `smallest` numbers stay float, and layers that
    match a glob in `keep_float`.

    Refuses: a group below 0, a glob that matches nothing, a program without a weight to compress.
    """

    name: ClassVar[str] = "compress_weights"

    dtype: Literal["int8", "int4"] = "int8"
    group: int = 0
    symmetric: bool = True
    smallest: int = 1024
    keep_float: tuple[str, ...] = ()

    def run(self, program: Program, ctx: Context) -> Program:
        """The program with its weights compressed; see the class."""
        if self.group < 0 or self.group == 1:
            raise PassError(f"compress_weights: group={self.group}: give 2 or more input channels, or 0 for all")
        for matrix in list(matrices(program, self.keep_float, self.smallest, ctx, "compress_weights")):
            count = self._groups(matrix)
            if self.group and count * self.group != int(matrix.value.shape[1]):
                ctx.count("one_scale_a_channel")
            by_row = matrix.value.movedim(matrix.axis, 0)
            rows = by_row.reshape(by_row.shape[0], count, -1)
            low, high = self._limits()
            scale, zero = affine(rows, low, high, self.symmetric)
            data = rounded(rows, scale, zero, low, high).to(torch.int8)
            ctx.count("compressed")
            if count == 1:
                whole = data.reshape(by_row.shape).movedim(0, matrix.axis)
                parts = whole, scale.reshape(-1), zero.reshape(-1)
            else:
                parts = data.flatten(1), scale.reshape(-1, count), zero.reshape(-1, count)

            def make(like: fx.Node, matrix: Matrix = matrix, parts: tuple[Tensor, Tensor, Tensor] = parts) -> fx.Node:
                return integers(program, matrix, *parts, self._limits(), like)

            substitute(program, matrix, make)
        if not ctx.stats.get("compressed"):
            raise PassError(
                f"compress_weights: no weight of {self.smallest} numbers or more is left to compress: smallest=..."
            )
        return program

    def _limits(self) -> tuple[int, int]:
        high = 127 if self.dtype == "int8" else 7
        return (-high, high) if self.symmetric else (-high - 1, high)

    def _groups(self, matrix: Matrix) -> int:
        """How many groups a row is cut into."""
        channels = int(matrix.value.shape[1])
        cut = self.group and matrix.axis == 0 and channels % self.group == 0
        return channels // self.group if cut else 1


def affine(rows: Tensor, low: int, high: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scales and zero points over the last axis, which is kept with size 1.

    The whole range is tried and 15 narrower ones, and the one with the smallest squared error is taken.
    """
    least = rows.amin(-1, keepdim=True).clamp(max=0)
    most = rows.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        most = torch.maximum(most, -least)
        least = -most
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for step in range(_SHRINKS):
        part = 1 - 0.5 * step / _SHRINKS
        scale = _half(part * (most - least) / (high - low))
        zero = torch.zeros_like(scale) if symmetric else (low - part * least / scale).round().clamp(low, high)
        error = ((rounded(rows, scale, zero, low, high) - zero) * scale - rows).square().sum(-1, keepdim=True)
        if best is None:
            best = scale, zero, error
        else:
            better = error < best[2]
            best = (
                torch.where(better, scale, best[0]),
                torch.where(better, zero, best[1]),
                torch.where(better, error, best[2]),
            )
    assert best is not None
    return best[0], best[1].to(torch.int32)


def rounded(rows: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """The integers, as floats."""
    return ((rows / scale).round() + zero).clamp(low, high)


def _half(scale: Tensor) -> Tensor:
    """The nearest half-precision number from `_TINY` up; 1 for nothing but zeros."""
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale.clamp(_TINY, 65504).half().float()
