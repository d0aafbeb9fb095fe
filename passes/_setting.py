"""How long and how fast a program is trained."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompile.passes._samples import Augment


@dataclass(frozen=True)
class Setting:
    """How long and how fast: `rate` is the highest learning rate, reached after `warmup` of the steps, 0 at the end.

    With `ema` the weights that are looked at are averages, of which each step leaves so much. `layerdrop` is how often
    a residual branch is left out for a step.
    """

    steps: int
    batch: int
    rate: float
    seed: int
    bfloat16: bool = False
    warmup: float = 0.05
    decay: float = 0.01
    augment: Augment | None = None
    device: str = "cpu"
    rank: int = 0
    ranks: int = 1
    accumulate: int = 1
    ema: float = 0.0
    layerdrop: float = 0.0

    @property
    def part(self) -> int:
        """Samples that go through the student at once: a batch is that many for each worker and accumulation."""
        return self.batch // (self.ranks * self.accumulate)
