"""The search for a plan: made by a model of the time, measured, corrected, made anew."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

import numpy as np

from edgecompile.errors import PassError
from edgecompile.pass_manager import Context
from edgecompile.passes._candidates import Candidates, Made
from edgecompile.passes._timing import Model, fitted
from edgecompile.plan import Choice, Floats, Item, Part, Problem, fastest, solve

USED, _AIM = 0.94, 0.97
"""The share of the budget from which it counts as used, and what is aimed at, since times are measured twice."""
_DEPTH = (1.0, 0.2, 25.0)
"""How much the loss of a branch weighs in one plan after the other: as measured, little, and so much that none goes.

What is lost is measured before anything is refitted, which mends widths more than depth, and training more yet.
"""
_SETTLING, _CORRECTIONS, _CONTESTS, _CONFIRMATIONS, _KINDS = 6, 4, 3, 3, 3
_NEARLY = 1.1
"""What is lost by a plan over what one with less time loses, up to which it goes first."""
Weights = Floats
"""How much the loss of each item weighs in a plan."""


@dataclass(frozen=True, order=True)
class _Plan:
    """A choice that some weights led to, and how far its outputs are."""

    lost: float
    number: int
    choice: Choice
    corrections: int


@dataclass
class Search:
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
        integer = self.candidates.precisions[precision]
        self.models[precision] = model = fitted(self.candidates.layout, list(known), list(known.values()), integer)
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
            if before == self.gain or USED * self.budget <= share <= self.budget:
                break
            kept = self._round()
        kept, tried = held or kept, list[Made]()
        while kept is not None and len(tried) < _CONFIRMATIONS:
            tried.append(made := self._confirmed(kept[0]))
            if made.share <= self.budget:
                return made
            kept = self._round()
        if tried:
            return min(tried, key=lambda made: made.share)
        if anyhow:
            (bare, integer), share = min(self.candidates.shares.items(), key=lambda found: found[1])
            return self.candidates.made((*bare, self.candidates.precisions.index(integer)), share)
        least = min(self.candidates.shares.values(), default=1.0)
        raise PassError(
            f"fit: {self.budget:.3g} of the latency is out of reach: the fastest one tried takes {least:.3g}"
        )

    def _confirmed(self, plan: _Plan) -> Made:
        """The program of a plan, timed a second time: the first may have been one of the machine's good moments."""
        precision = plan.choice[-1]
        made = self.candidates.made(plan.choice, 0.0)
        self.candidates.timed_again(made)
        share = self.measured(plan.choice)
        self.learn(precision)
        return replace(made, share=share)

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
                most = plan.lost if share <= self.budget else np.inf
                self._propose(plan.number, plan.corrections + 1, seen, waiting, most)
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
        return share <= self.budget and (share >= USED * self.budget or not any(choice[:-1]))

    def _drawn(self, rng: np.random.Generator, number: int) -> Weights:
        """How much each item's loss is to weigh: as measured at first, then otherwise."""
        sizes = len(self.candidates.items)
        weights = np.ones(sizes) if not number else np.exp(rng.normal(0, 1, sizes))
        weights[self.candidates.groups :] *= _DEPTH[number % len(_DEPTH)]
        return weights

    def _propose(
        self, number: int, corrections: int, seen: set[Choice], waiting: list[_Plan], most: float = np.inf
    ) -> None:
        """The plan by these weights joins those that wait, if it is a new one.

        One that uses what another left of the budget counts as no worse than that if it is nearly as good: training
        makes use of what there is.
        """
        choice = self._plan(self.weights[number])
        if choice not in seen:
            seen.add(choice)
            lost = self.candidates.lost(choice)
            heappush(waiting, _Plan(most if most < lost <= _NEARLY * most else lost, number, choice, corrections))

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
