"""Widths, depth and precision as one choice, made for a latency."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import ClassVar, Literal

import numpy as np

from edgecompile.axes import couple
from edgecompile.errors import PassError, SpecError
from edgecompile.measure import machine
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._candidates import Candidates, Made
from edgecompile.passes._methods import GRADIENTS, Method
from edgecompile.passes._timing import Model, fitted
from edgecompile.plan import Choice, Floats, Item, Part, Problem, fastest, solve
from edgecompile.program import Program

_USED, _AIM = 0.9, 0.97
"""The share of the budget from which it counts as used, and what is aimed at, since times are measured twice."""
_DEPTH = (1.0, 0.2, 25.0)
"""How much the loss of a branch weighs in one plan after the other: as measured, little, and so much that none goes.

What is lost is measured before anything is refitted, which mends widths more than depth, and training more yet.
"""
_SETTLING, _CORRECTIONS, _CONTESTS, _KINDS = 6, 4, 3, 3
_BUILT_LARGE = 6
"""Choices by chance that are built and timed of large programs."""
Weights = Floats
"""How much the loss of each item weighs in a plan."""


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
    of it are not used, the model learns from that and plans again.

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
            ctx.note(f"{budget:.3g} of the latency is out of reach: the fastest choice takes {best.share:.3g}")
        ctx.stats.update({"latency": round(best.share, 4), "timed": candidates.measured})
        for line in candidates.said(best.choice):
            ctx.note(line)
        if best.share < _USED * budget and any(best.choice[: len(candidates.names)]):
            ctx.note(f"of {budget:.3g} of the latency {best.share:.3g} is used: no choice in between was found")
        return best.program

    def _searched(self, candidates: Candidates, ctx: Context, budget: float) -> _Search:
        """Random choices are timed, as floats and behind quantization where that follows; a search begins with them."""
        rng = np.random.default_rng(ctx.seed)
        whole: Choice = (0,) * len(candidates.items)
        built = min(self.built, _BUILT_LARGE) if candidates.large else self.built
        chosen = [whole, *(candidates.random(rng) for _ in range(built))]
        search = _Search(candidates, ctx, budget, self.heal, gain=dict.fromkeys(range(len(candidates.precisions)), 1.0))
        timed = [
            (c, p) for p in range(len(candidates.precisions)) for c in (chosen if not p else chosen[: 1 + built // 2])
        ]
        for done, (choice, precision) in enumerate(timed):
            ctx.tell("timing choices", done, len(timed))
            search.measured((*choice, precision))
        for precision in range(len(candidates.precisions)):
            search.learn(precision)
        return search


@dataclass(frozen=True, order=True)
class _Plan:
    """A choice that some weights led to, and how far its outputs are."""

    lost: float
    number: int
    choice: Choice
    corrections: int


@dataclass
class _Search:
    """Plans under a budget, nearest to the program first, until one is measured within it and uses it."""

    candidates: Candidates
    ctx: Context
    budget: float
    heal: int
    models: dict[int, Model] = field(default_factory=dict)
    timed: dict[int, dict[Choice, float]] = field(default_factory=dict)
    factor: dict[int, float] = field(default_factory=dict)
    weights: list[Weights] = field(default_factory=list)
    gain: dict[int, float] = field(default_factory=dict)

    def measured(self, choice: Choice) -> float:
        """The share of the time that a choice takes."""
        precision = choice[-1]
        share = self.candidates.share(choice[:-1], self.candidates.precisions[precision])
        known = self.timed.setdefault(precision, {})
        known.pop(choice[:-1], None)
        known[choice[:-1]] = share
        return share * self.gain[precision]

    def learn(self, precision: int) -> None:
        """The model of one precision, from all that was timed so far; it holds for the last one as it was timed."""
        known = self.timed[precision]
        self.models[precision] = model = fitted(self.candidates.layout, list(known), list(known.values()))
        if self.weights:
            choice, share = list(known.items())[-1]
            self.factor[precision] = share / model.time(choice)

    def best(self, tries: int, anyhow: bool) -> Made:
        """The plan whose outputs are nearest to the program's, measured within the budget; else the fastest choice.

        Where the build emits for several runtimes, plans are timed in the first, and what the fastest gains over it on
        the plan that was found is taken for the gain on all; then plans are made anew.
        """
        rng = np.random.default_rng(self.ctx.seed + 1)
        self.weights += [self._drawn(rng, number) for number in range(tries)]
        kept = self._round()
        held: tuple[_Plan, float] | None = None
        for _ in range(_CONTESTS):
            if self.ctx.contest is None or kept is None or not any(kept[0].choice[:-1]):
                break
            plan, before = kept[0], dict(self.gain)
            for precision in self.gain if not held else [plan.choice[-1]]:
                self._contest((*plan.choice[:-1], precision))
            share = self.measured(plan.choice)
            if share <= self.budget and (held is None or plan < held[0]):
                held = plan, share
            if before == self.gain or _USED * self.budget <= share <= self.budget:
                break
            kept = self._round()
        kept = held or kept
        if kept is not None:
            return self.candidates.made(kept[0].choice, kept[1])
        if anyhow:
            (bare, integer), share = min(self.candidates.shares.items(), key=lambda found: found[1])
            return self.candidates.made((*bare, self.candidates.precisions.index(integer)), share)
        least = min(self.candidates.shares.values(), default=1.0)
        raise PassError(
            f"fit: {self.budget:.3g} of the latency is out of reach: the fastest one tried takes {least:.3g}"
        )

    def _contest(self, choice: Choice) -> None:
        """What the fastest runtime gains over the first one, in one precision."""
        integer = self.candidates.precisions[choice[-1]]
        own = self.candidates.share(choice[:-1], integer)
        self.gain[choice[-1]] = min(1.0, self.candidates.contested(choice[:-1], integer) / own)

    def _round(self) -> tuple[_Plan, float] | None:
        """Plans by all weights, measured until the nearest that holds is found; None where none does.

        Where training follows, the nearest of up to three kinds of depth and precision, healed for a moment.
        """
        self._settle()
        seen: set[Choice] = set()
        waiting: list[_Plan] = []
        for number in range(len(self.weights)):
            self.ctx.tell("trying plans", number, len(self.weights))
            self._propose(number, 0, seen, waiting)
        kinds = _KINDS if self.candidates.healing(self.heal) else 1
        kept: dict[Choice, tuple[_Plan, float]] = {}
        while waiting and (len(kept) < kinds or waiting[0] < max(kept.values())[0]):
            self.ctx.tell("measuring plans", len(seen) - len(waiting), len(seen))
            plan = heappop(waiting)
            kind = plan.choice[self.candidates.groups :] if kinds > 1 else ()
            if kind in kept and kept[kind][0] < plan:
                continue
            share = self.measured(plan.choice)
            if share <= self.budget:
                kept[kind] = plan, share
            if not self._used(plan.choice, share) and plan.corrections < _CORRECTIONS:
                self.learn(plan.choice[-1])
                self._propose(plan.number, plan.corrections + 1, seen, waiting)
        nearest = sorted(kept.values())[:kinds]
        if len(nearest) < 2:
            return nearest[0] if nearest else None
        return min(nearest, key=lambda found: self.candidates.healed(found[0].choice, self.heal))

    def _settle(self) -> None:
        """The model learns from the first plan until it is right about it."""
        before: Choice | None = None
        for _ in range(_SETTLING):
            choice = self._plan(self.weights[0])
            if choice == before or self._used(choice, self.measured(choice)):
                return
            self.learn(choice[-1])
            before = choice

    def _used(self, choice: Choice, share: float) -> bool:
        """Whether the latency holds and is used, or there is nothing to use it for."""
        return share <= self.budget and (share >= _USED * self.budget or not any(choice[:-1]))

    def _drawn(self, rng: np.random.Generator, number: int) -> Weights:
        """How much each item's loss is to weigh: as measured at first, then otherwise."""
        sizes = len(self.candidates.items)
        weights = np.ones(sizes) if not number else np.exp(rng.normal(0, 1, sizes))
        weights[self.candidates.groups :] *= _DEPTH[number % len(_DEPTH)]
        return weights

    def _propose(self, number: int, corrections: int, seen: set[Choice], waiting: list[_Plan]) -> None:
        """The plan by these weights joins those that wait, if it is a new one."""
        choice = self._plan(self.weights[number])
        if choice not in seen:
            seen.add(choice)
            heappush(waiting, _Plan(self.candidates.lost(choice), number, choice, corrections))

    def _plan(self, weights: Weights) -> Choice:
        """The plan that loses least, of one in each precision."""
        items = tuple(
            Item(one.name, tuple(float(v * w) for v in one.lost))
            for one, w in zip(self.candidates.items, weights, strict=True)
        )
        problems = [Problem(items, tuple(self._parts(i))) for i in sorted(self.models)]
        found: list[tuple[float, Choice]] = []
        for precision, problem in enumerate(problems):
            with suppress(PassError):
                choice = solve(problem, _AIM * self.budget)
                found.append((problem.lost(choice) + self.candidates.precision.lost[precision], (*choice, precision)))
        if not found:  # measured, the fastest may be faster than the model says
            choices = [fastest(problem) for problem in problems]
            found = [(p.time(c), (*c, i)) for i, (p, c) in enumerate(zip(problems, choices, strict=True))]
        return min(found)[1]

    def _parts(self, precision: int) -> list[Part]:
        """A model's parts, as what was measured says that they must be read."""
        scale = self.factor.get(precision, 1.0) * self.gain[precision]
        return [replace(part, times=part.times * scale) for part in self.models[precision].parts()]


def _block(ctx: Context) -> int:
    """Channels that kernels compute together: 16 where this CPU has AVX-512, else 8."""
    here = ctx.device is not None and ctx.device.measured_here
    flags = machine()["flags"]
    return 16 if here and isinstance(flags, list) and "avx512f" in flags else 8
