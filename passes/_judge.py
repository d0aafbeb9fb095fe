"""How far programs are from one: the divergence of their classes, or the squared difference of all outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompile.data import Dataset, Interface
from edgecompile.passes._branches import distance
from edgecompile.program import Program


@dataclass(frozen=True)
class Judge:
    """Samples, a batch at a time, and what a program says to them."""

    inputs: Sequence[Sequence[Tensor]]
    wanted: Sequence[Sequence[Tensor]]
    classes: bool

    @staticmethod
    def of(program: Program, data: Dataset) -> Judge:
        """What the program that others are held to says."""
        inputs = [b.inputs for b in data]
        with torch.no_grad():
            wanted = [program(*given) for given in inputs]
        return Judge(inputs, wanted, Interface.of(program).classes is not None)

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(len(given[0]) for given in self.inputs)

    def lost(self, run: Callable[..., Sequence[Tensor]], samples: int | None = None) -> float:
        """How far something is, over so many samples or all; large where it is no number."""
        left = self.samples if samples is None else samples
        total, count = 0.0, 0
        for given, right in zip(self.inputs, self.wanted, strict=True):
            some = [t[:left] for t in given]
            if not len(some[0]):
                break
            left -= len(some[0])
            with torch.no_grad():
                found = run(*some)
            wanted = [w[: len(f)] if f.dim() else w for f, w in zip(found, right, strict=True)]
            if self.classes:
                pair = found[0].float().log_softmax(-1), wanted[0].float().log_softmax(-1)
                total += float(F.kl_div(*pair, reduction="sum", log_target=True))
                count += len(wanted[0])
            else:
                total += distance(found, wanted)
                count += 1
        value = total / max(1, count)
        return value if np.isfinite(value) else 1e6
