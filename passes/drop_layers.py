"""Depth: whole residual branches go, those first whose absence changes the outputs least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edgecompile.axes import Coupling, couple, macs
from edgecompile.data import Dataset
from edgecompile.errors import PassError
from edgecompile.pass_manager import Context
from edgecompile.passes._branches import Branch, Without, branches, distance, dropped
from edgecompile.passes._shrinking import Shrinking
from edgecompile.program import Program


@dataclass(frozen=True)
class DropLayers(Shrinking):
    """Leave out branches that end in a sum until `macs` of the multiplications, or of the `latency`, are left.

    Before: `%z = add(%x, %y)`, `%y` the end of a branch of convolutions or of attention

    After: `%x` wherever `%z` was read

    Branches are found in the graph: the body of a residual block, attention and the feed-forward layers of a
    transformer, either side of a block with a projection. `order=searched` drops next the one without which the outputs
    for calibration data change least for each multiplication saved, given those that are gone; `every_other` drops
    every second one, from the second on, and then every second of those that are left. `refit` solves the layers
    behind again by least squares. Depth saves the small operations around layers too, and what is left is as wide as
    before, so that INT8 still pays.

    Refuses: no calibration data, a program without such branches, a share that is not reached when all are gone.
    """

    name: ClassVar[str] = "drop_layers"
    needs_calib: ClassVar[bool] = True

    order: Literal["searched", "every_other"] = "searched"

    def run(self, program: Program, ctx: Context) -> Program:
        """The shallower program; see the class."""
        if ctx.calib is None:
            raise PassError("drop_layers: needs calibration data: give --calib")
        if self.order == "searched":
            self.any_batch(program, "order=searched")
        coupling = couple(program)
        if not branches(program, coupling):
            raise PassError("drop_layers: no sum of this program has a branch that could be left out: use prune")
        data = ctx.calib.take(self.samples)
        gone = self._chosen(program, coupling, data, ctx)
        smaller, copies = dropped(program, gone)
        ctx.count("dropped", len(gone))
        ctx.note("without " + ", ".join(b.name for b in gone))
        if self.refit:
            self.refitted(program, smaller, copies, coupling, {}, data, ctx)
        return smaller.retraced()

    def _chosen(self, program: Program, coupling: Coupling, data: Dataset, ctx: Context) -> list[Branch]:
        whole = macs(coupling)
        gone: list[Branch] = []
        left = branches(program, coupling)
        parity = 1
        with torch.no_grad():
            wanted = [program(*b.inputs) for b in data] if self.order == "searched" else []
            while True:
                share = 1 - sum(b.macs for b in gone) / whole
                if self.latency is not None:
                    share = self.timed(ctx, dropped(program, gone)[0].refreshed(), program) if gone else 1.0
                if share <= self.share:
                    return gone
                left = [b for b in left if not any(_touch(b, g) for g in gone)]
                if not left:
                    reached = f"{share:.3g} is left without all {len(gone)} branches"
                    raise PassError(f"drop_layers: {self.share:g} is out of reach: {reached}")
                if self.order == "searched":
                    gone.append(_next(program, gone, left, data, wanted))
                else:
                    parity = parity if parity < len(left) else 0
                    gone.append(left.pop(parity))
                    parity += 1


def _next(
    program: Program, gone: list[Branch], left: list[Branch], data: Dataset, wanted: Sequence[tuple[Tensor, ...]]
) -> Branch:
    """The branch without which the outputs change least for each multiplication."""

    def price(branch: Branch) -> float:
        run = Without(program, [*gone, branch])
        pairs = zip((run.run(*b.inputs) for b in data), wanted, strict=True)
        return sum(distance(found, right) for found, right in pairs) / branch.macs

    return min(left, key=price)


def _touch(branch: Branch, gone: Branch) -> bool:
    """Whether a branch lies in one that is gone, is the other side of its sum, or has it inside."""
    return branch.total is gone.total or branch.total in gone.inside or gone.total in branch.inside
