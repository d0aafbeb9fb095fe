"""Widths, depth and precision as one choice, made for a latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from edgecompile.axes import couple
from edgecompile.errors import PassError, SpecError
from edgecompile.measure import machine
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._candidates import Candidates, Made
from edgecompile.passes._timing import Model, fitted
from edgecompile.plan import Choice, Item, Part, Problem, fastest, solve
from edgecompile.program import Program

_USED, _AIM = 0.9, 0.97
"""The share of the budget from which it counts as used, and what is aimed at, since times are measured twice."""
_CORRECTIONS = 6


@dataclass(frozen=True)
class Fit(Pass):
    """Choose widths, depth and precision so that the program takes `latency` of its time, or `ms` milliseconds.

    Before: `%y = conv2d(%x, w: float32[64, 32, 3, 3])`, a residual branch `%z = add(%x, %b)`

    After: `%y = conv2d(%x, w: float32[48, 16, 3, 3])`, and `%x` where `%z` was

    The widths of all coupled groups in blocks, whether each residual branch is there, and whether what `quantize`
    behind this pass makes of it is used, are the items of one plan (`edgecompile.plan`). Times come from the target:
    some random choices are built and measured (or predicted) there, in both precisions, and a model of the parts is
    fitted to them. What a group or a branch is worth is measured by the outputs without it, over calibration data;
    units within a group go in the order of `method`. Of `tries` plans, each with these worths weighed otherwise, the
    one is taken whose refitted program is nearest to the teacher (the search of ZipLM). Each is measured, and planned
    again until the latency holds and nine tenths of it are used.

    Refuses: a program in which nothing can go, no calibration data, a latency that the smallest one misses, unless
    `unreachable=fastest` takes that one then.
    """

    name: ClassVar[str] = "fit"
    shapes: ClassVar[bool] = True
    needs_calib: ClassVar[bool] = True

    latency: float | None = None
    ms: float | None = None
    method: Literal["fisher", "magnitude", "taylor", "random"] = "fisher"
    block: int | None = None
    depth: bool = True
    samples: int = 256
    tries: int = 12
    built: int = 14
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

    @property
    def times(self) -> bool:
        """Everything here hangs on measured times."""
        return True

    @property
    def reads_train(self) -> bool:
        """Gradients are of training data where there is any."""
        return self.method in ("fisher", "taylor")

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
        search = _Search(candidates, self._models(candidates, ctx), ctx, budget)
        best = search.best(self.tries, self.unreachable == "fastest")
        if best.share > budget:
            ctx.note(f"{budget:.3g} of the latency is out of reach: the fastest choice takes {best.share:.3g}")
        ctx.stats.update({"latency": round(best.share, 4), "timed": candidates.measured})
        for line in candidates.said(best.choice):
            ctx.note(line)
        if best.share < _USED * budget and any(best.choice[: len(candidates.names)]):
            ctx.note(f"of {budget:.3g} of the latency {best.share:.3g} is used: no choice in between was found")
        return best.program

    def _models(self, candidates: Candidates, ctx: Context) -> list[Model]:
        """A model of the times as floats, and one of those behind quantization where that follows."""
        rng = np.random.default_rng(ctx.seed)
        whole: Choice = (0,) * len(candidates.items)
        chosen = [whole]
        for _ in range(self.built):
            chosen.append(candidates.random(rng))
        models = []
        for integer in candidates.precisions:
            shares = []
            for done, choice in enumerate(chosen):
                ctx.tell("timing choices", done, len(chosen))
                shares.append(candidates.share(choice, integer))
            models.append(fitted(candidates.layout, chosen, shares))
        return models


@dataclass
class _Search:
    """Plans under a budget, as the times of those that were measured say that the model must be read."""

    candidates: Candidates
    models: Sequence[Model]
    ctx: Context
    budget: float
    factor: dict[int, float] = field(default_factory=dict)

    def best(self, tries: int, anyhow: bool) -> Made:
        """The candidate whose outputs are nearest to the program's, measured within the budget; else the fastest."""
        rng = np.random.default_rng(self.ctx.seed + 1)
        sizes = len(self.candidates.items)
        found: dict[Choice, Made] = {}
        for number in range(tries):
            self.ctx.tell("trying plans", number, tries)
            weights = np.ones(sizes) if not number else np.exp(rng.normal(0, 1, sizes))
            if number % 3 == 1:
                weights[self.candidates.groups :] *= 0.2  # depth is dear by its outputs, and heals well
            if (made := self._within(weights, found)) is not None:
                found[made.choice] = made
        if not found and anyhow:
            bare, integer = min(self.candidates.shares, key=lambda key: self.candidates.shares[key])
            choice = (*bare, self.candidates.precisions.index(integer))
            return self.candidates.made(choice, self.candidates.shares[bare, integer])
        if not found:
            raise PassError(f"fit: {self.budget:.3g} of the latency is out of reach: {self._least()}")
        return min(found.values(), key=lambda made: made.lost)

    def _within(self, weights: np.ndarray[tuple[int], np.dtype[np.float64]], found: dict[Choice, Made]) -> Made | None:
        """The plan by these weights that is measured within the budget and uses it; None where none was met."""
        kept: tuple[float, Choice] | None = None
        aim = _AIM
        for _ in range(_CORRECTIONS):
            choice = self._plan(weights, aim)
            if choice in found:
                return None
            predicted = self._predicted(choice)
            share = self.candidates.share(choice[:-1], self.candidates.precisions[choice[-1]])
            if share <= self.budget and (kept is None or share > kept[0]):
                kept = share, choice
            if _USED * self.budget <= share <= self.budget or (share <= self.budget and not any(choice[:-1])):
                break
            self.factor[choice[-1]] = self.factor.get(choice[-1], 1.0) * share / predicted
        if kept is None or kept[1] in found:
            return None
        return self.candidates.made(kept[1], kept[0])

    def _plan(self, weights: np.ndarray[tuple[int], np.dtype[np.float64]], aim: float) -> Choice:
        items = [
            Item(one.name, tuple(float(v * w) for v in one.lost))
            for one, w in zip(self.candidates.items, weights, strict=True)
        ]
        items.append(self.candidates.precision)
        problem = Problem(tuple(items), tuple(self._parts()))
        try:
            return solve(problem, aim * self.budget)
        except PassError:
            return fastest(problem)  # measured, it may be faster than the model says

    def _predicted(self, choice: Choice) -> float:
        return self.models[choice[-1]].time(choice) * self.factor.get(choice[-1], 1.0)

    def _parts(self) -> list[Part]:
        """The models' parts side by side along one more axis, the precision."""
        last = len(self.candidates.items)
        sides = [model.parts() for model in self.models]
        scale = [self.factor.get(i, 1.0) for i in range(len(sides))]
        return [
            replace(
                group[0],
                items=(*group[0].items, last),
                times=np.stack([p.times * s for p, s in zip(group, scale, strict=True)], -1),
            )
            for group in zip(*sides, strict=True)
        ]

    def _least(self) -> str:
        shares = self.candidates.shares.values()
        return f"the fastest one tried takes {min(shares, default=1.0):.3g}"


def _block(ctx: Context) -> int:
    """Channels that kernels compute together: 16 where this CPU has AVX-512, else 8."""
    here = ctx.device is not None and ctx.device.measured_here
    flags = machine()["flags"]
    return 16 if here and isinstance(flags, list) and "avx512f" in flags else 8
