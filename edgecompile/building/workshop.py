"""The workshop of a build: programs made into artifacts, run, scored and timed side by side, each of them once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgecompile.building import predicted
from edgecompile.building.fixed import at_batch
from edgecompile.building.outputs import cached_outputs
from edgecompile.building.predicted import Predict
from edgecompile.building.sizes import paired_drop, size_of
from edgecompile.data import Dataset, Outputs, Score, Scored, Truth, digest_of, outputs, score_outputs
from edgecompile.errors import TargetError
from edgecompile.measure import (
    Drop,
    Interval,
    Samples,
    fingerprint,
    median_ms,
    ratio,
    settle,
    verdict,
)
from edgecompile.pass_manager import Price
from edgecompile.program import Program
from edgecompile.report import Figure
from edgecompile.store import Cache, file_hash, key
from edgecompile.target import Artifact, Run, Target, loaded

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
_EMITTED = 6
"""Raised with every change of what targets leave in a folder: cached ones of before are not used."""
_ROUGHLY = 1.0
"""Seconds that choices are timed, unless the fewest rounds take longer."""
_WORTH = 0.9
"""A lossy pass that is not faster must at least make the artifact this much smaller, when a size budget asks."""


@dataclass(frozen=True)
class Built:
    """An artifact in its runtime; `call` is what is timed, `score` and `found` are None without evaluation data.

    `stands_in`: its own runtime is not here, and `run` is another's reading of the same graph.
    """

    digest: str
    artifact: Artifact
    run: Run | None
    call: Callable[[], object] | None
    size_bytes: int
    stands_in: bool = False
    scored: Scored | None = None
    found: Outputs | None = None


@dataclass
class Workshop:
    """Emits, loads, scores and times programs for one target at one batch, and remembers what it made."""

    target: Target
    cache: Cache
    batch: int
    threads: int
    seed: int
    versions: Mapping[str, str]
    metadata: Mapping[str, str]
    evaluate: Dataset | None
    score: Score | None
    teacher: Outputs | None
    size_budget: bool = False
    decisions: dict[str, str] = field(default_factory=dict)
    replay: Mapping[str, str] = field(default_factory=dict)
    progress: Progress | None = None
    predict: Predict | None = None
    _made: dict[str, Built] = field(default_factory=dict)
    _fixed: dict[int, tuple[Program, Program]] = field(default_factory=dict)
    truth: Truth = field(default_factory=lambda: Truth([], []))

    def fixed(self, program: Program) -> Program:
        """The program at the batch that is emitted, made once; read it, never change it."""
        if id(program) not in self._fixed:
            self._fixed[id(program)] = program, at_batch(program, self.batch)
        return self._fixed[id(program)][1]

    def build(self, program: Program) -> Built:
        """The program as an artifact of the target, emitted once for each content."""
        digest = digest_of(program)
        if digest not in self._made:
            self._made[digest] = self._scored(self._loaded(digest, self.fixed(program)))
        return self._made[digest]

    def share(self, program: Program, of: Program, other: Workshop | None = None) -> float:
        """What part of another program's latency one takes: measured (a recorded decision) or predicted, not scored.

        The first may be of another workshop of this machine, for another target.
        """
        if self.predict is not None:
            return float(self.predict(program).value / self.predict(of).value)
        there = other or self
        name = ":".join(["share", *([there.target.name] if other else []), *(digest_of(p)[:12] for p in (program, of))])
        if (decided := self.decided(name)) is None:
            samples = self._compared(self._timed(of), there._timed(program), patient=False)
            decided = f"{ratio(samples['after'], samples['before']).value:.4f}"
        return float(self.decide(name, decided))

    def ms(self, program: Program) -> float:
        """Milliseconds of a program: predicted, or measured (a recorded decision); not scored."""
        if self.predict is not None:
            return float(self.predict(program).value)
        name = f"ms:{digest_of(program)[:12]}"
        if (decided := self.decided(name)) is None:
            one = self._timed(program)
            decided = f"{median_ms(self._compared(one, one, patient=False)['after']).value:.5g}"
        return float(self.decide(name, decided))

    def _timed(self, program: Program) -> Built:
        """The artifact, which something here must be able to time."""
        digest = digest_of(program)
        built = self._made.get(digest) or self._loaded(digest, at_batch(program, self.batch))
        if built.call is None:
            raise TargetError(f"{self.target.name}: nothing is timed here")
        return built

    def _loaded(self, digest: str, fixed: Program) -> Built:
        """The artifact in its runtime, not yet scored."""
        artifact = self._emitted(digest, fixed)
        run, stands_in = loaded(self.target, artifact, self.threads, self.predict is None)
        bound = getattr(run, "bound", None)
        call = bound(fixed.inputs) if bound is not None and not stands_in else None
        return Built(digest, artifact, run, call, size_of(artifact), stands_in)

    def _emitted(self, digest: str, fixed: Program) -> Artifact:
        read = [file_hash(path) for path in self.target.reads() if path.is_file()]
        name = key("emit", _EMITTED, digest, self.batch, repr(self.target), read, self.versions, self.metadata)

        def fill(folder: Path) -> None:
            self.tell("emitting", 0, 1)
            artifact = self.target.emit(fixed, folder, self.metadata)
            said = {
                "kind": artifact.kind,
                "main": artifact.main,
                "notes": list(artifact.notes),
                "facts": dict(artifact.facts),
            }
            (folder / "emit.json").write_text(json.dumps(said, sort_keys=True))

        folder = self.cache.get(name) or self.cache.put(name, fill)
        said = json.loads((folder / "emit.json").read_text())
        return Artifact(said["kind"], folder, said["main"], tuple(said["notes"]), said["facts"])

    def _scored(self, built: Built) -> Built:
        if self.evaluate is None or self.score is None or built.run is None:
            return built
        name = key(
            "outputs",
            built.artifact.kind,
            built.digest,
            self.batch,
            self.threads,
            self.evaluate.digest,
            repr(self.target),
            self.versions,
        )
        found = cached_outputs(self.cache, name, lambda: self._run(built.run))
        return replace(built, scored=score_outputs(self.score, found, self.teacher, self.truth), found=found)

    def _run(self, run: Run | None) -> Outputs:
        assert run is not None
        assert self.evaluate is not None
        total, done = self.evaluate.samples or 0, 0

        def counted(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal done
            done += self.batch
            self.tell("scoring", min(done, total), total)
            return run(inputs)

        return outputs(counted, self.evaluate, self.batch)

    def price(self, before: Program, after: Program, lossy: bool) -> tuple[Price | None, Price, bool, str]:
        """Both prices, timed side by side, and whether a lossy step is worth keeping; a recorded choice is replayed.

        There is no price before exact passes that make a program fit for the target.
        """
        two = self.build(after)
        try:
            one = self.build(before)
        except TargetError as error:
            if lossy:
                raise
            return None, self._alone(two, after), True, f"the target does not take it as it was: {error}"
        if self.predict is not None:
            return self._predicted(one, two, self.predict(before), self.predict(after), lossy)
        if one.call is None or two.call is None:
            return self._price(one, None), self._price(two, None), True, "kept: not run here"
        name = f"keep:{one.digest[:12]}:{two.digest[:12]}"
        samples = self._compared(one, two, patient=lossy and self.decided(name) is None)
        speed = ratio(samples["after"], samples["before"])
        prices = self._price(one, median_ms(samples["before"])), self._price(two, median_ms(samples["after"]))
        if not lossy:
            return *prices, True, f"{speed.value:.3f}x of the latency before ({speed.low:.3f}-{speed.high:.3f})"
        pays, why = self._pays(speed, two.size_bytes / max(one.size_bytes, 1))
        decided = self.decide(name, "yes" if pays else "no")
        if (decided == "yes") != pays:
            why = f"{why}; the recorded choice is replayed"
        return *prices, decided == "yes", why

    def _alone(self, built: Built, program: Program) -> Price:
        if self.predict is not None:
            return self._foretold(built, self.predict(program))
        if built.call is None:
            return self._price(built, None)
        return self._price(built, median_ms(self._compared(built, built, patient=False)["after"]))

    def _predicted(
        self, one: Built, two: Built, before: Figure, after: Figure, lossy: bool
    ) -> tuple[Price, Price, bool, str]:
        kept, why = predicted.pays(before, after)
        prices = self._foretold(one, before), self._foretold(two, after)
        return *prices, kept or not lossy, why if lossy else why.rpartition(": ")[2]

    def _foretold(self, built: Built, figure: Figure) -> Price:
        score = built.scored.percent if built.scored else None
        return Price(predicted.interval(figure), built.size_bytes, score, figure.kind)

    def decide(self, name: str, found: str) -> str:
        """A choice made by measurement: the recorded one, else an earlier build's on this machine, else `found`."""
        decided = self.decided(name)
        if decided is None:
            self.cache.put(self._place(name), lambda folder: _write(folder / "value", found))
        self.decisions[name] = decided or found
        return self.decisions[name]

    def decided(self, name: str) -> str | None:
        """The recorded choice of that name, or an earlier build's on this machine."""
        folder = None if name in self.replay else self.cache.get(self._place(name))
        return (folder / "value").read_text() if folder is not None else self.replay.get(name)

    def _place(self, name: str) -> str:
        asked = self.batch, self.threads, repr(self.target), self.size_budget
        return key("decision", fingerprint(), name, *asked, self.versions)

    def _pays(self, speed: Interval, size: float) -> tuple[bool, str]:
        answer = verdict(speed)
        what = f"{speed.value:.3f}x of the latency before ({speed.low:.3f}-{speed.high:.3f})"
        if answer == "faster":
            return True, f"faster: {what}"
        if answer != "slower" and self.size_budget and size < _WORTH:
            return True, f"not faster but {100 * (1 - size):.0f} % smaller: {what}"
        doubt = ", too noisy to tell" if answer == "inconclusive" else ""
        return False, f"it does not pay here: {what}{doubt}"

    def drop_pp(self, program: Program) -> float:
        """Percent points that the emitted program loses against the teacher on the evaluation data."""
        drop = self.drop(self.build(program))
        return drop.value_pp if drop is not None else 0.0

    def drop(self, built: Built) -> Drop | None:
        """The paired drop of an artifact against the teacher, None without evaluation data."""
        scored = built.scored
        if scored is None or self.score is None:
            return None
        best = self._teacher_scored()
        return paired_drop(best, scored, self.seed)

    def _teacher_scored(self) -> Scored:
        assert self.score is not None
        assert self.teacher is not None
        return score_outputs(self.score, self.teacher, self.teacher, self.truth)

    def teacher_score(self) -> Scored | None:
        """The teacher's own score on the evaluation data."""
        return self._teacher_scored() if self.teacher is not None and self.score is not None else None

    def _compared(self, one: Built, two: Built, patient: bool) -> Mapping[str, Samples]:
        """Two artifacts timed side by side; when patient, with more rounds while nobody can tell which is faster."""
        assert one.call is not None
        assert two.call is not None
        samples, _ = settle(
            {"before": one.call, "after": two.call},
            lambda s: verdict(ratio(s["after"], s["before"])),
            rounds=16,
            cap=128 if patient else 16,
            seed=self.seed,
            least=1,
            enough_s=_ROUGHLY if not patient else math.inf,
            progress=lambda done, total: self.tell("measuring", done, total),
        )
        return samples

    def _price(self, built: Built, latency: Interval | None) -> Price:
        kind: Literal["measured", "unvalidated"] = "measured" if latency else "unvalidated"
        return Price(latency, built.size_bytes, built.scored.percent if built.scored else None, kind)

    def tell(self, what: str, done: int, total: int) -> None:
        """Say how far the build is, to whoever listens."""
        if self.progress is not None:
            self.progress(what, done, total)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
