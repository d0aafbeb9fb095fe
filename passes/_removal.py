"""Greedy removal of units from layers of least squares, the inverse of their inputs' moments kept up to date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SMALL, _STEPS = 64, 32
"""Units up to which one goes at a time; of larger groups several do, in so many steps."""
LARGE, _COMPACT = 1500, 0.75
"""Inputs above which float32 serves, and the part of the inputs below which what is gone is cut out of the matrices."""


def removed(size: int, layers: Sequence[tuple[Tensor, Tensor, Tensor]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What each of so many units costs at its turn; units that go later never cost less than those before them.

    Of each layer that reads them: its weight [outputs, inputs], its inputs' moments, and each unit's inputs.
    """
    shares = [_Share.of(*layer) for layer in layers]
    left = torch.arange(size)
    at_once = 1 if size <= _SMALL else -(-size // _STEPS)
    scores = np.zeros(size)
    least = 0.0
    while len(left):
        costs = sum(share.costs() for share in shares)
        assert isinstance(costs, Tensor)
        order = torch.argsort(costs, stable=True)
        gone, rest = order[:at_once], order[at_once:].sort().values
        least = max(sum(share.without(gone, rest) for share in shares) / len(gone), least * (1 + 1e-9))
        for place, unit in enumerate(left[gone].tolist()):
            scores[unit] = least = least * (1 + 1e-9) if place else least
        left = left[rest]
    return scores


@dataclass
class _Share:
    """One layer as units go: the inverse of its inputs' moments, and its weights, less what is gone.

    What is gone has rows and columns of zeros, until that is so much that smaller matrices pay. In float32 where they
    are large: damped as they are, that is exact enough to rank by.
    """

    weight: Tensor
    inverse: Tensor
    power: float
    inputs: Tensor

    @staticmethod
    def of(weight: Tensor, damped: Tensor, columns: Tensor) -> _Share:
        kind = torch.float32 if len(damped) > LARGE else torch.float64
        damped, own = damped.to(kind), weight.to(kind, copy=True)
        power = max(float((own @ damped * own).sum(dtype=torch.float64)), 1e-300)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return _Share(own, inverse, power, columns)

    def costs(self) -> Tensor:
        """What each unit that is left would cost, as a share of the power [units], float64."""
        if self.inputs.shape[1] == 1:
            alone = self.inputs[:, 0]
            square = self.weight[:, alone].pow(2).sum(0, dtype=torch.float64)
            return square / self.inverse.diagonal()[alone].double() / self.power
        blocks = self.inverse[self.inputs[:, :, None], self.inputs[:, None, :]]
        own = self.weight[:, self.inputs].transpose(0, 1)
        costs: Tensor = ((own @ torch.linalg.inv(blocks)) * own).sum((1, 2), dtype=torch.float64) / self.power
        return costs

    def without(self, gone: Tensor, rest: Tensor) -> float:
        """Take units out, by their place among those that are left; what that costs."""
        inputs = self.inputs[gone].flatten()
        middle, own = torch.linalg.inv(self.inverse[inputs][:, inputs]), self.weight[:, inputs]
        across = self.inverse[inputs]
        given = middle @ across
        cost = float(((own @ middle) * own).sum(dtype=torch.float64)) / self.power
        self.weight.addmm_(own, given, alpha=-1)
        self.inverse.addmm_(across.T, given, alpha=-1)
        self.inputs = self.inputs[rest]
        if self.inputs.numel() < _COMPACT * len(self.inverse):
            stays = self.inputs.flatten().sort().values
            self.weight, self.inverse = self.weight[:, stays], self.inverse[stays][:, stays]
            self.inputs = torch.searchsorted(stays, self.inputs)
        return cost
