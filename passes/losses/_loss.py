"""What a loss of distillation is: a number from values of the student and of the teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from edgecompile.errors import SpecError


@dataclass(frozen=True)
class Loss(ABC):
    """One term. It is 0 where student and teacher agree, and how much of a batch is padding does not change it.

    `sees` says which values it gets: `outputs` all float outputs of both, `classes` the first output, which is a table
    of classes; `labels` the student's first output and the classes of the data; `features` the values between layers
    that student and teacher share, batch first, the student's channels picked from the teacher's; `attention` the
    probabilities of each attention, [batch, heads, queries, keys]. A `mask`, one for each pair or None, is
    [batch, positions], true where a token counts. `weight` is what it is multiplied with; terms without one are
    balanced by the norms of their gradients.
    """

    name: ClassVar[str]
    sees: ClassVar[Literal["outputs", "classes", "labels", "features", "attention"]]
    weight: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise SpecError(f"weight={self.weight:g}: a weight is above 0")

    @abstractmethod
    def of(self, student: Sequence[Tensor], teacher: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
        """A scalar, from float32 values in the same order; the teacher's carry no gradient."""


@dataclass(frozen=True)
class Paired(Loss):
    """A term that is the mean over the pairs."""

    def of(self, student: Sequence[Tensor], teacher: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
        found = [self.pair(s, t, m) for s, t, m in zip(student, teacher, masks, strict=True)]
        return sum(found[1:], found[0]) / len(found)

    @abstractmethod
    def pair(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        """A scalar from two tensors of one shape."""


def mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of values [batch, positions, ...] over what counts; of all where there is no mask."""
    if mask is None:
        return values.mean()
    rest = values.flatten(2).mean(2) if values.dim() > 2 else values
    return (rest * mask).sum() / mask.sum().clamp(min=1)
