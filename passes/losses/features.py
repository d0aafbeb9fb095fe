"""Losses of values between layers, where teacher and student have the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgecompile.passes.losses._loss import Paired, mean


@dataclass(frozen=True)
class Mse(Paired):
    """The squared difference in parts of the teacher's mean square: scaling both changes nothing."""

    name: ClassVar[str] = "mse"
    sees: ClassVar = "features"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """From tensors of one shape, [batch, ...]."""
        return mean((student - teacher) ** 2, mask) / mean(teacher**2, mask).clamp(min=1e-12)


@dataclass(frozen=True)
class L1(Paired):
    """The difference in parts of the teacher's mean size: scaling both changes nothing."""

    name: ClassVar[str] = "l1"
    sees: ClassVar = "features"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """From tensors of one shape, [batch, ...]."""
        return mean((student - teacher).abs(), mask) / mean(teacher.abs(), mask).clamp(min=1e-12)


@dataclass(frozen=True)
class Cosine(Paired):
    """One less the cosine along the channels at each position: the scale of either changes nothing."""

    name: ClassVar[str] = "cosine"
    sees: ClassVar = "features"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """From maps [batch, channels, ...], tokens [batch, positions, channels] or vectors [batch, channels]."""
        axis = 2 if student.dim() == 3 else 1
        dot = (student * teacher).sum(axis)
        size = (student.norm(dim=axis) * teacher.norm(dim=axis)).clamp(min=1e-12)
        return mean(1 - dot / size, mask)


@dataclass(frozen=True)
class Energy(Paired):
    """Where the activity is: the mean square over channels at each position, of length one over positions.

    Attention transfer (Zagoruyko and Komodakis, 2017). Scale and number of channels change nothing.
    """

    name: ClassVar[str] = "energy"
    sees: ClassVar = "features"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """From maps [batch, channels, ...] or tokens [batch, positions, channels]."""
        axis = 2 if student.dim() == 3 else 1
        found = []
        for value in (student, teacher):
            map_ = value.pow(2).mean(axis).flatten(1)
            map_ = map_ if mask is None else map_ * mask
            found.append(map_ / map_.norm(dim=1, keepdim=True).clamp(min=1e-12))
        distance: Tensor = (found[0] - found[1]).pow(2).sum(1).mean()
        return distance
