"""Weights that a program keeps compressed, found in its graph: integers with scales, palettes, many zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, fx

from edgecompile.program import Program
from edgecompile.rewrite import argument, layer, weight

aten = torch.ops.aten
Q = torch.ops.quantized_decomposed
_RESHAPES = (aten.reshape.default, aten.view.default)


@dataclass(frozen=True)
class Integers:
    """`scale * (data - zero)`: all of one rank, `data.shape[i] / scale.shape[i]` numbers share a scale along axis i."""

    node: fx.Node
    data: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    grouped: bool
    """Whether scales are shared by less than a channel."""


@dataclass(frozen=True)
class Palette:
    """`lut[..., indices]`: the table has one axis more than the indices; its first axis may count groups of rows."""

    node: fx.Node
    indices: Tensor
    lut: Tensor

    @property
    def bits(self) -> int:
        """How many bits an index takes."""
        return max(int(self.lut.shape[-1] - 1).bit_length(), 1)

    @property
    def rows(self) -> int:
        """Into how many groups of rows the indices are cut, each with a table of its own."""
        return int(self.lut.shape[0])


def compressed(program: Program) -> list[Integers | Palette]:
    """Every compressed weight of a program, in graph order.

    Integers are `dequantize_per_channel(data, scale, zero, axis, ...)` or, in groups along a row,
    `reshape(dequantize_per_channel_group(data, scale, zero, ..., group), shape)`; a palette is
    `index(lut, [to(indices)])` or, with one table a group of rows, `index(lut, [row, to(indices)])`.
    """
    found: list[Integers | Palette] = []
    for node in program.graph.graph.nodes:
        if node.op != "call_function":
            continue
        one = _channels(program, node) or _groups(program, node) or _palette(program, node)
        if one is not None:
            found.append(one)
    return found


def title(found: Integers | Palette) -> str:
    """The layers that read the weight, for a reason."""
    names = list(dict.fromkeys(layer(user) for user in found.node.users))
    return ", ".join(names) or found.node.name


def _channels(program: Program, node: fx.Node) -> Integers | None:
    if node.target is not Q.dequantize_per_channel.default:
        return None
    data, scale, zero = (weight(program, a) for a in node.args[:3])
    if data is None or scale is None or data.dtype != torch.int8 or not isinstance(node.args[3], int):
        return None
    shape = [1] * data.dim()
    shape[node.args[3]] = -1
    return Integers(
        node, data, scale.float().reshape(shape), None if zero is None else _whole(zero, shape), _bits(node, 4), False
    )


def _groups(program: Program, node: fx.Node) -> Integers | None:
    if node.target is not Q.dequantize_per_channel_group.default:
        return None
    data, scale, zero = (weight(program, a) for a in node.args[:3])
    if data is None or scale is None or data.dim() != 2:
        return None
    count = scale.numel() // data.shape[0]
    users = list(node.users)
    last, sizes = node, list(data.shape)
    if len(users) == 1 and users[0].target in _RESHAPES:
        wanted = [int(n) for n in users[0].meta["val"].shape]
        if len(wanted) >= 2 and wanted[0] == sizes[0] and wanted[1] % count == 0:
            last, sizes = users[0], wanted
    shape = [sizes[0], count, *[1] * (len(sizes) - 2)]
    zeros = None if zero is None else _whole(zero, shape)
    return Integers(last, data.reshape(sizes), scale.float().reshape(shape), zeros, _bits(node, 3), True)


def _whole(zero: Tensor, shape: Sequence[int]) -> Tensor | None:
    """The zero points, None where all are 0."""
    return zero.to(torch.int32).reshape(tuple(shape)) if bool(zero.any()) else None


def _bits(node: fx.Node, first: int) -> int:
    low, high = node.args[first : first + 2]
    assert isinstance(low, int)
    assert isinstance(high, int)
    return 4 if high - low <= 15 else 8


def _palette(program: Program, node: fx.Node) -> Palette | None:
    if node.target is not aten.index.Tensor:
        return None
    lut, given = weight(program, node.args[0]), node.args[1]
    if lut is None or not lut.is_floating_point() or not isinstance(given, (list, tuple)) or lut.dim() != len(given):
        return None
    indices = _bytes(program, given[-1])
    if indices is None or not indices.dim() or not 2 <= lut.shape[-1] <= 256:
        return None
    if len(given) == 1:
        return Palette(node, indices, lut.reshape(*[1] * indices.dim(), -1))
    rows = weight(program, given[0])
    if len(given) != 2 or rows is None or not _even(rows, indices, int(lut.shape[0])):
        return None
    return Palette(node, indices, lut.reshape(lut.shape[0], *[1] * (indices.dim() - 1), -1))


def _bytes(program: Program, node: Any) -> Tensor | None:
    """The stored bytes behind the cast to whole indices."""
    if not isinstance(node, fx.Node) or node.target not in (aten.to.dtype, aten._to_copy.default):
        return None
    stored = weight(program, argument(node, "self"))
    return stored if stored is not None and stored.dtype == torch.uint8 else None


def _even(rows: Tensor, indices: Tensor, count: int) -> bool:
    """Whether the row numbers cut the first axis into equal groups."""
    size = int(indices.shape[0])
    if size % count or rows.numel() != size or rows.shape[0] != size or rows.dim() != indices.dim():
        return False
    return torch.equal(rows.reshape(-1), torch.arange(size, device=rows.device) // (size // count))
