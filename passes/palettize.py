"""palettize: weights as indices into a table of 2 to 256 numbers; needs no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, fx

from edgecompile.errors import PassError
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._cluster import Array, nearest, palette_of
from edgecompile.passes._compact import Matrix, matrices, palette, substitute
from edgecompile.program import Program


@dataclass(frozen=True)
class Palettize(Pass):
    """Let the weights of layers and embeddings take `2**bits` values only, and store which.

    before:
        %y = conv2d(%x, w: float32[16, 64, 3, 3])
    after:
        %v = index(w_lut: float32[16], [to(w_indices: uint8[16, 64, 3, 3], int64)])
        %y = conv2d(%x, %v)

    The values are those with the smallest squared error (clustering in one dimension), rounded to half precision,
    which every runtime holds as they are. `group` output channels share a table (`group=0`: all do). Where half of
    the weights or more are zeros (pruned), zero is one of the values, and zeros stay zeros. Weights of fewer than
    `smallest` numbers stay float, and layers that match a glob in `keep_float`.

    Refuses: bits outside 1..8, a group below 0, a glob that matches nothing, a program without a weight to compress.
    """

    name: ClassVar[str] = "palettize"

    bits: int = 4
    group: int = 0
    smallest: int = 1024
    keep_float: tuple[str, ...] = ()

    def run(self, program: Program, ctx: Context) -> Program:
        """The program with its weights in palettes; see the class."""
        if not 1 <= self.bits <= 8 or self.group < 0:
            raise PassError(f"palettize: bits={self.bits}, group={self.group}: bits are 1 to 8, a group is 0 or more")
        for matrix in list(matrices(program, self.keep_float, self.smallest, ctx, "palettize")):
            rows = int(matrix.value.shape[0])
            cut = self.group and rows % self.group == 0 and matrix.axis == 0
            if self.group and not cut:
                ctx.count("one_table")
            pieces = np.split(matrix.value.numpy(), rows // self.group if cut else 1)
            tables = [table(piece, 2**self.bits) for piece in pieces]
            indices = np.concatenate([nearest(p, t) for p, t in zip(pieces, tables, strict=True)])
            lut = np.stack([np.pad(t, (0, 2**self.bits - len(t)), mode="edge") for t in tables])
            stored = torch.from_numpy(lut.astype(np.float32)), torch.from_numpy(indices.astype(np.uint8))
            ctx.count("compressed")

            def make(like: fx.Node, matrix: Matrix = matrix, stored: tuple[Tensor, Tensor] = stored) -> fx.Node:
                lut, indices = stored
                return palette(program, matrix, indices, lut if lut.shape[0] > 1 else lut[0], like)

            substitute(program, matrix, make)
        if not ctx.stats.get("compressed"):
            raise PassError(
                f"palettize: no weight of {self.smallest} numbers or more is left to compress: smallest=..."
            )
        return program


def table(values: Array, count: int) -> Array:
    """The values of one palette, ascending; zero among them where half of the weights are zero."""
    values = values.reshape(-1)
    kept = values[values != 0]
    if 2 * kept.size > values.size or not kept.size:
        return _half(palette_of(values, count))
    return np.unique(np.append(_half(palette_of(kept, count - 1)), 0.0))


def _half(found: Array) -> Array:
    """The numbers in half precision, each once."""
    return np.unique(np.clip(found, -65504, 65504).astype(np.float16).astype(np.float64))
