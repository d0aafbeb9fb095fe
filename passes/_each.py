"""The losses of a program that has its outputs several times: at its end, and behind each exit on its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from edgecompile.errors import PassError
from edgecompile.passes._terms import Seen, Terms


@dataclass(frozen=True)
class Each(Terms):
    """One term for each time that the outputs are there, the end first: its losses added up, with a weight each."""

    outputs: int = 1
    weights: tuple[float, ...] = (1.0,)

    @staticmethod
    def made(who: str, own: Terms, outputs: int, weights: tuple[float, ...]) -> Each:
        """The terms of an end of so many outputs, for each weight; raises `PassError` for losses between layers."""
        if own.teacher_nodes:
            raise PassError(f"{who}: what lies between layers is not compared: give losses of outputs")
        floats = tuple(i for i in own.floats if i < outputs)
        return Each(own.losses, (), (), own.mask, floats, own.text, own.labelled, outputs, weights)

    @property
    def given(self) -> list[float | None]:
        """What each end weighs."""
        return list(self.weights)

    def values(self, taught: Seen, found: Seen, inputs: Sequence[Tensor], targets: Tensor | None) -> list[Tensor]:
        """One scalar for each end."""
        parts = []
        for at in range(0, len(self.weights) * self.outputs, self.outputs):
            each = super().values(taught, (found[0][at : at + self.outputs], found[1]), inputs, targets)
            weights = [1.0 if one.weight is None else one.weight for one in self.losses]
            total = sum(w * p for w, p in zip(weights, each, strict=True))
            assert isinstance(total, Tensor)
            parts.append(total)
        return parts
