"""Losses of relations: between the samples of a batch, between positions, and between two layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompile.passes.losses._loss import Loss, Paired

_PLACES = 14
"""Maps are averaged down to this many places a side before all their pairs are compared."""


@dataclass(frozen=True)
class Samples(Paired):
    """Which samples of a batch are alike: the table of their products, each row of length one.

    Similarity preserving (Tung and Mori, 2019). Rotating channels and their number change nothing.
    """

    name: ClassVar[str] = "samples"
    sees: ClassVar = "features"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """From values [batch, ...]."""
        tables = []
        for value in (student, teacher):
            flat = (value if mask is None else value * mask[..., None]).flatten(1)
            tables.append(F.normalize(flat @ flat.T, dim=1))
        return (tables[0] - tables[1]).pow(2).sum(1).mean()


@dataclass(frozen=True)
class Positions(Paired):
    """Which positions of a sample are alike: the cosines of all pairs (spatial correlation)."""

    name: ClassVar[str] = "positions"
    sees: ClassVar = "features"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """From maps [batch, channels, height, width] or tokens [batch, positions, channels]; 0 for vectors."""
        if student.dim() < 3:
            return (student * 0).sum()
        tables = []
        for value in (student, teacher):
            tokens = F.normalize(_tokens(value), dim=2)
            tables.append(tokens @ tokens.transpose(1, 2))
        difference = (tables[0] - tables[1]).pow(2)
        if mask is None:
            return difference.mean()
        both = mask[:, :, None] * mask[:, None, :]
        return (difference * both).sum() / both.sum().clamp(min=1)


@dataclass(frozen=True)
class Flow(Loss):
    """How one layer's channels go with the next one's: their products, summed over positions.

    Flow of the solution procedure (Yim et al., 2017), in parts of the teacher's mean square.
    """

    name: ClassVar[str] = "flow"
    sees: ClassVar = "features"

    def of(self, student: Sequence[Tensor], teacher: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
        """From values of layers one behind the other; 0 where there is one alone."""
        found = [(student[0] * 0).sum()]
        for i in range(len(student) - 1):
            one, two = (_flow(side[i], side[i + 1], masks[i]) for side in (student, teacher))
            found.append((one - two).pow(2).mean() / two.pow(2).mean().clamp(min=1e-12))
        return sum(found[1:], found[0]) / max(1, len(found) - 1)


def _flow(first: Tensor, second: Tensor, mask: Tensor | None) -> Tensor:
    """[batch, channels of the first, channels of the second]."""
    if first.dim() == 4 and second.dim() == 4:
        first = F.adaptive_avg_pool2d(first, (second.shape[2], second.shape[3]))
    one, two = _tokens(first), _tokens(second)
    if one.shape[1] != two.shape[1]:
        one, two = one.mean(1, keepdim=True), two.mean(1, keepdim=True)
    elif mask is not None and mask.shape[1] == one.shape[1]:
        return torch.einsum("bpi,bpj,bp->bij", one, two, mask) / mask.sum(1).clamp(min=1)[:, None, None]
    return one.transpose(1, 2) @ two / one.shape[1]


def _tokens(value: Tensor) -> Tensor:
    """[batch, positions, channels]."""
    if value.dim() == 2:
        return value[:, None]
    if value.dim() == 3:
        return value
    if value.dim() == 4 and max(value.shape[2:]) > _PLACES:
        value = F.adaptive_avg_pool2d(value, (min(_PLACES, value.shape[2]), min(_PLACES, value.shape[3])))
    return value.flatten(2).transpose(1, 2)
