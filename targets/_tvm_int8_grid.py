"""Integers of tensors: their grids, and what a layer or a sum of them computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import fx

_STEP_BITS = 24
"""Bits of an integer that a float32 holds exactly."""


@dataclass(frozen=True)
class Grid:
    """The integers of a tensor: `value = scale * (integer - zero)`, from `low` to `high`."""

    scale: float
    zero: int
    low: int
    high: int

    def within(self, low: float, high: float) -> Grid:
        """With its ends moved to where a clamp ends; clamping integers is the same as clamping before rounding."""
        least = self.low if low == -math.inf else self._at(low)
        most = self.high if high == math.inf else self._at(high)
        return replace(self, low=max(self.low, min(least, self.high)), high=min(self.high, max(most, self.low)))

    def _at(self, bound: float) -> int:
        return int(np.clip(np.rint(bound / self.scale), -(2**30), 2**30)) + self.zero


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer in integers, `scales` a column those of input times weight; it ends in `end`."""

    source: fx.Node
    grid: Grid
    weight: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]
    end: fx.Node | None
    out: Grid | None

    def requantization(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], bool]:
        """What is added to the sums of `integer * weight`, the float32 multipliers, and whether float32 is exact.

        It is where a sum has no more than 24 bits, or where one that has more is outside of the result's range anyway.
        """
        assert self.out is not None
        flat = np.abs(self.weight.reshape(len(self.weight), -1).astype(np.int64)).sum(1)
        multipliers = np.asarray(self.scales / self.out.scale, np.float32)
        steps = np.where(flat > 0, self.bias / self.scales, self.bias / self.out.scale)
        multipliers = np.where(flat > 0, multipliers, np.float32(1))  # a channel without weights is its bias
        steps = np.clip(np.rint(steps), -(2**30), 2**30).astype(np.int64)
        largest = 255 * flat + np.abs(steps)
        exact = bool(np.all((largest <= 2**_STEP_BITS) | (multipliers * 2.0**_STEP_BITS >= 1024)))
        return (steps + self.offset()).astype(np.int32), multipliers, exact

    def offset(self) -> np.ndarray[Any, Any]:
        """What the zero point of the input takes off each sum."""
        sums: np.ndarray[Any, Any] = self.weight.reshape(len(self.weight), -1).astype(np.int64).sum(1)
        return -self.grid.zero * sums


@dataclass(frozen=True)
class Sum:
    """An addition of two integer tensors with fixed-point multipliers of so many bits behind the point."""

    sources: tuple[fx.Node, fx.Node]
    factors: tuple[int, int]
    offset: int
    bits: int
    out: Grid
