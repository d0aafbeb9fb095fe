"""Several teachers that answer as one: the mean of their probabilities, or of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgecompile.data import Interface
from edgecompile.passes._taps import tapped
from edgecompile.program import Program


class Ensemble(nn.Module):
    """Outputs of all, and the values of these nodes of the first; classes as the logarithm of mean probabilities."""

    def __init__(self, programs: Sequence[Program], seen: Sequence[fx.Node]) -> None:
        super().__init__()
        self.first = tapped(programs[0], seen, own=True)
        self.others = nn.ModuleList(tapped(one, [], own=True) for one in programs[1:])
        self.classes = Interface.of(programs[0]).classes is not None

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs as one, and the values."""
        outputs, values = self.first(*inputs)
        if not self.others:
            return outputs, values
        said = [outputs, *(one(*inputs)[0] for one in self.others)]
        return tuple(self._mean(i, list(each)) for i, each in enumerate(zip(*said, strict=True))), values

    def _mean(self, place: int, each: list[Tensor]) -> Tensor:
        if not each[0].is_floating_point():
            return each[0]
        if place == 0 and self.classes:
            logs = torch.stack([t.float().log_softmax(-1) for t in each])
            return logs.logsumexp(0) - torch.log(torch.tensor(float(len(each))))
        return torch.stack(each).mean(0)
