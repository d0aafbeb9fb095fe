"""What passes that leave a share of a program have in common: the share, what it is of, and refitting what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from edgecompile.axes import Coupling, Group
from edgecompile.data import Dataset
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes import _refit
from edgecompile.passes._relevant import relevant
from edgecompile.program import Program


@dataclass(frozen=True)
class Shrinking(Pass):
    """A share of the multiplications (`macs`, by default a half) or of the `latency` is left, and refitted."""

    shapes: ClassVar[bool] = True

    macs: float | None = None
    latency: float | None = None
    refit: bool = True
    samples: int = 256

    def __post_init__(self) -> None:
        one_share(macs=self.macs, latency=self.latency)
        if self.samples < 1:
            raise SpecError("samples must be 1 or more")

    @property
    def share(self) -> float:
        """The share that is left at most."""
        return one_share(macs=self.macs, latency=self.latency)

    @property
    def times(self) -> bool:
        """A share of the latency is found by timing."""
        return self.latency is not None

    def timed(self, ctx: Context, program: Program, of: Program) -> float:
        """What part of another program's latency one takes."""
        if ctx.share is None:
            raise PassError(f"{self.name}: latency needs a target that is timed or predicted: give macs")
        return ctx.share(program, of)

    def any_batch(self, program: Program, what: str) -> None:
        """Raises `PassError` for a program that takes one batch alone, where `what` runs others."""
        if program.batch is not None:
            raise PassError(f"{self.name}: {what} needs a dynamic batch, and the program's is fixed at {program.batch}")

    def refitted(
        self,
        program: Program,
        smaller: Program,
        copies: Mapping[fx.Node, fx.Node],
        coupling: Coupling,
        keep: Mapping[str, Sequence[int]],
        data: Dataset,
        ctx: Context,
    ) -> None:
        """Refit the smaller program, and say what was left as it is."""
        self.any_batch(program, "refit (refit=False leaves it out)")
        counts = relevant(program, data, ctx.note)
        found = _refit.refit(program, smaller, copies, coupling, keep, data, ctx.seed, counts)
        ctx.count("refitted", found.solved)
        ctx.stats["refit_samples"] = found.samples
        if found.left:
            more = f" and {len(found.left) - 3} more" if len(found.left) > 3 else ""
            ctx.note(f"not refitted (grouped, tied or large): {', '.join(found.left[:3])}{more}")


def one_share(**given: float | None) -> float:
    """The share that is left by whichever option was given, a half by none; raises `SpecError` for several."""
    found = [value for value in given.values() if value is not None]
    if len(found) > 1:
        raise SpecError(f"give {' or '.join(given)}, not both")
    share = found[0] if found else 0.5
    if not 0 < share < 1:
        raise SpecError(f"{share:g}: the share that is left lies between 0 and 1")
    return share


def step_of(group: Group, block: int) -> int:
    """How many units make whole blocks along every member: one head of 16 does, and 8 channels do."""
    step = 1
    for member in group.members:
        each = int((member.units == 0).sum())
        step = math.lcm(step, block // math.gcd(block, each))
    return step
