"""The training loop of distillation: seeded by step, so that a run that was killed goes on to the same weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgecompile.passes import _norms
from edgecompile.passes._answers import answers, pays
from edgecompile.passes._checkpoint import Checkpoint, State
from edgecompile.passes._ensemble import Ensemble
from edgecompile.passes._layerdrop import gated
from edgecompile.passes._samples import Samples, augmented
from edgecompile.passes._schedule import schedule, seeded
from edgecompile.passes._setting import Setting
from edgecompile.passes._taps import tapped
from edgecompile.passes._terms import Terms
from edgecompile.passes._trainable import gradients, laid_out, placed, running, trainable
from edgecompile.program import Program

Tell = Callable[[str, int, int], None]
Part = tuple[list[Tensor], Tensor | None, Tensor]
"""Inputs, targets where there are any, and which samples they are."""
_CLIP = 1.0
LOOKS = 8
"""How often the held-out samples are looked at."""
_BALANCE, _NORMS = 4, 16
"""Batches from which weights are balanced, and from which batch norms are measured."""
_ROLLBACKS = 3
_KNOWN = 5e8
"""Bytes of the teacher's outputs for the samples held out that are kept."""


class Training:
    """One run: the student is changed in place, and ends with the weights that did best on the held-out samples."""

    def __init__(
        self,
        student: Program,
        teachers: Sequence[Program],
        terms: Terms,
        samples: Samples,
        held: Samples,
        setting: Setting,
    ) -> None:
        self.student, self.sources, self.terms, self.setting = student, teachers, terms, setting
        self.samples, self.held = samples, held
        self.teacher = placed(Ensemble(teachers, terms.teacher_nodes), setting.device)
        placed(student.graph, setting.device)
        self.learner: nn.Module = tapped(student, terms.student_nodes, training=True)
        self.gates = gated(student, self.learner) if setting.layerdrop else None
        self.reader = tapped(student, terms.student_nodes)
        self.answers: list[Tensor] | None = None
        self.known: list[Any] = []
        self.trained = trainable(student)
        decayed = [w for w in self.trained.values() if w.dim() > 1]
        plain = [w for w in self.trained.values() if w.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": setting.decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=setting.rate)

    def run(self, folder: Path | None, tell: Tell) -> State:
        """Train; a checkpoint in the folder is gone on from, and kept there while this runs."""
        last = Checkpoint(self.all(), self.optimizer, folder, writes=not self.setting.rank)
        state = last.resumed() or State()
        if not state.weights:
            state.weights = self._balanced()
            self._look(state, measured=False)
            state.first_loss = state.best_loss
            self._look(state)
        if self.asks_once(self.setting.steps):
            self.answers = answers(lambda x: self._teach(x)[0], self.samples, self.setting.part, folder, tell)
        with gradients(self.trained.values()):
            self._shared()
            while state.step < self.setting.steps:
                if not self._advance(state):
                    self._back(state, last)
                    continue
                state.step += 1
                self._averages(state)
                tell("training", state.step, self.setting.steps)
                if state.step == self.setting.steps or state.step % self._every() == 0:
                    self._look(state)
                last.offer(state)
        for name, value in state.best.items():
            self.all()[name].data.copy_(value)
        return state

    def asks_once(self, steps: int) -> bool:
        """Whether the teacher is asked once for every sample, and not at every step."""
        setting = self.setting
        if setting.augment is not None or self.terms.teacher_nodes or setting.ranks > 1:
            return False
        return pays(steps * setting.batch, self.samples)

    def finish(self) -> None:
        """The student is where it was before, as it was laid out before."""
        placed(self.student.graph, "cpu", torch.contiguous_format)

    def try_out(self, steps: int) -> None:
        """So many steps as they will be, of which nothing is left; the first ones are slower."""
        state = State(weights=self._balanced())
        before = Checkpoint(self.all(), self.optimizer, None)
        with gradients(self.trained.values()):
            for _ in range(steps):
                self._advance(state)
                state.step += 1
        before.restore(state)

    def _every(self) -> int:
        return max(1, -(-self.setting.steps // LOOKS))

    def _advance(self, state: State) -> bool:
        """One step; false, with nothing changed, where the loss or a gradient is not finite."""
        setting, step = self.setting, state.step
        rate = setting.rate * state.scale * schedule(step, setting.steps, setting.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("own_rate", rate)
        self.optimizer.zero_grad(set_to_none=True)
        mine = self._parts(step)[setting.rank * setting.accumulate :][: setting.accumulate]
        fine = torch.ones((), device=setting.device)
        for number, (inputs, targets, index) in enumerate(mine, 1):
            with self._alone(number < len(mine)):
                self._prepare(step)
                taught = self._taught(inputs, index)
                parts = self.terms.values(taught, self._seen(self.learner, inputs), inputs, targets)
                loss = self._penalty(step) + sum(w * p for w, p in zip(state.weights, parts, strict=True))
                assert isinstance(loss, Tensor)
                (loss / len(mine)).backward()  # type: ignore[no-untyped-call]
            fine *= torch.isfinite(loss.detach())
        fine *= torch.isfinite(nn.utils.clip_grad_norm_(self.trained.values(), _CLIP))
        if setting.ranks > 1:
            torch.distributed.all_reduce(fine, torch.distributed.ReduceOp.MIN)
        if not bool(fine):
            return False
        self.optimizer.step()
        self._settle()
        return True

    def _prepare(self, step: int) -> None:
        """What chance decides for a step, before its samples go through."""
        if self.gates is not None:
            stays = torch.rand(len(self.gates), generator=seeded(self.setting.seed, 3, step)) >= self.setting.layerdrop
            self.gates.copy_(stays)

    def _penalty(self, step: int) -> Tensor | float:
        """What is added to the losses."""
        return 0.0

    def _settle(self) -> None:
        """What is done to the weights after a step."""

    def _shared(self) -> None:
        """With other workers: one module of which all gradients are means over the workers."""
        if self.setting.ranks > 1:
            self.learner = nn.parallel.DistributedDataParallel(self.learner, find_unused_parameters=True)

    def _alone(self, alone: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients that are added up here before the workers share them."""
        if alone and isinstance(self.learner, nn.parallel.DistributedDataParallel):
            return self.learner.no_sync()
        return contextlib.nullcontext()

    def _parts(self, step: int) -> list[Part]:
        """The samples of a step, as many at once as go through the student.

        Epochs are permutations, and what remains of one is left out.
        """
        setting = self.setting
        size = min(setting.batch, len(self.samples))
        epoch, place = divmod(step, len(self.samples) // size)
        order = torch.randperm(len(self.samples), generator=seeded(setting.seed, 1, epoch))
        index = order[place * size : (place + 1) * size]
        inputs, targets = self.samples.at(index)
        if setting.augment is not None:
            inputs = augmented(setting.augment, inputs, seeded(setting.seed, 2, step))
        inputs = [laid_out(t, setting.device) for t in inputs]
        targets = None if targets is None else targets.to(setting.device)
        each = size // (setting.ranks * setting.accumulate)
        cuts = [slice(i, i + each) for i in range(0, each * setting.ranks * setting.accumulate, each)]
        return [([t[c] for t in inputs], None if targets is None else targets[c], index[c]) for c in cuts]

    def _seen(self, module: nn.Module, inputs: Sequence[Tensor]) -> Any:
        with torch.autocast(self.setting.device.partition(":")[0], torch.bfloat16, enabled=self.setting.bfloat16):
            return module(*inputs)

    def _teach(self, inputs: Sequence[Tensor]) -> Any:
        with torch.no_grad():
            return self._seen(self.teacher, [laid_out(t, self.setting.device) for t in inputs])

    def _taught(self, inputs: Sequence[Tensor], index: Tensor) -> Any:
        """What the teacher says to these samples."""
        if self.answers is None:
            return self._teach(inputs)
        return [t[index].to(self.setting.device) for t in self.answers], []

    def ask(self) -> None:
        """What asking the teacher costs for a step."""
        for inputs, *_ in self._parts(0):
            self._teach(inputs)

    def look(self) -> None:
        """What a look costs, without anything that comes of it."""
        self._look(State(weights=[1.0] * len(self.terms.given)))

    def _look(self, state: State, measured: bool = True) -> None:
        """Measure the batch norms, and keep the weights if the held-out samples' loss is the least so far."""
        if self.setting.rank:
            return
        size = min(self.setting.batch, len(self.samples))
        with self._averaged(state):
            if measured:
                steps = range(min(_NORMS, len(self.samples) // size))
                _norms.measure(self.student, (inputs for i in steps for inputs, *_ in self._parts(i)))
            found = sum(w * p for w, p in zip(state.weights, self.held_out(), strict=True))
            if found < state.best_loss or not state.best:
                state.best_step, state.best_loss = state.step, found if math.isfinite(found) else math.inf
                state.best = {name: value.detach().clone() for name, value in self.all().items()}

    def _averages(self, state: State) -> None:
        """The averages after one more step; in the first steps they hold on to less, as there is less to average."""
        if not self.setting.ema:
            return
        part = 1 - min(self.setting.ema, (1 + state.step) / (10 + state.step))
        before = state.average or {name: value.detach() for name, value in self.trained.items()}
        state.average = {n: torch.lerp(before[n], value.detach(), part) for n, value in self.trained.items()}

    @contextlib.contextmanager
    def _averaged(self, state: State) -> Iterator[None]:
        """The student has the averages as its weights, where there are any."""
        own = {name: value.detach().clone() for name, value in self.trained.items()} if state.average else {}
        for name in own:
            self.trained[name].data.copy_(state.average[name])
        yield
        for name, value in own.items():
            self.trained[name].data.copy_(value)

    def held_out(self) -> list[float]:
        """Each term's mean over the samples held out, with the weights as they are."""
        sums, count = [0.0] * len(self.terms.given), 0
        with torch.no_grad():
            for number, (inputs, targets) in enumerate(self.held.batches(self.setting.part)):
                given = [laid_out(t, self.setting.device) for t in inputs]
                told = None if targets is None else targets.to(self.setting.device)
                taught = self.known[number] if number < len(self.known) else self.teacher(*given)
                if number == len(self.known) and not self.terms.teacher_nodes and _small(taught[0], self.held):
                    self.known.append(taught)
                parts = self.terms.values(taught, self.reader(*given), given, told)
                sums = [total + len(inputs[0]) * float(part) for total, part in zip(sums, parts, strict=True)]
                count += len(inputs[0])
        return [total / max(1, count) for total in sums]

    def _balanced(self) -> list[float]:
        """The weights of the terms: those given, the others such that all gradients are as long as the first's."""
        given = self.terms.given
        if len(given) == 1 or all(w is not None for w in given):
            return [1.0 if w is None else w for w in given]
        norms = [0.0] * len(given)
        with gradients(self.trained.values()):
            for i in range(_BALANCE):
                inputs, targets, _ = self._parts(i)[0]
                parts = self.terms.values(self._teach(inputs), self._seen(self.reader, inputs), inputs, targets)
                for place, part in enumerate(parts):
                    found = torch.autograd.grad(
                        part, list(self.trained.values()), retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                    norms[place] += float(torch.stack([g.float().norm() for g in found]).norm())
        first = next((n for n in norms if n > 0 and math.isfinite(n)), 1.0)
        return [
            w if w is not None else first / n if n > 0 and math.isfinite(n) else 1.0
            for w, n in zip(given, norms, strict=True)
        ]

    def _back(self, state: State, last: Checkpoint) -> None:
        """To the last checkpoint, at half the rate."""
        at = state.step
        state.rollbacks += 1
        if state.rollbacks > _ROLLBACKS:
            state.said.append(f"stopped at step {at + 1}: the loss was not finite there {_ROLLBACKS + 1} times")
            state.step = self.setting.steps
            return
        last.restore(state)
        state.scale /= 2
        state.said.append(f"the loss was not finite at step {at + 1}: back to step {state.step}, at half the rate")

    def all(self) -> dict[str, Tensor]:
        """Everything that training changes: weights, and what batch norms remember."""
        return {**self.trained, **running(self.student)}


def _small(outputs: Sequence[Tensor], held: Samples) -> bool:
    """Whether what the teacher says to the samples held out may be kept."""
    rows = max(1, len(outputs[0])) if outputs and outputs[0].dim() else 1
    return sum(t.numel() * t.element_size() for t in outputs) / rows * len(held) < _KNOWN
