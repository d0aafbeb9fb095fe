"""Pass, Context and PassManager: what a pass is, all it may see, and how a pipeline of them is run."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

from edgecompile.errors import EdgeCompileError, PassError, SpecError, near
from edgecompile.program import Program, drop_dead
from edgecompile.reference import load_function
from edgecompile.spec import Call, make, options_of, parse_calls, show_calls

if TYPE_CHECKING:
    from edgecompile.data import Dataset
    from edgecompile.device import DeviceProfile
    from edgecompile.measure import Interval
    from edgecompile.target import Target


@dataclass(frozen=True)
class Context:
    """All that a pass may look at besides its program; a fresh one for each pass.

    `drop` builds a program for the target, runs it on the evaluation data and says how many percent points of the
    score it loses against the teacher; it takes seconds to minutes. `max_drop` is what the budget allows. `share` says
    what part of another program's latency one takes on the target, measured or predicted; it takes seconds. `contest`
    says the same of the fastest of several runtimes, where the build emits for several: it takes a minute. `ms` says it
    in milliseconds, and `rest` are the passes behind this one. `work` is a folder for what a run that is killed goes
    on from. `decide` gives the recorded choice of a name, or finds and records one. `tell` says how far a pass is.
    `without` are lossy passes behind this one that are left out, by name, and why; `sized`: the size has a budget too.
    """

    teacher: Program
    device: DeviceProfile | None = None
    target: Target | None = None
    calib: Dataset | None = None
    train: Dataset | None = None
    seed: int = 0
    max_drop: float | None = None
    drop: Callable[[Program], float] | None = None
    share: Callable[[Program, Program], float] | None = None
    contest: Callable[[Program, Program], float] | None = None
    ms: Callable[[Program], float] | None = None
    rest: tuple[Pass, ...] = ()
    work: Path | None = None
    decide: Callable[[str, Callable[[], str]], str] = lambda name, find: find()
    tell: Callable[[str, int, int], None] = lambda what, done, total: None
    stats: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    without: dict[str, str] = field(default_factory=dict)
    sized: bool = False

    def count(self, name: str, by: int = 1) -> None:
        """Add to a number that the report shows: `folded=3`."""
        self.stats[name] = self.stats.get(name, 0) + by

    def note(self, text: str) -> None:
        """A remark for the report: `conv2d_1 kept: its result is used twice`."""
        self.notes.append(text)


@dataclass(frozen=True)
class Pass(ABC):
    """One rewriting of a program. Subclasses are frozen dataclasses whose fields are the options of the pipeline text.

    A pass owns the program that it is given: it may edit it in place, and returns what the next pass gets. It never
    calls `.train()`, keeps no state, and takes randomness from `ctx.seed` only. `keep=always` keeps a lossy pass
    that does not pay on the target.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False
    typed: ClassVar[bool] = False
    """An exact pass that edits its program in place and makes nodes by `rewrite.call` alone, which keeps their types:
    a run of such passes is retraced once, behind the last."""

    shapes: ClassVar[bool] = False
    """It decides what is left of a program, rather than how that is computed."""
    heals: ClassVar[bool] = False
    """It changes weights alone and sees to it itself that they get better: it is not asked whether it is faster."""

    integers: ClassVar[bool] = False
    """Its sums are of integers behind it."""

    @property
    def times(self) -> bool:
        """Whether it asks how long programs take: those answers are recorded one by one, so that its result is not
        kept in the cache, where it would hide them and stand for another device."""
        return False

    def settled(self, program: Program, ctx: Context) -> Pass:
        """The pass with what it finds by timing made a number, a recorded decision: its result is fixed then."""
        return self

    keep: Literal["if_it_pays", "always"] = field(default="if_it_pays", kw_only=True)

    @abstractmethod
    def run(self, program: Program, ctx: Context) -> Program:
        """The rewritten program; raises `PassError` when the options ask for what this program cannot give."""


@dataclass(frozen=True)
class Price:
    """What a program costs on the target: `latency_ms` and `score` (percent) are None where nobody can say.

    `kind` says how the latency came about.
    """

    latency_ms: Interval | None
    size_bytes: int | None
    score: float | None
    kind: Literal["measured", "predicted", "unvalidated"] = "measured"


class Pricer(Protocol):
    """Builds programs for the target and says what they cost there; implemented by the build."""

    def price(self, before: Program, after: Program, lossy: bool) -> tuple[Price | None, Price, bool, str]:
        """Both prices, taken side by side, whether `after` is worth keeping, and why; None where nobody can say."""


@dataclass(frozen=True)
class Step:
    """One pass, or one run of exact passes, as it went. `kept` is false where it was undone, for `reason`."""

    passes: tuple[Pass, ...]
    changed: bool
    kept: bool
    reason: str
    seconds: float
    nodes: int
    before: Price | None
    after: Price | None
    stats: Mapping[str, float]
    notes: tuple[str, ...]


Observer = Callable[[int, Pass, Program], None]
"""Called with the number of the pass (from 1), the pass, and the program that it left; never changes it."""


@dataclass(frozen=True)
class PassManager:
    """Runs passes in order: pass, retrace, same interface, price, keep or undo."""

    passes: tuple[Pass, ...]
    observers: tuple[Observer, ...] = ()
    apply: Callable[[Pass, Program, Context], Program] = lambda one, program, ctx: one.run(program, ctx)
    """How one pass is run; a build puts its cache here."""

    def run(
        self,
        program: Program,
        context: Context,
        pricer: Pricer | None = None,
        begun: tuple[Program, Step] | None = None,
    ) -> tuple[Program, list[Step]]:
        """The last program and how each step went; the caller's program is never changed.

        `begun` is what `begin` has made of the same program: it is priced, not run again.
        """
        result, first = begun or self.begin(program, context)
        program, first = _priced(program, result, first, pricer)
        steps = [first] if first.passes else []
        index = len(first.passes)
        context = replace(context, without={})  # which all passes fill
        while index < len(self.passes):
            group = self._group(index)
            if group[0].name in context.without and group[0].keep != "always":
                why, nodes = context.without[group[0].name], len(program.graph.graph.nodes)
                steps.append(Step(group, False, False, why, 0.0, nodes, None, None, {}, ()))
                index += 1
                continue
            result, step = self._step(index, group, program, context)
            program, step = _priced(program, result, step, pricer)
            steps.append(step)
            index += len(group)
        return program, steps

    def begin(self, program: Program, context: Context) -> tuple[Program, Step]:
        """The leading exact passes alone, without a price; nothing happens where the first one is lossy."""
        leading = self._group(0) if self.passes and self.passes[0].exact else ()
        return self._step(0, leading, program, context)

    def _group(self, index: int) -> tuple[Pass, ...]:
        """The run of exact passes that begins here, or the one lossy pass."""
        end = index
        while end < len(self.passes) and self.passes[end].exact:
            end += 1
        return self.passes[index : max(end, index + 1)]

    def _step(self, index: int, group: tuple[Pass, ...], program: Program, context: Context) -> tuple[Program, Step]:
        started = time.monotonic()
        ctx = replace(context, stats={}, notes=[], rest=self.passes[index + len(group) :])
        result, changed, pending = program, False, False
        own: Program | None = None  # a copy of the result, or the result itself while typed passes edit it
        for offset, one in enumerate(group):
            with self._told(index + offset):
                if one.typed:
                    own = own or result.clone()
                    if self._edit(one, own, ctx):
                        result, changed, pending = own, True, True
                else:
                    own = own if own is not None and own is not result else result.clone()
                    if (made := self._apply(one, result, own, ctx)) is not None:
                        result, own, changed, pending = made, None, True, False
                if result.interface != program.interface:
                    raise RuntimeError(
                        f"{self._place(index + offset)} changed the interface from {program.interface} "
                        f"to {result.interface}"
                    )
            for observer in self.observers:
                observer(index + offset + 1, one, result)
        if pending:
            with self._told(index + len(group) - 1):
                result = result.retraced()
        step = Step(
            group, changed, True, "" if changed else "nothing to do", time.monotonic() - started,
            len(result.graph.graph.nodes), None, None, dict(ctx.stats), tuple(ctx.notes),
        )  # fmt: skip
        return result, step

    def _edit(self, one: Pass, program: Program, ctx: Context) -> bool:
        """A typed pass on the program itself, not retraced yet; whether it changed anything."""
        before, weights = str(program), program.weights()
        written = {name: w._version for name, w in weights.items()}
        result = self.apply(one, program, ctx)
        if result is not program:
            raise RuntimeError(f"{one.name} is typed and must edit its program in place")
        drop_dead(program.graph)
        after = program.weights()
        same = after.keys() == weights.keys() and all(
            w is weights[name] and w._version == written[name] for name, w in after.items()
        )
        return str(program) != before or not same

    def _apply(self, one: Pass, program: Program, own: Program, ctx: Context) -> Program | None:
        """Any other pass on a copy, retraced; None when it changed nothing."""
        before = _state(program)
        result = self.apply(one, own, ctx)
        if _state(result) == before and _shares_values(program, result):
            return None
        return result.retraced()

    @contextmanager
    def _told(self, index: int) -> Iterator[None]:
        """Errors say in which pass they were raised."""
        try:
            yield
        except EdgeCompileError as error:
            error.args = (f"{error} (in {self._place(index)})", *error.args[1:])
            raise
        except Exception as error:
            error.add_note(f"in {self._place(index)}")
            raise

    def _place(self, index: int) -> str:
        rest = show(self.passes[index:])
        return f"pass {index + 1} of {len(self.passes)}; --pipeline '{rest}' runs from there"


def _priced(program: Program, result: Program, step: Step, pricer: Pricer | None) -> tuple[Program, Step]:
    """A step with its prices; `program` again where it is lossy and does not pay."""
    if pricer is None or not step.changed:
        return result, step
    started = time.monotonic()
    lossy = not all(p.exact or p.heals for p in step.passes)
    before, after, pays, why = pricer.price(program, result, lossy)
    keep = pays or not lossy or step.passes[0].keep == "always"
    reason = f"kept although {why}" if keep and not pays else why
    seconds = step.seconds + time.monotonic() - started
    return result if keep else program, replace(
        step, kept=keep, reason=reason, seconds=seconds, before=before, after=after
    )


def _state(program: Program) -> tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    return str(program), tuple((name, tuple(w.shape)) for name, w in program.weights().items())


def _shares_values(one: Program, two: Program) -> bool:
    import torch

    others = two.weights()
    return all(torch.equal(w, others[name]) for name, w in one.weights().items())


def parse(text: str, known: Mapping[str, str | type[Pass]]) -> tuple[Pass, ...]:
    """Pipeline text to passes; raises `SpecError` for unknown names and options, with near spellings."""
    return tuple(parse_one(call, known, "pipeline") for call in parse_calls(text))


def parse_one(call: Call, known: Mapping[str, Any], what: str) -> Any:
    """One word with its options to an object of the class that a table (`name -> "module:Class"`) or name gives."""
    entry = known.get(call.name)
    if entry is None:
        raise SpecError(f"{what}: unknown word {call.name!r} at character {call.column + 1}{near(call.name, known)}")
    cls = load_function(entry) if isinstance(entry, str) else entry
    return make(cls, call.options, f"{what}: {call.name}")


def show(passes: Iterable[Pass]) -> str:
    """The pipeline text that `parse` reads back to the same passes."""
    return show_calls(Call(p.name, options_of(p)) for p in passes)


def check_data(passes: Sequence[Pass], calib: Dataset | None, train: Dataset | None = None) -> None:
    """Fail before minutes are spent when a pass will want data that nobody gave."""
    for what, flag, data in (("calib", "calibration", calib), ("train", "training", train)):
        wanting = [p.name for p in passes if cast(bool, getattr(p, f"needs_{what}", False))]
        if wanting and data is None:
            raise PassError(
                f"{', '.join(wanting)}: needs {flag} data: give --{what} with images, an .npz or module:function"
            )
