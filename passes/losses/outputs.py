"""Losses of outputs: softened classes, independent classes, plain differences, and the labels of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from edgecompile.errors import SpecError
from edgecompile.passes.losses._loss import Loss, Paired, mean


@dataclass(frozen=True)
class Kl(Paired):
    """Divergence of the student's classes from the teacher's, both softened by `temperature` T, times T^2.

    Hinton et al., 2015. Adding a constant to all logits of a sample changes nothing.
    """

    name: ClassVar[str] = "kl"
    sees: ClassVar = "classes"
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise SpecError(f"temperature={self.temperature:g}: is above 0")

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """From logits [..., classes]."""
        t = self.temperature
        wanted = (teacher / t).log_softmax(-1)
        each = F.kl_div((student / t).log_softmax(-1), wanted, reduction="none", log_target=True).sum(-1)
        return mean(each, mask if each.dim() > 1 else None) * t * t


@dataclass(frozen=True)
class Bce(Paired):
    """Cross-entropy of independent classes (sigmoid), less the teacher's own entropy.

    Unlike `kl` it sees a shift that all classes share, as detectors and taggers need it.
    """

    name: ClassVar[str] = "bce"
    sees: ClassVar = "classes"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """From logits of any shape."""
        wanted = teacher.sigmoid()
        least = F.binary_cross_entropy_with_logits(teacher, wanted, reduction="none")
        each = F.binary_cross_entropy_with_logits(student, wanted, reduction="none") - least
        return mean(each, mask if each.dim() > 1 else None)


@dataclass(frozen=True)
class Outputs(Paired):
    """The squared difference of every float output, in parts of the teacher's mean square."""

    name: ClassVar[str] = "outputs"
    sees: ClassVar = "outputs"

    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """From tensors of any shape."""
        fits = mask if mask is not None and student.shape[:2] == mask.shape else None
        return mean((student - teacher) ** 2, fits) / mean(teacher**2, fits).clamp(min=1e-12)


@dataclass(frozen=True)
class Labels(Loss):
    """Cross-entropy with the classes of the data; its least is 0 only without `smoothing`."""

    name: ClassVar[str] = "labels"
    sees: ClassVar = "labels"
    smoothing: float = 0.0

    def of(self, student: Sequence[Tensor], teacher: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
        """From logits [batch, classes], with the classes [batch] in the teacher's place."""
        return F.cross_entropy(student[0], teacher[0].long(), label_smoothing=self.smoothing)
