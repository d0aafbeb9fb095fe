"""Structured pruning: units of coupled groups go until the multiplications fit, and what read them is refitted."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgecompile.axes import Coupling, Group, Work, couple, cut, macs
from edgecompile.axes.dims import Index
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context
from edgecompile.passes._importance import Scores
from edgecompile.passes._methods import GRADIENTS, Method, scored
from edgecompile.passes._shrinking import Shrinking, step_of
from edgecompile.program import Program

_TRIES = 10
_USED = 0.9
"""The share of a latency from which it counts as used."""


@dataclass(frozen=True)
class Prune(Shrinking):
    """Remove channels, heads and other units until a share of the multiplications or of the latency is left.

    Before: `%y = conv2d(%x, w: float32[64, 32, 3, 3])`, `%z = conv2d(%y, v: float32[128, 64, 1, 1])`

    After: `%y = conv2d(%x, w: float32[40, 32, 3, 3])`, `%z = conv2d(%y, v: float32[128, 40, 1, 1])`

    Whatever axes the program couples shrink together (`edgecompile.axes`). `method` says which units matter:
    `magnitude` by their weights, `taylor` and `fisher` by gradients on labelled data (`fisher` draws classes where
    there are none), `obs` and `kcm` by calibration data alone (the exact error that the layers behind make without a
    unit, and how well the others stand for it), `random` as the control. The block of units that loses least for each
    multiplication that it saves goes first; widths stay multiples of `block`, which the kernels of CPUs and GPUs want.
    `refit` solves what reads a removed unit again, by least squares on calibration data, so that its output stays as
    close as it can without training. A share of the latency is searched for by building candidates and timing (or
    predicting) them on the target: multiplications alone do not say how long a network takes.

    Refuses: a share that no removal reaches, a program without groups, data that a method needs and that is not there.
    """

    name: ClassVar[str] = "prune"

    method: Method = "magnitude"
    block: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 1:
            raise SpecError("block must be 1 or more")

    @property
    def reads_train(self) -> bool:
        """Gradients are of training data where there is any."""
        return self.method in GRADIENTS

    def run(self, program: Program, ctx: Context) -> Program:
        """The smaller program; see the class."""
        coupling = couple(program)
        if not coupling.groups:
            reasons = list(dict.fromkeys(coupling.fixed.values()))[:3]
            raise PassError(f"prune: no axis of this program can shrink: {'; '.join(reasons)}")
        scores = scored(self.name, self.method, program, coupling, ctx, self.samples)
        if self.latency is None:
            keep = selected(coupling, scores, self.share, self.block)
        else:
            keep = self._fitted(program, coupling, scores, ctx)
        removed = {g.name: g.size - len(keep[g.name]) for g in coupling.groups if g.name in keep}
        ctx.count("groups", len(removed))
        ctx.count("units", sum(removed.values()))
        smaller, copies = cut(program, keep, coupling)
        if self.refit and ctx.calib is not None:
            self.refitted(program, smaller, copies, coupling, keep, ctx.calib.take(self.samples), ctx)
        elif self.refit:
            ctx.note("nothing is refitted: there is no calibration data")
        return smaller.retraced()

    def _fitted(self, program: Program, coupling: Coupling, scores: Scores, ctx: Context) -> dict[str, list[int]]:
        """The units that keep the latency within its share and use nine tenths of it, by bisecting multiplications."""
        assert self.latency is not None
        low, high = 0.0, 1.0
        best: tuple[float, dict[str, list[int]]] | None = None
        tried: dict[int, float] = {}
        guess = self.latency
        for _ in range(_TRIES):
            try:
                keep = selected(coupling, scores, guess, self.block)
            except PassError:
                low, guess = guess, (guess + high) / 2
                continue
            work = macs(coupling, {name: len(units) for name, units in keep.items()})
            if work not in tried:
                tried[work] = self.timed(ctx, cut(program, keep, coupling)[0].refreshed(), program)
            found = tried[work]
            if found <= self.latency and (best is None or found > best[0]):
                best = found, keep
            if _USED * self.latency <= found <= self.latency:
                break
            low, high = (guess, high) if found <= self.latency else (low, guess)
            guess = (low + high) / 2
        if best is None:
            least = min(tried.values(), default=1.0)
            raise PassError(f"prune: latency={self.latency:g} is out of reach: the fastest one tried takes {least:.3g}")
        ctx.stats["latency"] = round(best[0], 4)
        ctx.stats["tried"] = len(tried)
        if best[0] < _USED * self.latency:
            ctx.note(f"of {self.latency:g} of the latency {best[0]:.3g} is used: no block in between was found")
        return best[1]


def selected(coupling: Coupling, scores: Scores, share: float, block: int) -> dict[str, list[int]]:
    """The units to keep, by group, so that at most `share` of the multiplications is left.

    Greedy: of each group the next block of units in the order of their scores, the one first that loses least for each
    multiplication saved as things are then. A group keeps a block at least. Raises `PassError` for a share that is out
    of reach.
    """
    work = Work(coupling)
    goal = share * work.macs
    order = {g.name: np.argsort(scores[g.name], kind="stable") for g in coupling.groups}
    heap = [(_price(work, g, scores, order, block), i, g.size) for i, g in enumerate(coupling.groups)]
    heapq.heapify(heap)
    left = {g.name: g.size for g in coupling.groups}
    while work.macs > goal:
        if not heap:
            least = work.macs / goal * share
            raise PassError(f"prune: macs={share:g} is out of reach: a block of every group is {least:.3g} of them")
        price, index, size = heapq.heappop(heap)
        group = coupling.groups[index]
        if math.isinf(price):
            continue
        now = _price(work, group, scores, order, block)
        if size != left[group.name] or now > price * 1.000001:  # what it was priced beside has changed
            heapq.heappush(heap, (now, index, left[group.name]))
            continue
        left[group.name] = _next(group, size, block)
        work.set(group, left[group.name])
        heapq.heappush(heap, (_price(work, group, scores, order, block), index, left[group.name]))
    return {
        g.name: sorted(int(i) for i in order[g.name][g.size - left[g.name] :])
        for g in coupling.groups
        if left[g.name] < g.size
    }


def _price(work: Work, group: Group, scores: Scores, order: Mapping[str, Index], block: int) -> float:
    """What the next block of a group loses for each multiplication that it saves; infinite where there is no next."""
    now = work.units(group)
    after = _next(group, now, block)
    if after == now:
        return math.inf
    lost = float(scores[group.name][order[group.name][group.size - now : group.size - after]].sum())
    return lost / max(work.saved(group, after), 1)


def _next(group: Group, now: int, block: int) -> int:
    """The next smaller number of units: every axis with one index a unit stays a multiple of the block."""
    step = step_of(group, block)
    after = (now - 1) // step * step
    return after if after >= min(step, group.size) else now
