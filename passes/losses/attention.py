"""The loss of attention: where each position looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgecompile.passes.losses._loss import Paired


@dataclass(frozen=True)
class Attention(Paired):
    """Divergence of the student's attention from the teacher's, head by head (Wang et al., MiniLM, 2020)."""

    name: ClassVar[str] = "attention"
    sees: ClassVar = "attention"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """From probabilities [batch, heads, queries, keys]; a mask [batch, queries] leaves padding out."""
        least = 1e-9
        each = (teacher * (teacher.clamp(min=least).log() - student.clamp(min=least).log())).sum(-1).mean(1)
        if mask is None or mask.shape != each.shape:
            return each.mean()
        return (each * mask).sum() / mask.sum().clamp(min=1)
