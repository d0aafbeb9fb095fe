"""Damped least squares for a layer, from sums over its rows or from the rows themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

DAMPS = (1e-3, 1e-2, 1e-1, 1.0)
"""Of the mean of the diagonal: the least keeps the system from being singular, more is for few samples."""
QUICK = (1e-2,)
"""Where programs are compared."""
_LARGE, _PLENTY = 2000, 8
"""Inputs from which trying these takes long, and rows for each of them from which the least damping serves there."""
_SLOW = 1000
"""Inputs above which every second damping is tried."""
_WIDE = 500
"""Inputs above which a chunk's products are summed in float32, which is faster; chunks are added in float64."""


@dataclass
class Sums:
    """The sums that least squares needs, over some rows: x x' [inputs, inputs], y x' [outputs, inputs], y y'."""

    count: int = 0
    gram: Any = 0.0
    cross: Any = 0.0
    power: float = 0.0

    def add(self, rows: Tensor, wanted: Tensor) -> None:
        """More rows."""
        self.count += len(rows)
        self.gram = self.gram + product(rows, rows)
        self.cross = self.cross + product(wanted, rows)
        self.power += float(wanted.double().pow(2).sum())

    def take(self, other: Any) -> None:
        """The rows of another half."""
        self.count, self.power = self.count + other.count, self.power + other.power
        self.gram, self.cross = self.gram + other.gram, self.cross + other.cross

    def error(self, weights: Tensor) -> float:
        """The squared error of weights over these rows."""
        return float((weights @ self.gram * weights).sum() - 2 * (weights * self.cross).sum()) + self.power

    def solved(self, old: Tensor, damp: float) -> Tensor:
        """The weights with the least error that stay by the old ones, as strongly as the damping says."""
        strength = damp * float(self.gram.diagonal().mean()) + 1e-12
        inner = self.gram + strength * torch.eye(len(self.gram), dtype=self.gram.dtype)
        return definite(inner, (self.cross + strength * old).T).T


@dataclass
class Rows:
    """As `Sums`, of fewer rows than inputs: kept as they are, and solved in matrices of their number."""

    rows: list[Tensor] = field(default_factory=list)
    wanted: list[Tensor] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.rows))

    def add(self, rows: Tensor, wanted: Tensor) -> None:
        """More rows."""
        self.rows.append(rows)
        self.wanted.append(wanted)

    def take(self, other: Any) -> None:
        """The rows of another half."""
        self.rows, self.wanted = self.rows + other.rows, self.wanted + other.wanted

    def error(self, weights: Tensor) -> float:
        """The squared error of weights over these rows."""
        return float(self._missing(weights).pow(2).sum())

    def solved(self, old: Tensor, damp: float) -> Tensor:
        """The same weights: `W + R' (X X' + d I)^-1 X`, R being what the old ones miss."""
        rows = torch.cat(self.rows).double()
        inner = rows @ rows.T
        strength = damp * float(inner.trace()) / rows.shape[1] + 1e-12
        inner.diagonal().add_(strength)
        return old + definite(inner, self._missing(old)).T @ rows

    def _missing(self, weights: Tensor) -> Tensor:
        return torch.cat(self.wanted).double() - torch.cat(self.rows).double() @ weights.T


def product(left: Tensor, right: Tensor) -> Tensor:
    """The sum over rows of l r' [lefts, rights], float64; the products of wide rows are summed in float32 before."""
    if right.shape[1] <= _WIDE:
        left, right = left.double(), right.double()
    return (left.T @ right).double()


def ridge(halves: Sequence[Sums | Rows], old: Tensor, damps: Sequence[float] = DAMPS) -> Tensor:
    """The weights by all rows, damped as serves one half of the samples best when they are solved from the other.

    The first half holds all of them afterwards.
    """
    one, two = halves
    count = one.count + two.count
    large = len(old[0]) > _LARGE and count >= _PLENTY * len(old[0])
    damp = damps[0]
    if min(one.count, two.count) >= 1 and not large and len(damps) > 1:
        damps = damps[::2] if len(old[0]) > _SLOW else damps
        errors = [two.error(one.solved(old, damp)) for damp in damps]
        if two.error(old) <= min(errors):
            return old
        damp = damps[int(np.argmin(errors))]
    one.take(two)
    return one.solved(old, damp)


def definite(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution x of `matrix x = right`, of a matrix that is positive definite but for rounding."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.solve(matrix, right) if bool(failed) else torch.cholesky_solve(right, factor)
