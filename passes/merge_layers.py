"""Depth: several layers that repeat become one of them, which takes up what the others differ by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from edgecompile.axes import couple, macs
from edgecompile.data import Dataset
from edgecompile.errors import PassError, SpecError
from edgecompile.functional import acts
from edgecompile.pass_manager import Context
from edgecompile.passes._shrinking import Shrinking
from edgecompile.passes._stack import Layer, stacks, weights_of
from edgecompile.program import Program
from edgecompile.rewrite import aten, copied, set_weight, weight

_PRODUCTS = (aten.linear.default, aten.conv2d.default, aten.conv1d.default)
"""Layers whose weights are merged; norms stay those of the layer that is left."""


@dataclass(frozen=True)
class MergeLayers(Shrinking):
    """Merge `layers` successive layers that repeat into the first of them, from the last ones on (LaCo).

    Before: `%a = block(%x, w1)`, `%b = block(%a, w2)`, `%c = block(%b, w3)`

    After: `%a = block(%x, w1 + (w2 - w1) + (w3 - w1))`, and `%a` where `%c` was

    Layers are found in the graph: parts between places where it narrows to one value, that compute the same with
    weights of the same shapes (blocks of a transformer, of a residual stage). `rule=sum` adds up the differences, as
    the paper says; `rule=last` leaves the weights of the last one, which is what the authors' code does. A merge is
    kept where the outputs' cosine to the program's own, over calibration data, is above `least`; the next begins
    `interval` layers before it, and one before where it was not kept. Norms stay those of the first. It ends where
    `macs` of the multiplications, or of the `latency`, are left.

    Refuses: no calibration data, a program in which nothing repeats, a share that no merge above `least` reaches.
    """

    name: ClassVar[str] = "merge_layers"
    needs_calib: ClassVar[bool] = True

    rule: Literal["sum", "last"] = "sum"
    layers: int = 2
    interval: int = 1
    least: float = 0.5
    refit: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 2 or self.interval < 1:
            raise SpecError("layers is 2 or more, and interval 1 or more")
        if not -1 <= self.least <= 1:
            raise SpecError(f"least={self.least:g}: a cosine lies between -1 and 1")
        if self.refit:
            raise SpecError("refit: what merged layers gave before is no goal for one of them: use distill")

    def run(self, program: Program, ctx: Context) -> Program:
        """The shallower program; see the class."""
        if ctx.calib is None:
            raise PassError("merge_layers: needs calibration data: give --calib")
        self.any_batch(program, "comparing outputs")
        if not stacks(program, couple(program)):
            raise PassError("merge_layers: no layers of this program repeat: use drop_layers or prune")
        if not any(n.meta["val"].is_floating_point() for n in program.outputs()):
            raise PassError("merge_layers: no output is a float, so that none has a cosine: use drop_layers")
        data = ctx.calib.take(self.samples)
        with torch.no_grad():
            wanted = [program(*b.inputs) for b in data]
        whole = macs(couple(program))
        first = place = _deepest(program)
        best, share = program, 1.0
        while share > self.share and place >= 0:
            ctx.tell("merging layers", first - place, first + 1)
            made, name = self._merged(best, place)
            found = _cosine(made, data, wanted) if made is not None else -2.0
            if made is None or found <= self.least:
                place -= 1
                continue
            best = made
            ctx.count("merged", self.layers - 1)
            ctx.note(f"{self.layers} layers from {name} on are one: cosine {found:.3f}")
            place = min(place - self.interval, _deepest(best))
            share = self.timed(ctx, best, program) if self.latency is not None else macs(couple(best)) / whole
        if share > self.share:
            raise PassError(
                f"merge_layers: {self.share:g} is out of reach: with merges above a cosine of {self.least:g} "
                f"{share:.3g} is left; lower least, or give a larger share"
            )
        return best

    def _merged(self, program: Program, place: int) -> tuple[Program | None, str]:
        """The program with layers from this place on (counted over all stacks) merged; None where they do not fit."""
        found = stacks(program, couple(program))
        for stack in found:
            if place < len(stack):
                run = stack[place : place + self.layers]
                name = run[0].nodes[0].meta.get("custom", {}).get("origin", run[0].nodes[0].name)
                fits = len(run) == self.layers and not _returned(program, run)
                return (merged(program, run, self.rule) if fits else None), str(name)
            place -= len(stack)
        return None, ""


def merged(program: Program, run: Sequence[Layer], rule: Literal["sum", "last"]) -> Program:
    """A copy in which the first of these layers stands for all of them, shapes anew."""
    made, copies = copied(program)
    columns = list(zip(*(weights_of(layer) for layer in run), strict=True))
    for column in columns:
        node, first = column[0]
        if node.target in _PRODUCTS:
            values = [_value(program, read) for _, read in column]
            set_weight(made, copies[first], _taken(values, rule))
    copies[run[-1].leaves].replace_all_uses_with(copies[run[0].leaves])
    made.graph.graph.eliminate_dead_code(acts)
    return made.refreshed()


def _returned(program: Program, run: Sequence[Layer]) -> bool:
    """Whether the program returns a value of layers that would go, or the one that all but the last give."""
    inside = {n for layer in run for n in layer.nodes} - {run[-1].leaves}
    return bool(inside & set(program.outputs()))


def _taken(values: Sequence[Tensor], rule: str) -> Tensor:
    if rule == "last":
        return values[-1].clone()
    first = values[0].double()
    return (first + sum(v.double() - first for v in values[1:])).to(values[0].dtype)


def _value(program: Program, node: fx.Node) -> Tensor:
    found = weight(program, node)
    assert found is not None
    return found.detach()


def _deepest(program: Program) -> int:
    """The place of the last layer of all stacks."""
    return sum(map(len, stacks(program, couple(program)))) - 1


def _cosine(program: Program, data: Dataset, wanted: Sequence[Sequence[Tensor]]) -> float:
    """The mean cosine of all outputs of a sample to those wanted; -1 where one is no number."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch, right in zip(data, wanted, strict=True):
            pairs = [(f, w) for f, w in zip(program(*batch.inputs), right, strict=True) if w.is_floating_point()]
            mine, theirs = (torch.cat([p[i].flatten(1).double() for p in pairs], 1) for i in (0, 1))
            total += float(F.cosine_similarity(mine, theirs).sum())
            count += len(mine)
    found = total / max(1, count)
    return found if found == found else -1.0
