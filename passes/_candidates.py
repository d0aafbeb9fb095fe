"""Programs that a plan could leave: made, timed as the rest of the pipeline would have them, and compared."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from edgecompile.axes import Coupling, Group, Member, couple, cut, macs
from edgecompile.data import Dataset
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes import _local, _refit
from edgecompile.passes._branches import Branch, Without, branches, dropped, separate
from edgecompile.passes._importance import Scores
from edgecompile.passes._judge import Judge
from edgecompile.passes._methods import scored
from edgecompile.passes._relevant import Relevant, relevant
from edgecompile.passes._shrinking import step_of
from edgecompile.passes._timing import Layout
from edgecompile.passes.quantize import Quantize
from edgecompile.plan import Choice, Item
from edgecompile.program import Program

_LEVELS = (1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0625, 0.03)
_ROUNDED_ON, _TIMED_ON = 48, 8
"""Calibration samples for a program that is rounded to be compared, and for those that are only timed."""
_TRIED_ON = 64
"""Calibration samples on which programs are refitted that may not be taken."""
_TRIED_WORK, _LEAST_TRIED = 3e9, 4
"""Plans times multiplications of a sample that are refitted to be compared, and the fewest plans."""
_ROUGH = 12
"""Programs of which fewer plans than this are worth refitting are compared with less data, and one damping."""
_JUDGED_ON, _LEAST = 128, 16
"""Samples on which outputs are compared; fewer of large programs, down to the least."""
_WEIGHED_WORK, _LEAST_WEIGHED = 4e11, 4
"""Multiplications that weighing all widths and branches may take, and the samples that it takes at least."""
_HEALED_WORK, _LEAST_HEALED = 4e9, 60
"""Steps times multiplications of a sample that healing one program for a choice may take, and the fewest steps."""
_WORK = 6e10
"""Multiplications that comparing one program's outputs may take."""


@dataclass(frozen=True)
class Made:
    """A choice with its program, the share of the time that it was measured to take, and how far its outputs are."""

    choice: Choice
    program: Program
    share: float
    lost: float


@dataclass
class Candidates:
    """All choices for one program; a choice has the level of each item, and last the precision where that is given."""

    source: Program
    ctx: Context
    coupling: Coupling
    layout: Layout
    order: Scores
    counts: Relevant
    items: tuple[Item, ...]
    data: Dataset
    judge: Judge
    precisions: tuple[bool, ...] = (False,)
    precision: Item = field(default_factory=lambda: Item("precision", (0.0,)))
    shares: dict[tuple[Choice, bool], float] = field(default_factory=dict)

    @staticmethod
    def of(program: Program, ctx: Context, method: str, block: int, depth: bool, samples: int) -> Candidates:
        """What each group and each branch loses at each level is measured here."""
        assert ctx.calib is not None
        coupling = couple(program)
        judged = max(_LEAST, min(_JUDGED_ON, samples, int(_WORK / max(1, macs(coupling)))))
        samples = min(samples, 2 * judged)
        data = ctx.calib.take(samples)
        counts = relevant(program, data, ctx.note)
        statistics = _local.statistics(program, coupling, data, ctx.seed, counts)
        if method == "obs":
            scores = _local.removals(program, coupling, *statistics)
        else:
            scores = scored("fit", method, program, coupling, ctx, samples)
        widths = {g.name: levels for g in coupling.groups if len(levels := _levels(g, block)) > 1}
        layout = Layout(coupling, widths, separate(branches(program, coupling)) if depth else [], block)
        judge = Judge.of(program, data.take(judged))
        made = Candidates(program, ctx, coupling, layout, scores, counts, (), data, judge)
        made.items = tuple(made._items(statistics))
        if lossy := made.roundings:
            lost = judge.lost(made.finished(program))
            bound = any(one.integers and one.keep == "always" for one in lossy)
            made.precisions = (True,) if bound else (False, True)
            made.precision = Item("precision", (lost,) if bound else (0.0, lost))
        return made

    @property
    def roundings(self) -> list[Pass]:
        """The passes behind that round weights or values, which the choice decides on."""
        return [one for one in self.ctx.rest if not one.exact and not one.heals and not one.shapes]

    @property
    def names(self) -> list[str]:
        """The items by name."""
        return [item.name for item in self.items]

    @property
    def groups(self) -> int:
        """How many items are widths; branches are behind them."""
        return len(self.layout.widths)

    @property
    def measured(self) -> int:
        """How many programs were timed."""
        return len(self.shares)

    def random(self, rng: np.random.Generator) -> Choice:
        """Widths by chance, around one level for all, and of the branches about a quarter gone."""
        level = rng.random()
        chosen = []
        for index, item in enumerate(self.items):
            count = len(item.lost)
            place = np.clip(level + rng.normal(0, 0.25), 0, 1) * (count - 1)
            chosen.append(round(float(place)) if index < self.groups else int(rng.random() < 0.25))
        return tuple(chosen)

    def share(self, choice: Choice, integer: bool) -> float:
        """What part of the program's time this choice takes on the target, behind what follows where asked."""
        key = choice[: len(self.items)], integer
        if key not in self.shares:
            assert self.ctx.share is not None
            self.shares[key] = self.ctx.share(self._timed(key[0], integer), self.source)
        return self.shares[key]

    def timed_again(self, made: Made) -> None:
        """Time a choice once more, with the weights that it got; the mean of both is its share from now on."""
        assert self.ctx.share is not None
        key = made.choice[: len(self.items)], self.precisions[made.choice[-1]]
        program = self.finished(made.program, True) if key[1] else made.program
        self.shares[key] = (self.shares[key] + self.ctx.share(program, self.source)) / 2

    def contested(self, choice: Choice, integer: bool) -> float:
        """The same in the fastest of all runtimes that the build emits for."""
        assert self.ctx.contest is not None
        return self.ctx.contest(self._timed(choice, integer), self.source)

    def _timed(self, choice: Choice, integer: bool) -> Program:
        """What is timed of a choice."""
        program = self._bare(choice)
        return self.finished(program, True) if integer else program

    def finished(self, program: Program, timed: bool = False) -> Program:
        """The program as the passes behind would leave it, those that train and those that choose shapes left out.

        What is only timed needs no values that are any good.
        """
        assert self.ctx.calib is not None
        calib = self.ctx.calib.take(_TIMED_ON if timed else _ROUNDED_ON)
        for one in self.roundings:
            hurried = replace(one, bias_correction=False) if timed and isinstance(one, Quantize) else one
            ctx = replace(self.ctx, drop=None, max_drop=None, calib=calib, stats={}, notes=[])
            program = hurried.run(program.clone(), ctx).refreshed()
        return program

    def lost(self, choice: Choice) -> float:
        """How far the outputs of a choice are, refitted on some of the data, and in its precision."""
        samples, quick = (self.judge.samples, True) if self.large else (_TRIED_ON, False)
        return self.made(choice, 0.0, self.data.take(samples), quick).lost + self.precision.lost[choice[-1]]

    @property
    def large(self) -> bool:
        """Whether comparing plans takes so long that it is done roughly."""
        return _ROUGH * macs(self.coupling) > _TRIED_WORK

    def trying(self, tries: int) -> int:
        """How many plans are worth refitting to be compared: fewer for large programs."""
        return max(min(tries, _LEAST_TRIED), min(tries, int(_TRIED_WORK / max(1, macs(self.coupling)))))

    def healing(self, steps: int) -> int:
        """How many steps of the training that follows are worth taking for a choice: 0 where none follows."""
        trains = any(p.heals and hasattr(p, "steps") for p in self.ctx.rest)
        if not trains or self.ctx.train is None:
            return 0
        most = int(_HEALED_WORK / max(1, macs(self.coupling)))
        return min(steps, most) if most >= _LEAST_HEALED else 0

    def healed(self, choice: Choice, steps: int) -> float:
        """How far the outputs of a choice are when it has been trained for so many steps."""
        program = self.made(choice, 0.0).program
        ctx = replace(self.ctx, work=None, stats={}, notes=[])
        trainers: list[Any] = [p for p in self.ctx.rest if p.heals and hasattr(p, "steps")]
        for one in trainers:
            short = replace(one, steps=self.healing(steps), time=None, epochs=None)
            program = short.run(program, ctx).refreshed()
        return self.judge.lost(program) + self.precision.lost[choice[-1]]

    def made(self, choice: Choice, share: float, data: Dataset | None = None, quick: bool = False) -> Made:
        """The program of a choice, refitted, and how far its outputs are from those of the whole."""
        data = data or self.data
        gone = self._gone(choice)
        program, counts = self.source, self.counts
        if gone:
            smaller, copies = dropped(program, gone)
            _refit.refit(program, smaller, copies, self.coupling, {}, data, self.ctx.seed, counts, quick)
            counts = {copies[node]: found for node, found in counts.items() if node in copies}
            program = smaller.refreshed()
        keep = self._keep(choice)
        if keep:
            coupling = couple(program) if gone else self.coupling
            keep = _found_again(self.coupling, coupling, keep) if gone else keep
            smaller, copies = cut(program, keep, coupling)
            _refit.refit(program, smaller, copies, coupling, keep, data, self.ctx.seed, counts, quick)
            program = smaller.refreshed()
        return Made(choice, program, share, self.judge.lost(program))

    def said(self, choice: Choice) -> list[str]:
        """What a choice leaves, for the report."""
        lines = []
        gone = [b.name for b in self._gone(choice)]
        if gone:
            lines.append("without " + ", ".join(gone))
        pairs = zip(self.layout.widths.items(), choice, strict=False)
        left = [f"{name} {w[c]} of {w[0]}" for (name, w), c in pairs if c]
        if left:
            more = f" and {len(left) - 8} more" if len(left) > 8 else ""
            lines.append("widths: " + ", ".join(left[:8]) + more)
        if len(choice) > len(self.items):
            lines.append("planned in " + ("integers" if self.precisions[choice[-1]] else "floats"))
        return lines

    def _items(self, statistics: _local.Statistics) -> list[Item]:
        """What each group loses at half and at the least of its width, the layers behind it compensated, and between
        them as `order` says; and what the outputs are without each branch."""
        found: list[Item] = []
        count = max(1, len(self.layout.widths) + len(self.layout.branches))
        work = max(1, macs(self.coupling))
        points = 2 if _WEIGHED_WORK / (2 * count * work) >= _LEAST_WEIGHED else 1
        weighed = max(_LEAST_WEIGHED, min(self.judge.samples, int(_WEIGHED_WORK / (points * count * work))))
        for name, levels in self.layout.widths.items():
            self.ctx.tell("weighing widths and branches", len(found), count)
            group = self.coupling[name]
            removed = np.concatenate([[0.0], np.cumsum(np.sort(self.order[name]))])
            curve = np.array([removed[group.size - w] for w in levels]).clip(min=1e-300)
            places = [len(levels) // 2, len(levels) - 1][:points]
            ratios = [self._narrowed(group, levels[place], weighed, statistics) / curve[place] for place in places]
            scale = np.exp(np.interp(range(len(levels)), places, np.log(np.maximum(ratios, 1e-300))))
            found.append(Item(name, (0.0, *(float(v) for v in np.maximum.accumulate(curve * scale)[1:]))))
        for branch in self.layout.branches:
            self.ctx.tell("weighing widths and branches", len(found), count)
            run = Without(self.source, [branch])
            found.append(Item(branch.name, (0.0, self.judge.lost(run.run, weighed))))
        return found

    def _narrowed(self, group: Group, left: int, samples: int, statistics: _local.Statistics) -> float:
        """How far the outputs are when one group has so many units left, and its readers make up for it."""
        keep = {group.name: self._units(group, left)}
        program, copies = cut(self.source, keep, self.coupling)
        with torch.no_grad():
            _local.compensate(program, copies, self.coupling, keep, statistics)
        return self.judge.lost(program, samples)

    def _bare(self, choice: Choice) -> Program:
        """The program of a choice with the weights as they were, which is enough for its time."""
        gone = self._gone(choice)
        program = dropped(self.source, gone)[0].refreshed() if gone else self.source
        keep = self._keep(choice)
        if not keep:
            return program
        coupling = couple(program) if gone else self.coupling
        keep = _found_again(self.coupling, coupling, keep) if gone else keep
        return cut(program, keep, coupling)[0].refreshed()

    def _gone(self, choice: Choice) -> list[Branch]:
        levels = choice[self.groups : len(self.items)]
        return [b for b, level in zip(self.layout.branches, levels, strict=True) if level]

    def _keep(self, choice: Choice) -> dict[str, list[int]]:
        pairs = zip(self.layout.widths.items(), choice, strict=False)
        return {name: self._units(self.coupling[name], levels[c]) for (name, levels), c in pairs if c}

    def _units(self, group: Group, left: int) -> list[int]:
        order = np.argsort(self.order[group.name], kind="stable")
        return sorted(int(i) for i in order[group.size - left :])


def _levels(group: Group, block: int) -> list[int]:
    """Widths in whole blocks, from all down to one block; a group within a block has its full width alone."""
    step = step_of(group, block)
    if step >= group.size:
        return [group.size]
    found = {max(step, round(group.size * part / step) * step) for part in _LEVELS}
    return sorted({group.size, *(w for w in found if w < group.size)}, reverse=True)


def _found_again(old: Coupling, new: Coupling, keep: dict[str, list[int]]) -> dict[str, list[int]]:
    """What is kept, by the groups of a program from which branches are gone; what went with them is left out."""
    places: dict[tuple[str, int], list[tuple[Group, Member]]] = {}
    for group in old.groups:
        for member in group.members:
            places.setdefault((member.weight, member.axis), []).append((group, member))
    found: dict[str, list[int]] = {}
    for group in new.groups:
        for member in group.members:
            for before, other in places.get((member.weight, member.axis), []):
                same = before.size == group.size and np.array_equal(other.units, member.units)
                if same and before.name in keep:
                    found[group.name] = keep[before.name]
    return found
