"""Gates on units are trained with the weights, and a pressure closes as many as a share of the size asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edgecompile.axes import couple, cut
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context
from edgecompile.passes._gated_training import GatedTraining
from edgecompile.passes._gates import Gates, open_probability, settled
from edgecompile.passes._shrinking import one_share
from edgecompile.passes.distill import Distill
from edgecompile.program import Program


@dataclass(frozen=True)
class L0(Distill):
    """Train hard-concrete gates with the weights until `macs` of the multiplications, or of the `params`, are left.

    Before: `%y = conv2d(%x, w: float32[64, 32, 3, 3])`, `%z = conv2d(%y, v: float32[32, 64, 3, 3])`

    After: `%y = conv2d(%x, w: float32[40, 32, 3, 3])`, `%z = conv2d(%y, v: float32[32, 40, 3, 3])`

    Each unit of a coupled group has a gate in the weights of the layers that read it (CoFi, DPHuBERT). The losses are
    those of `distill`; what is expected to go of the size is held to a target that rises over the first `ramp` of the
    steps, by factors that ascend while the gates descend. In the end the least probable units go, in blocks, and the
    gates of the others are multiplied into the weights. Which units matter is learned together with weights that do
    without them, which takes longer than ranking them once (`prune`); `distill` behind it heals.

    Refuses: no training data, no group of which a closed gate is a removed unit, a share that no gates reach.
    """

    name: ClassVar[str] = "l0"
    shapes: ClassVar[bool] = True

    macs: float | None = None
    params: float | None = None
    gate_rate: float = 0.05
    ramp: float = 0.5
    block: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        one_share(macs=self.macs, params=self.params)
        if self.gate_rate <= 0 or not 0 < self.ramp <= 1 or self.block < 1:
            raise SpecError("gate_rate is above 0, ramp between 0 and 1, block 1 or more")
        if self.workers * self.machines > 1 or self.heads:
            raise SpecError("gates are trained by one worker, without auxiliary heads")

    @property
    def _left(self) -> float:
        return one_share(macs=self.macs, params=self.params)

    def run(self, program: Program, ctx: Context) -> Program:
        """The smaller program; see the class."""
        if self.time is not None:
            return self.settled(program, ctx).run(program, ctx)
        counts = self.params is not None
        gates = Gates.of(program, couple(program))
        whole = float(gates.expected(torch.ones(gates.count), counts))
        if not gates.groups:
            raise PassError("l0: no group of which a closed gate is the same as a removed unit: use prune")
        least = gates.kept([0.0] * gates.count, 0.0, counts, self.block)
        reached = gates.size({n: len(units) for n, units in least.items()}, counts) / whole
        if reached > self._left:
            raise PassError(f"l0: {self._left:g} is out of reach: a block of every group leaves {reached:.3g}")
        if without := [g.name for g in gates.coupling.groups if g not in gates.groups]:
            more = f" and {len(without) - 3} more" if len(without) > 3 else ""
            ctx.note(f"no gates, as a norm or an unknown layer reads them: {', '.join(without[:3])}{more}")
        made: list[GatedTraining] = []

        def make(*given: Any) -> GatedTraining:
            made.append(GatedTraining(*given))
            made[-1].gate(gates, 1 - self._left, counts, self.gate_rate, self.ramp)
            return made[-1]

        self.trained(program, ctx, make=make)
        with torch.no_grad():
            alpha = made[-1].alpha.detach()
            opened = open_probability(alpha)
            expected = float(gates.expected(opened, counts)) / whole
            keep = gates.kept(opened.tolist(), self._left, counts, self.block)
            gates.fold(program, settled(alpha))
        ctx.stats["expected"] = round(expected, 4)
        ctx.count("gates", gates.count)
        ctx.count("units", sum(g.size - len(keep[g.name]) for g in gates.groups if g.name in keep))
        if abs(expected - self._left) > 0.01:
            ctx.note(f"the gates were open for {expected:.3g} in the end: the rest went by how probable it is")
        return cut(program, keep, couple(program))[0].retraced()
