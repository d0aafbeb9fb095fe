"""Widths, depth and precision as one choice, made for a latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgecompile.axes import couple
from edgecompile.errors import PassError, SpecError
from edgecompile.measure import machine
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._candidates import Candidates
from edgecompile.passes._methods import GRADIENTS, Method
from edgecompile.passes._search import USED, Search
from edgecompile.plan import Choice
from edgecompile.program import Program

_BUILT_LARGE = 6
"""Choices by chance that are built and timed of large programs."""


@dataclass(frozen=True)
class Fit(Pass):
    """Choose widths, depth and precision so that the program takes `latency` of its time, or `ms` milliseconds.

    Before: `%y = conv2d(%x, w: float32[64, 32, 3, 3])`, a residual branch `%z = add(%x, %b)`

    After: `%y = conv2d(%x, w: float32[48, 16, 3, 3])`, and `%x` where `%z` was

    The widths of all coupled groups in blocks, and whether each residual branch is there, are the items of a plan
    (`edgecompile.plan`); one is made for floats and one for what `quantize` behind this pass makes of them. Times come
    from the target: some random choices are built and measured (or predicted) there, half of them in integers too, and
    a model of the parts is fitted to them. What a group or a branch is worth is measured by the outputs without it,
    the layers that read a group making up for it, over calibration data; units within a group go in the order of
    `method`. Up to `tries` plans are made, each with these worths weighed otherwise (the search of ZipLM). The one
    whose refitted program is nearest to the teacher is measured first; where the latency does not hold, or nine tenths
    of it are not used, the model learns from that and plans again. What is taken was timed twice.

    With `heal`, and a pass behind that trains, up to three plans that differ in depth or precision are trained for so
    many steps each (fewer of large programs), and the one that is nearest then is taken.

    Refuses: a program in which nothing can go, no calibration data, a latency that the smallest one misses, unless
    `unreachable=fastest` takes that one then.
    """

    name: ClassVar[str] = "fit"
    shapes: ClassVar[bool] = True
    needs_calib: ClassVar[bool] = True

    latency: float | None = None
    ms: float | None = None
    method: Method = "obs"
    block: int | None = None
    depth: bool = True
    samples: int = 256
    tries: int = 12
    built: int = 10
    heal: int = 0
    unreachable: Literal["refuse", "fastest"] = "refuse"

    def __post_init__(self) -> None:
        if self.latency is not None and self.ms is not None:
            raise SpecError("give latency (a share) or ms, not both")
        if self.latency is not None and not 0 < self.latency <= 1:
            raise SpecError(f"latency={self.latency:g}: the share of the time that is left lies between 0 and 1")
        if self.ms is not None and self.ms <= 0:
            raise SpecError(f"ms={self.ms:g}: milliseconds above 0")
        if (self.block or 1) < 1 or self.samples < 1 or self.tries < 1 or self.built < 1:
            raise SpecError("block, samples, tries and built are 1 or more")
        if self.heal < 0:
            raise SpecError(f"heal={self.heal}: steps of training, 0 or more")

    @property
    def times(self) -> bool:
        """Everything here hangs on measured times."""
        return True

    @property
    def reads_train(self) -> bool:
        """Gradients are of training data where there is any."""
        return self.method in GRADIENTS

    def run(self, program: Program, ctx: Context) -> Program:
        """The program that fits; see the class."""
        if ctx.calib is None:
            raise PassError("fit: needs calibration data: give --calib with images, an .npz or module:function")
        if ctx.share is None or ctx.ms is None:
            raise PassError("fit: needs a target that is timed or predicted: use prune(macs=...)")
        if program.batch is not None:
            raise PassError(f"fit: needs a dynamic batch, and the program's is fixed at {program.batch}")
        budget = self.ms / ctx.ms(program) if self.ms is not None else self.latency or 0.5
        candidates = Candidates.of(program, ctx, self.method, self.block or _block(ctx), self.depth, self.samples)
        if not candidates.items:
            reasons = list(dict.fromkeys(couple(program).fixed.values()))[:3]
            raise PassError(f"fit: nothing of this program can go: {'; '.join(reasons)}")
        best = self._searched(candidates, ctx, budget).best(
            candidates.trying(self.tries), self.unreachable == "fastest"
        )
        if best.share > budget:
            ctx.note(f"{budget:.3g} of the latency was not reached: the best that was found takes {best.share:.3g}")
        ctx.stats.update({"latency": round(best.share, 4), "timed": candidates.measured})
        for line in candidates.said(best.choice):
            ctx.note(line)
        if not candidates.precisions[best.choice[-1]] and not ctx.sized:
            for one in candidates.roundings:
                if one.integers:
                    ctx.without[one.name] = "not run: the plan fits in floats, which lose less"
        if best.share < USED * budget and any(best.choice[: len(candidates.names)]):
            ctx.note(f"of {budget:.3g} of the latency {best.share:.3g} is used: no choice in between was found")
        return best.program

    def _searched(self, candidates: Candidates, ctx: Context, budget: float) -> Search:
        """Random choices are timed, as floats and behind quantization where that follows; a search begins with them."""
        rng = np.random.default_rng(ctx.seed)
        whole: Choice = (0,) * len(candidates.items)
        built = min(self.built, _BUILT_LARGE) if candidates.large else self.built
        if candidates.large:
            tries = candidates.trying(self.tries)
            ctx.note(f"large program: {built} choices by chance are timed, {tries} plans compared, on less data")
        chosen = [whole, *(candidates.random(rng) for _ in range(built))]
        search = Search(candidates, ctx, budget, self.heal, gain=dict.fromkeys(range(len(candidates.precisions)), 1.0))
        timed = [
            (c, p) for p in range(len(candidates.precisions)) for c in (chosen if not p else chosen[: 1 + built // 2])
        ]
        for done, (choice, precision) in enumerate(timed):
            ctx.tell("timing choices", done, len(timed))
            search.measured((*choice, precision))
        for precision in range(len(candidates.precisions)):
            search.learn(precision)
        return search


def _block(ctx: Context) -> int:
    """Channels that kernels compute together: 16 where this CPU has AVX-512, else 8."""
    here = ctx.device is not None and ctx.device.measured_here
    flags = machine()["flags"]
    return 16 if here and isinstance(flags, list) and "avx512f" in flags else 8
