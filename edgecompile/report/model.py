"""The report as data: frozen, without torch, field for field what `report.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgecompile import errors

Kind = Literal["measured", "predicted", "unvalidated"]
"""`unvalidated` is a prediction that no public or own measurement backs for this device and dtype."""


@dataclass(frozen=True)
class Figure:
    """A time in milliseconds with its interval (a bound is None when unknown), and how it came about."""

    value: float
    low: float | None = None
    high: float | None = None
    kind: Kind = "measured"


@dataclass(frozen=True)
class Ratio:
    """Latency of the artifact over that of the teacher, from interleaved rounds, with its interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Rounds:
    """Medians of the interleaved timing rounds in ms, in the order in which they were taken."""

    teacher_ms: tuple[float, ...] = ()
    artifact_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Score:
    """A score in percent on the same samples for teacher and artifact.

    `low` and `high` bound the artifact's score; `certified` says whether the data could prove the accuracy
    budget (None when there is none). `kind` is `measured` only for the emitted artifact run in its runtime.
    """

    metric: str
    teacher: float | None
    artifact: float | None
    low: float | None = None
    high: float | None = None
    certified: bool | None = None
    kind: Kind = "measured"
    samples: int = 0
    note: str = ""


@dataclass(frozen=True)
class ArtifactFile:
    """One emitted file; `path` is relative to the output folder, `kind` is `onnx`, `tvm`, `golden`, ..."""

    kind: str
    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class StepRow:
    """What one pass bought, or one group of passes that share a row (`group` then names them all).

    `pass_` is `pass` in JSON. `kept` is false for a pass that was undone, and `reason` says why.
    """

    pass_: str
    kept: bool = True
    reason: str = ""
    group: tuple[str, ...] = ()
    seconds: float | None = None
    nodes: int | None = None
    latency_before: Figure | None = None
    latency_after: Figure | None = None
    size_before: int | None = None
    size_after: int | None = None
    score_before: float | None = None
    score_after: float | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name of the row: the pass, or the passes that share it."""
        return ", ".join(self.group) or self.pass_


@dataclass(frozen=True)
class LayerDrift:
    """How far one layer of the artifact is from the teacher's; `snr_db` is None when they are equal."""

    layer: str
    snr_db: float | None
    max_abs_error: float | None = None


@dataclass(frozen=True)
class Verify:
    """The emitted artifact against the teacher; `snr_db` is None when the outputs are equal bit for bit."""

    samples: int
    max_abs_error: float | None
    mean_abs_error: float | None
    snr_db: float | None
    first_drift: str | None = None
    layers: tuple[LayerDrift, ...] = ()


@dataclass(frozen=True)
class Budget:
    """A budget as asked (`60%`), as a limit in `unit`, what was found, and when missed what is reachable."""

    kind: Literal["latency", "drop", "size"]
    asked: str
    limit: float | None
    unit: Literal["ms", "pp", "bytes"]
    found: float | None
    verdict: Literal["pass", "miss", "inconclusive"]
    low: float | None = None
    high: float | None = None
    reachable: str = ""


@dataclass(frozen=True)
class Refusal:
    """A reason why the model or an operator was not taken: a stable rule, the place, one line of text."""

    rule: str
    where: str
    text: str


@dataclass(frozen=True)
class Decision:
    """A choice made by measurement, enough to replay it, with the reason and the figures behind it."""

    key: str
    value: str
    why: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """The teacher: `hash` is the sha256 of its saved form; `macs` are for the example shape at batch 1."""

    name: str
    hash: str = ""
    parameters: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class InputSpec:
    """One input of the artifact as deployed."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class BuildRow:
    """One deployment of a build of several, with the path of its own report. Budgets bind primaries."""

    deployment: str
    primary: bool
    exit_code: int
    report: str
    latency_ms: Figure | None = None
    score: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class Report:
    """All that a build has to say. No date: the same inputs and decisions give the same report."""

    edgecompile: str
    model: Model
    target: str
    device: str
    pipeline: str
    exit_code: int
    exit_codes: tuple[int, ...] = ()
    dry_run: bool = False
    batch: int = 1
    threads: int | None = None
    seed: int = 0
    inputs: tuple[InputSpec, ...] = ()
    artifacts: tuple[ArtifactFile, ...] = ()
    latency_ms: Figure | None = None
    teacher_latency_ms: Figure | None = None
    latency_ratio: Ratio | None = None
    rounds: Rounds | None = None
    size_bytes: int | None = None
    teacher_size_bytes: int | None = None
    score: Score | None = None
    budgets: tuple[Budget, ...] = ()
    steps: tuple[StepRow, ...] = ()
    verify: Verify | None = None
    refusals: tuple[Refusal, ...] = ()
    decisions: tuple[Decision, ...] = ()
    notes: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    golden: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    builds: tuple[BuildRow, ...] = ()

    @property
    def verdict(self) -> str:
        """The exit code in a word or two: `PASS`, `LATENCY MISSED`, ..."""
        return "DRY RUN" if self.dry_run and not self.exit_code else verdict(self.exit_code)

    def to_json(self) -> str:
        """The text of `report.json`; see `json_form.to_json`."""
        from edgecompile.report.json_form import to_json

        return to_json(self)

    @staticmethod
    def from_json(text: str | bytes, where: str = "report.json") -> Report:
        """Read `report.json` back; see `json_form.from_json`."""
        from edgecompile.report.json_form import from_json

        return from_json(text, where)

    def _repr_html_(self) -> str:
        """The page in a frame without scripts, so that a notebook's styles and the page's do not meet."""
        from edgecompile.report.html import render_frame

        return render_frame(self)


_VERDICTS = {
    errors.OK: "PASS",
    errors.BUG: "FAILED (BUG)",
    errors.USAGE: "BAD INPUT",
    errors.LATENCY: "LATENCY MISSED",
    errors.ACCURACY: "ACCURACY MISSED",
    errors.UNSUPPORTED: "UNSUPPORTED",
    errors.DEVICE_LOST: "DEVICE LOST",
    errors.INCONCLUSIVE: "INCONCLUSIVE",
    errors.REFUSED: "REFUSED",
    errors.MISMATCH: "MISMATCH",
    errors.SIZE: "SIZE MISSED",
    errors.INTERRUPTED: "INTERRUPTED",
    errors.TERMINATED: "TERMINATED",
}


NOTHING = "nothing to do"
"""The reason of a step that changed nothing, and so was not timed."""


def verdict(exit_code: int) -> str:
    """An exit code in a word or two."""
    return _VERDICTS.get(exit_code, f"EXIT {exit_code}")


def like_for_like(report: Report, step: StepRow) -> float | None:
    """Latency after `step` over that of the model as it came, as the product of what each kept step bought.

    Before and after of one step were timed side by side; times of different steps were not, and on a busy machine
    their quotient would say more about the machine. None as soon as a step has no two figures of one kind.
    """
    total = 1.0
    for row in report.steps:
        before, after = row.latency_before, row.latency_after
        if before and after and before.kind == after.kind and before.value > 0:
            bought = after.value / before.value
            if row is step:
                return total * bought
            total *= bought if row.kept else 1.0
        elif row is step or (row.kept and row.reason != NOTHING):
            return None
    return None


def latency_change(report: Report) -> Ratio | None:
    """Artifact over teacher: the paired ratio of interleaved rounds, else the quotient of like figures."""
    ours, teacher = report.latency_ms, report.teacher_latency_ms
    if report.latency_ratio:
        return report.latency_ratio
    if ours and teacher and ours.kind == teacher.kind and teacher.value > 0:
        return Ratio(ours.value / teacher.value)
    return None
