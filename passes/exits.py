"""Depth: exits along the program are trained together, and it ends at the one that is best within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context
from edgecompile.passes._each import Each
from edgecompile.passes._exits import Ways, settle_heads, ways
from edgecompile.passes._shrinking import one_share
from edgecompile.passes._terms import Terms
from edgecompile.passes.distill import FITTED_ON, Distill
from edgecompile.program import Program


@dataclass(frozen=True)
class Exits(Distill):
    """Train exits along the way together, and end at the best that leaves `macs` of the work, or of the `latency`.

    Before: `%a = block(%x)`, `%b = block(%a)`, `return head(%b)`

    After: `%a = block(%x)`, `return head_1(%a)`

    Exits are places where the program narrows to one value, up to `count` of them, evenly spread over its work. Behind
    each stands a copy of the last layers with weights of its own; a linear layer there is first fitted to what the
    whole program's gives, by ridge regression over calibration data, which also serves other widths than the last. All
    are trained at once on the losses of `distill`, the i-th of n weighing i/n (self-distillation of ModularStarEncoder;
    the whole one is taught by the teacher too). Of those within the budget the one with the least loss on the samples
    held out is taken: that need not be the deepest. `steps=0` takes the heads as they were fitted.

    Refuses: no training data, a program that does not narrow to one value between layers, last layers that fit nowhere
    else, a share that the first exit misses.
    """

    name: ClassVar[str] = "exits"
    shapes: ClassVar[bool] = True

    macs: float | None = None
    latency: float | None = None
    count: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        one_share(macs=self.macs, latency=self.latency)
        if self.count < 1 or self.heads:
            raise SpecError("count is 1 or more, and exits are heads themselves")
        if self.workers * self.machines > 1:
            raise SpecError("exits are trained by one worker")

    @property
    def times(self) -> bool:
        """A share of the latency is found by timing."""
        return self.latency is not None

    @property
    def _left(self) -> float:
        return one_share(macs=self.macs, latency=self.latency)

    def run(self, program: Program, ctx: Context) -> Program:
        """The program up to its best exit; see the class."""
        if self.time is not None:
            return self.settled(program, ctx).run(program, ctx)
        if ctx.train is None:
            raise PassError("exits: needs training data: give --train with images, an .npz or module:function")
        found = ways(self.name, program, self.count)
        shares = self._shares(found, program, ctx)
        if min(shares) > self._left:
            raise PassError(f"exits: {self._left:g} is out of reach: the first exit leaves {min(shares):.3g}")
        settle_heads(found, (ctx.calib or ctx.train).take(FITTED_ON))
        losses = self.trained(found.program, ctx, looked_at=True)
        losses = [*losses[1:], losses[0]]
        inside = [i for i, share in enumerate(shares) if share <= self._left]
        best = min(inside, key=lambda i: losses[i])
        for i, (share, loss) in enumerate(zip(shares, losses, strict=True)):
            where = f"behind {found.exits[i].name}" if i < len(found.exits) else "at the end"
            ctx.note(f"exit {where}: {share:.3g} is left, loss {loss:.4g}{', taken' if i == best else ''}")
        return found.ending(best)

    def _shares(self, found: Ways, program: Program, ctx: Context) -> list[float]:
        """What part each exit leaves, the whole last."""
        if self.latency is None:
            return [*(e.macs for e in found.exits), 1.0]
        if ctx.share is None:
            raise PassError("exits: latency needs a target that is timed or predicted: give macs")
        return [*(ctx.share(found.ending(i), program) for i in range(len(found.exits))), 1.0]

    def _fitting(self, program: Program, ctx: Context) -> int:
        return super()._fitting(ways(self.name, program, self.count).program, ctx)

    def _terms(self, program: Program, ctx: Context, labelled: bool) -> Terms:
        own = self.own_terms(program, ctx, labelled)
        outputs = len(ctx.teacher.output_names)
        count = len(program.output_names) // outputs
        return Each.made("exits", own, outputs, (1.0, *((i + 1) / count for i in range(count - 1))))
