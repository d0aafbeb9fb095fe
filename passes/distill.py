"""Distillation: what is left of a teacher is trained to answer as the teacher does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

from edgecompile.data import Interface, digest_of
from edgecompile.errors import PassError, SpecError
from edgecompile.measure import machine
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes import _norms
from edgecompile.passes._checkpoint import State
from edgecompile.passes._each import Each
from edgecompile.passes._exits import settle_heads, ways
from edgecompile.passes._norms import Inserted
from edgecompile.passes._own_network import own_network
from edgecompile.passes._samples import Samples, augmentation, gather
from edgecompile.passes._setting import Setting
from edgecompile.passes._terms import Terms, parse_losses
from edgecompile.passes._training import LOOKS, Training
from edgecompile.passes._workers import Crew, train
from edgecompile.program import Program
from edgecompile.reference import is_function
from edgecompile.rewrite import aten
from edgecompile.spec import parse_duration

_HELD, _MOST_HELD = 0.05, 1024
_EPOCHS, _LEAST_STEPS = 4, 600
_RATES = {"normed": 1e-2, "plain": 3e-4}
_TRIED = 6
_HEAD, FITTED_ON = 0.3, 512
"""What an auxiliary head weighs, and the samples on which heads are fitted before anything is trained."""


@dataclass(frozen=True)
class Distill(Pass):
    """Train the program on `--train` data to give what the teacher gives; it is as fast as before.

    Before: `%conv2d_1 = conv2d(%relu, w: float32[40, 32, 3, 3], b)`, cut by `prune`, say

    After: the same, with other numbers in `w` and `b`

    The student came from its teacher, so values between layers pair themselves (`losses=mse` and others), and where
    channels were cut, the teacher's are picked. `losses` is a list such as `kl(temperature=4), mse(weight=0.5)`, or
    `module:function` of (student outputs, teacher outputs, targets); terms without a weight are balanced by the norms
    of their gradients. By default classes are compared by `kl`, with `labels(weight=0.5)` where there are labels, and
    other outputs by `outputs`.

    Batch norms that were folded are put back behind their convolutions while this lasts. `steps`, `epochs` or `time`
    (`10m`, made a number of steps once) say how long; `augment` is `flip,shift=4` or a function of your own. Some of
    the data is held out, and the weights that did best on it are kept, those of before included. AdamW, a warm-up and a
    half cosine. Checkpoints are kept in the cache's folder: a build that was killed goes on from the last.

    `workers` processes share each batch (one a GPU with `device=cuda`), on several `machines` that reach the cache's
    folder and meet at `meet=HOST:PORT`; one that is lost is started again with the others, from the checkpoint.
    `accumulate` puts a batch through in so many parts. With `ema=0.999` the weights that are kept are averages over the
    steps. `layerdrop=0.2` leaves each layer's residual branches out in a fifth of the steps, by chance, so that
    `drop_layers` can leave them out for good later. `teachers="a.py:make; b.py:make"` teach too: the student is to give
    the mean of all their probabilities (of other outputs the mean); what lies between layers is the teacher's own. With
    `heads=2` as many places on the way have auxiliary heads that learn the same, and are gone afterwards.

    Refuses: no training data, losses that find nothing to compare.
    """

    name: ClassVar[str] = "distill"
    needs_train: ClassVar[bool] = True
    heals: ClassVar[bool] = True

    losses: str = ""
    epochs: float | None = None
    steps: int | None = None
    time: str | None = None
    batch: int = 128
    rate: float | None = None
    decay: float = 0.01
    augment: str = ""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "cpu"
    workers: int = 1
    machines: int = 1
    meet: str = ""
    accumulate: int = 1
    ema: float = 0.0
    layerdrop: float = 0.0
    teachers: str = ""
    heads: int = 0

    def __post_init__(self) -> None:
        if sum(v is not None for v in (self.epochs, self.steps, self.time)) > 1:
            raise SpecError("give one of epochs, steps and time")
        if self.epochs is not None and not 0 <= self.epochs < 1e6:
            raise SpecError(f"epochs={self.epochs:g}: a number from 0 up")
        if self.steps is not None and self.steps < 0:
            raise SpecError(f"steps={self.steps}: a number from 0 up")
        if self.batch < 2:
            raise SpecError(f"batch={self.batch}: 2 is the least")
        if min(self.workers, self.machines, self.accumulate) < 1:
            raise SpecError("workers, machines and accumulate are 1 or more")
        if self.batch % self._share:
            raise SpecError(f"batch={self.batch}: workers and accumulate share it: give a multiple of {self._share}")
        if (self.machines > 1) != bool(self.meet):
            raise SpecError("machines and meet go together: meet=HOST:PORT is where the first of them listens")
        if self.rate is not None and not 0 < self.rate < 1e3:
            raise SpecError(f"rate={self.rate:g}: a learning rate is above 0")
        for name in filter(None, map(str.strip, self.teachers.split(";"))):
            if not is_function(name):
                raise SpecError(f"teachers={name}: expected module:function or file.py:function, several behind ;")
        if self.heads < 0 or (self.heads and self.workers * self.machines > 1):
            raise SpecError("heads is 0 or more, and they are trained by one worker")
        if not 0 <= self.ema < 1 or not 0 <= self.layerdrop < 1:
            raise SpecError("ema and layerdrop lie between 0 and 1")
        if self.decay < 0:
            raise SpecError(f"decay={self.decay:g}: 0 or more")
        if self.time is not None:
            parse_duration(self.time, "time")
        if self.losses:
            parse_losses(self.losses)
        augmentation(self.augment)

    def settled(self, program: Program, ctx: Context) -> Distill:
        """A time made a number of steps by timing some; the number is recorded."""
        if self.time is None:
            return self
        name = f"steps:{self.time}:{digest_of(program)[:12]}"
        return replace(self, time=None, steps=int(ctx.decide(name, lambda: str(self._fitting(program.clone(), ctx)))))

    def run(self, program: Program, ctx: Context) -> Program:
        """The trained program, or the same where training made nothing better; see the class."""
        if self.time is not None:
            return self.settled(program, ctx).run(program, ctx)
        if not self.heads or ctx.train is None:
            self.trained(program, ctx)
            return program
        found = ways("distill: heads", program, self.heads)
        settle_heads(found, (ctx.calib or ctx.train).take(FITTED_ON))
        self.trained(found.program, ctx)
        return found.ending(-1)

    def trained(
        self, program: Program, ctx: Context, looked_at: bool = False, make: Callable[..., Training] = Training
    ) -> list[float]:
        """Train in place; each term's mean over the samples held out, where that is to be looked at."""
        with TemporaryDirectory(prefix="edgecompile-distill-") as text:
            training, inserted = self._ready(program, ctx, Path(text), make)
            state = self._trained(training, ctx, ctx.work or Path(text))
            left = training.held_out() if looked_at else []
            training.finish()
            _norms.fold(program, inserted)
        ctx.stats["batch_norms"] = len(inserted)
        ctx.stats["steps"] = state.step
        ctx.stats["loss"] = round(state.first_loss, 5)
        ctx.stats["loss_after"] = round(state.best_loss, 5)
        for line in state.said:
            ctx.note(line)
        if state.best_step == 0 and state.step:
            ctx.note("training made nothing better on the samples held out: the weights are those of before")
        return left

    @property
    def _share(self) -> int:
        """How many parts a batch has."""
        return self.workers * self.machines * self.accumulate

    def _trained(self, training: Training, ctx: Context, folder: Path) -> State:
        """Training here, or by a crew of workers."""
        crew = Crew(self.workers, self.machines, self.meet)
        if crew.ranks == 1:
            return training.run(ctx.work, ctx.tell)
        training.finish()
        return train(training, crew, self.augment, folder, ctx.tell)

    def _ready(
        self, program: Program, ctx: Context, folder: Path, make: Callable[..., Training] = Training
    ) -> tuple[Training, list[Inserted]]:
        """Everything in its place for the first step; the program has its batch norms."""
        if ctx.train is None:
            raise PassError(f"{self.name}: needs training data: give --train with images, an .npz or module:function")
        samples = gather(ctx.train, folder)
        cut = len(samples) - min(_MOST_HELD, max(1, int(len(samples) * _HELD)))
        size = (program.batch or min(self.batch, cut) // self._share) * self._share
        if cut < max(size, 2) or size < 1 or (program.batch is not None and len(samples) - cut < size):
            fixed = f", and the program takes batches of {size} only" if program.batch is not None else ""
            raise PassError(
                f"{self.name}: {ctx.train.name} has {len(samples)} samples, of which some are held out{fixed}"
            )
        learned, held = samples.part(0, cut), samples.part(cut, len(samples))
        each = size // self._share
        batches = [learned.part(i, i + each).inputs for i in range(0, min(cut, 4 * size) - each + 1, each)]
        inserted = _norms.insert(program, _norms.candidates(program, ctx.teacher), batches)
        normed = bool(inserted) or any(n.target is aten.batch_norm.default for n in program.graph.graph.nodes)
        setting = Setting(
            steps=self._steps(cut // size),
            batch=size,
            rate=self.rate or _RATES["normed" if normed else "plain"],
            seed=ctx.seed,
            bfloat16=self._bfloat16(),
            decay=self.decay,
            augment=augmentation(self.augment),
            device=self.device,
            accumulate=self.accumulate,
            ema=self.ema,
            layerdrop=self.layerdrop,
        )
        terms = self._terms(program, ctx, _labelled(program, samples))
        return make(program, self._teachers(ctx), terms, learned, held, setting), inserted

    def _teachers(self, ctx: Context) -> list[Program]:
        """The teacher, and the others that were named."""
        names = [n.strip() for n in self.teachers.split(";") if n.strip()]
        return [ctx.teacher, *(own_network("distill", name, "", ctx.teacher) for name in names)]

    def _terms(self, program: Program, ctx: Context, labelled: bool) -> Terms:
        own = self.own_terms(program, ctx, labelled)
        outputs = len(ctx.teacher.output_names)
        count = len(program.output_names) // outputs
        return own if count == 1 else Each.made("distill: heads", own, outputs, (1.0, *[_HEAD] * (count - 1)))

    def own_terms(self, program: Program, ctx: Context, labelled: bool) -> Terms:
        """The losses by their text, or those that suit the outputs."""
        text = self.losses
        if not text:
            text = "kl" if (classes := Interface.of(program).classes is not None) else "outputs"
            text += ", labels(weight=0.5)" if classes and labelled else ""
            ctx.note(f"losses: {text}")
        return Terms.of(program, ctx.teacher, text, labelled)

    def _steps(self, epoch: int) -> int:
        if self.steps is not None:
            return self.steps
        return max(_EPOCHS * epoch, _LEAST_STEPS) if self.epochs is None else round(self.epochs * epoch)

    def _fitting(self, program: Program, ctx: Context) -> int:
        """How many steps the time allows, looks at the held-out samples included."""
        program = ways("distill: heads", program, self.heads).program if self.heads else program
        with TemporaryDirectory(prefix="edgecompile-distill-") as text:
            training, _ = self._ready(program, replace(ctx, stats={}, notes=[]), Path(text))
            each = _seconds(lambda: training.try_out(_TRIED)) / _TRIED
            left = parse_duration(self.time or "", "time") - LOOKS * _seconds(training.look)
            steps = max(1, int(left / each))
            if training.asks_once(steps):  # then a step takes less, and asking comes before
                asking = _seconds(training.ask)
                left -= asking * len(training.samples) / training.setting.batch
                steps = max(steps, int(left / max(each - asking, each / 10)))
            return steps

    def _bfloat16(self) -> bool:
        """Whether products are in bfloat16: where the processor has it, unless said otherwise."""
        if self.precision != "auto":
            return self.precision == "bfloat16"
        if self.device != "cpu":
            return True
        flags = machine()["flags"]
        return isinstance(flags, list) and any("bf16" in str(f) for f in flags)


def _seconds(run: Callable[[], object]) -> float:
    began = time.monotonic()
    run()
    return time.monotonic() - began


def _labelled(program: Program, samples: Samples) -> bool:
    """Whether the targets are a class a sample; raises `PassError` for classes that the program does not have."""
    targets, classes = samples.targets, Interface.of(program).classes
    if targets is None or targets.dim() != 1 or targets.is_floating_point() or classes is None:
        return False
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise PassError(f"distill: labels go from {low} to {high}, and the model has classes 0 to {classes - 1}")
    return True
