"""The terms of a distillation: which values each loss gets, read from the text of its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from edgecompile.data import Interface
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import parse_one
from edgecompile.passes._taps import Pair, attentions, features
from edgecompile.passes.losses import LOSSES
from edgecompile.passes.losses._loss import Loss
from edgecompile.program import Program
from edgecompile.reference import is_function, load_function
from edgecompile.spec import parse_calls

Seen = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Outputs, and the values of the tapped nodes."""
_PAIRS = 4


@dataclass(frozen=True)
class Own:
    """A loss of the user's own: a function of (student outputs, teacher outputs, targets) to a scalar."""

    name: str
    function: Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | None], Tensor]
    weight: float | None = None


def parse_losses(text: str) -> tuple[Loss | Own, ...]:
    """`kl(temperature=4), mse(weight=0.5)`, or `module:function`; raises `SpecError` with near spellings."""
    if is_function(text):
        return (Own(text, load_function(text)),)
    found = tuple(parse_one(call, LOSSES, "losses") for call in parse_calls(text, "losses"))
    if not found:
        raise SpecError(f"losses: none is named; there are {', '.join(LOSSES)}, and module:function")
    return found


@dataclass(frozen=True)
class Terms:
    """Losses with the pairs of nodes that they look at, and the input that says which tokens count."""

    losses: tuple[Loss | Own, ...]
    features: tuple[Pair, ...]
    attentions: tuple[Pair, ...]
    mask: int | None
    floats: tuple[int, ...]
    text: str
    labelled: bool

    @staticmethod
    def of(student: Program, teacher: Program, text: str, labelled: bool) -> Terms:
        """Losses by their text; raises `PassError` for those that find nothing of what they look at."""
        losses = parse_losses(text)
        asked = {one.sees for one in losses if isinstance(one, Loss)}
        seen = tuple(features(student, teacher, _PAIRS)) if "features" in asked else ()
        looks = tuple(attentions(student, teacher, _PAIRS)) if "attention" in asked else ()
        classes = Interface.of(student).classes
        first: Any = student.outputs()[0].meta.get("val")
        wrong = []
        for one in losses:
            if not isinstance(one, Loss):
                continue
            if one.sees == "features" and not seen:
                wrong.append(f"{one.name}: teacher and student have no value between layers in common")
            if one.sees == "attention" and not looks:
                wrong.append(f"{one.name}: teacher and student have no attention in common")
            if one.sees == "classes" and not (isinstance(first, Tensor) and first.is_floating_point()):
                wrong.append(f"{one.name}: the first output is no table of classes: use outputs")
            if one.sees == "labels" and (classes is None or not labelled):
                wrong.append(f"{one.name}: needs one class a sample, in the training data and in the first output")
        if wrong:
            raise PassError(f"distill: {'; '.join(wrong)}")
        floats = [i for i, n in enumerate(student.outputs()) if n.meta["val"].is_floating_point()]
        return Terms(losses, seen, looks, _mask_of(student), tuple(floats), text, labelled)

    @property
    def given(self) -> list[float | None]:
        """The weights that were given."""
        return [one.weight for one in self.losses]

    @property
    def student_nodes(self) -> list[fx.Node]:
        """What is seen of the student beside its outputs."""
        return [p.student for p in (*self.features, *self.attentions)]

    @property
    def teacher_nodes(self) -> list[fx.Node]:
        """What is seen of the teacher beside its outputs."""
        return [p.teacher for p in (*self.features, *self.attentions)]

    def values(self, taught: Seen, found: Seen, inputs: Sequence[Tensor], targets: Tensor | None) -> list[Tensor]:
        """Each loss, a scalar."""
        outputs = ([found[0][i].float() for i in self.floats], [taught[0][i].float() for i in self.floats])
        cut = len(self.features)
        between = ([v.float() for v in found[1][:cut]], self._picked(self.features, taught[1][:cut]))
        looks = ([v.float() for v in found[1][cut:]], self._picked(self.attentions, taught[1][cut:]))
        made = []
        for one in self.losses:
            if isinstance(one, Own):
                made.append(self._own(one, found[0], taught[0], targets))
            elif one.sees == "labels":
                assert targets is not None
                made.append(one.of(outputs[0][:1], [targets], [None]))
            else:
                groups = {"features": between, "attention": looks, "outputs": outputs}
                mine, theirs = groups.get(one.sees, (outputs[0][:1], outputs[1][:1]))
                made.append(one.of(mine, theirs, [self._masked(v, inputs) for v in mine]))
        return made

    def _own(self, one: Own, mine: Sequence[Tensor], theirs: Sequence[Tensor], targets: Tensor | None) -> Tensor:
        value = one.function(mine, theirs, targets)
        if not isinstance(value, Tensor) or value.dim():
            signature = inspect.signature(one.function)
            raise PassError(f"distill: {one.name}{signature} must return a scalar tensor")
        return value

    def _picked(self, pairs: Sequence[Pair], values: Sequence[Tensor]) -> list[Tensor]:
        return [pair.of(value.float()) for pair, value in zip(pairs, values, strict=True)]

    def _masked(self, value: Tensor, inputs: Sequence[Tensor]) -> Tensor | None:
        """The tokens that count, where the value has one row a token."""
        if self.mask is None:
            return None
        mask = inputs[self.mask]
        place = 2 if value.dim() == 4 else 1
        if value.dim() < 3 or mask.shape[0] != value.shape[0] or mask.shape[1] != value.shape[place]:
            return None
        return mask.to(torch.float32)


def _mask_of(program: Program) -> int | None:
    """The input that says which tokens count: whole numbers [batch, positions], called a mask."""
    for i, (name, example) in enumerate(zip(program.input_names, program.inputs, strict=True)):
        if "mask" in name and example.dim() == 2 and not example.is_floating_point():
            return i
    return None
