"""The end of a build: measure until the verdict is clear, verify, publish, and say all of it in a report."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from edgecompile import __version__, errors
from edgecompile.building import bundle
from edgecompile.building.verdicts import codes_of, drop_budget, latency_answer, latency_budget, size_budget
from edgecompile.building.workshop import Built, Workshop
from edgecompile.data import Dataset
from edgecompile.measure import Interval, Samples, fingerprint, machine, median_ms, ratio, settle
from edgecompile.pass_manager import Price, Step
from edgecompile.program import Program
from edgecompile.report import (
    ArtifactFile,
    Decision,
    Figure,
    InputSpec,
    LayerDrift,
    Model,
    Ratio,
    Report,
    Rounds,
    Score,
    StepRow,
    Verify,
    render_html,
)
from edgecompile.store import file_hash, point, prune, seal, stage, unpoint, write_atomic, writing
from edgecompile.teacher import Teacher
from edgecompile.verify import DRIFT_DB, first_drift, layer_drift, output_errors

if TYPE_CHECKING:
    from torch import Tensor

    from edgecompile.building.run import Job

_KEPT_LAYERS = 200
_DRIFT_BATCHES = 8


def finish(
    job: Job,
    teacher: Teacher,
    shop: Workshop,
    baseline: Program,
    program: Program,
    steps: Sequence[Step],
    text: str,
    chosen: str,
    why: str,
    evaluate: Dataset | None,
) -> Report:
    """Measure, verify and publish the program; the report, already written to the output folder."""
    base, final = shop.build(baseline), shop.build(program)
    samples = _settled(job, shop, base, final)
    drop = shop.drop(final)
    rows = [
        latency_budget(samples, job.budgets),
        drop_budget(drop, job.budgets, job.options.strict, job.options.max_drop or ""),
        size_budget(final.size_bytes, base.size_bytes, job.budgets, job.options.max_size or ""),
    ]
    budgets = tuple(row for row in rows if row is not None)
    codes = codes_of(budgets)
    code = errors.first_code(codes)
    out = Path(job.options.out)
    fixed = program.specialised(shop.batch)
    golden = bundle.golden_inputs(fixed, evaluate, job.options.golden, job.options.seed)
    facts = {
        "edgecompile": __version__,
        "target": job.name,
        "device": job.device.name,
        "pipeline": text,
        "teacher": teacher.digest,
        "preprocessing": portable(teacher.preprocessing),
        "versions": dict(shop.versions),
        "batch": shop.batch,
        "threads": job.threads,
        "trusted_model": job.options.trust_model,
        "golden": job.options.golden,
    }
    shop.tell("verifying", 0, 1)
    batches = bundle.batches(fixed, evaluate, _DRIFT_BATCHES) or [golden]
    verify = _verified(teacher, shop, program, final, batches, code, steps)
    shop.tell("publishing", 0, 1)
    files = _publish(out, job, final, fixed, golden, facts, code)
    report = Report(
        __version__,
        model_of(teacher),
        job.name,
        job.device.name,
        text,
        code,
        codes,
        batch=shop.batch,
        threads=job.threads,
        seed=job.options.seed,
        inputs=tuple(
            InputSpec(n, tuple(t.shape), str(t.dtype).removeprefix("torch."))
            for n, t in zip(fixed.input_names, fixed.inputs, strict=True)
        ),
        artifacts=files,
        latency_ms=_figure(samples.get("artifact")),
        teacher_latency_ms=_figure(samples.get("teacher")),
        latency_ratio=_ratio(samples),
        rounds=_rounds(samples),
        size_bytes=final.size_bytes,
        teacher_size_bytes=base.size_bytes,
        score=_score(job, shop, final, evaluate),
        budgets=budgets,
        steps=tuple(_row(step) for step in steps),
        verify=verify,
        decisions=_decisions(shop, chosen, why),
        notes=tuple(
            dict.fromkeys((*teacher.program.notes, *teacher.notes, *final.artifact.notes, *_data_notes(evaluate)))
        ),
        preprocessing=portable(teacher.preprocessing),
        golden=job.options.golden,
        machine={**machine(), "fingerprint": fingerprint()},
        versions=shop.versions,
    )
    write_report(out, report)
    prune(out)
    return report


def write_report(out: Path, report: Report) -> None:
    """Replace OUT/report.json and OUT/report.html, each at once."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "report.json", report.to_json().encode())
    write_atomic(out / "report.html", render_html(report).encode())


def _settled(job: Job, shop: Workshop, base: Built, final: Built) -> dict[str, Samples]:
    """Teacher and artifact side by side until the latency budget is answered or the cap of rounds is reached."""
    if base.call is None or final.call is None:
        return {}
    asked = job.budgets.latency
    single = asked is not None and asked.quantile != 0.5  # a percentile of averaged calls is none of calls
    calls = {"teacher": base.call, "artifact": final.call}

    found, _ = settle(
        calls,
        lambda s: latency_answer(s, job.budgets),
        seed=shop.seed,
        progress=lambda done, total: shop.tell("measuring", done, total),
        sample_s=0 if single else 50e-6,
        least=34 if single else 1,
    )
    return found


def _publish(
    out: Path, job: Job, final: Built, fixed: Program, golden: Any, facts: Mapping[str, Any], code: int
) -> tuple[ArtifactFile, ...]:
    """The bundle into the store; OUT/<deployment> moves to it when all budgets hold, else OUT/rejected/<deployment>."""
    name = re.sub(r"[^\w.@-]", "_", job.name if job.name.isidentifier() else f"{job.target.name}@{job.device.name}")
    shown = name if code == errors.OK else f"rejected/{name}"
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with stage(out) as folder:
        with writing(folder):
            files = bundle.fill(folder, final.artifact, final.run, fixed, golden, facts)
        told = tuple(
            ArtifactFile(kind, f"{shown}/{p.relative_to(folder).as_posix()}", file_hash(p), p.stat().st_size)
            for kind, p in files.items()
        )
        point(out, shown, seal(folder, out))
    if code == errors.OK:
        unpoint(out, f"rejected/{name}")
        with contextlib.suppress(OSError):  # another deployment's rejected candidate may be in it
            (out / "rejected").rmdir()
    return told


def _verified(
    teacher: Teacher,
    shop: Workshop,
    program: Program,
    final: Built,
    batches: Sequence[tuple[Tensor, ...]],
    code: int,
    steps: Sequence[Step],
) -> Verify | None:
    """Errors over the evaluation data; layer by layer when the outputs drift or the accuracy budget is missed."""
    if final.found is None or shop.teacher is None:
        return None
    found = output_errors(final.found, shop.teacher)
    only_exact = all(all(p.exact for p in s.passes) for s in steps if s.kept and s.changed)
    limit = 60.0 if only_exact else DRIFT_DB
    layers: list[tuple[str, float | None]] = []
    drifts = found.snr_db is not None and not found.snr_db >= limit
    tap = getattr(shop.target, "tap", None)
    if (drifts or code == errors.ACCURACY) and tap is not None and final.run is not None:
        layers = layer_drift(
            teacher.program, program, lambda names, x: tap(final.artifact, names, x), final.run, batches
        )
    rows = tuple(LayerDrift(name, db) for name, db in layers[:_KEPT_LAYERS])
    return Verify(found.samples, found.max_abs, found.mean_abs, found.snr_db, first_drift(layers, limit), rows)


def _score(job: Job, shop: Workshop, final: Built, evaluate: Dataset | None) -> Score | None:
    best, scored, drop = shop.teacher_score(), final.scored, shop.drop(final)
    if best is None or scored is None or drop is None:
        return None
    limit = job.budgets.drop_pp
    certified = drop.certifies(limit) if limit is not None else None
    low, high = best.percent - drop.high, min(best.percent - drop.low, 100.0)
    unknown = drop.low != drop.low  # a user's score has no interval
    return Score(
        scored.metric,
        best.percent,
        scored.percent,
        None if unknown else low,
        None if unknown else high,
        certified,
        "measured",
        scored.samples,
        evaluate.independent if evaluate is not None else "",
    )


def _row(step: Step) -> StepRow:
    names = tuple(p.name for p in step.passes)
    before, after = step.before, step.after
    return StepRow(
        names[0] if len(names) == 1 else "exact",
        step.kept,
        step.reason,
        names if len(names) > 1 else (),
        step.seconds,
        step.nodes,
        _price(before),
        _price(after),
        before.size_bytes if before else None,
        after.size_bytes if after else None,
        before.score if before else None,
        after.score if after else None,
        step.stats,
        step.notes,
    )


def _price(price: Price | None) -> Figure | None:
    if price is None or price.latency_ms is None:
        return None
    return Figure(price.latency_ms.value, price.latency_ms.low, price.latency_ms.high, price.kind)


def _figure(samples: Samples | None) -> Figure | None:
    if samples is None:
        return None
    found = median_ms(samples)
    return Figure(found.value, found.low, found.high)


def _ratio(samples: Mapping[str, Samples]) -> Ratio | None:
    if not samples:
        return None
    found: Interval = ratio(samples["artifact"], samples["teacher"])
    return Ratio(found.value, found.low, found.high)


def _rounds(samples: Mapping[str, Samples]) -> Rounds | None:
    if not samples:
        return None
    medians = {k: tuple(1e3 * median(r) for r in s.rounds) for k, s in samples.items()}
    return Rounds(medians["teacher"], medians["artifact"])


def _decisions(shop: Workshop, chosen: str, why: str) -> tuple[Decision, ...]:
    made = tuple(Decision(k, v, "measured on this machine") for k, v in sorted(shop.decisions.items()))
    return (Decision("pipeline", chosen, why), *made)


def portable(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing with absolute paths (a tokenizer's) cut to the file's name: a manifest names no machine."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return {k: plain(v) for k, v in preprocessing.items()}


def _data_notes(evaluate: Dataset | None) -> tuple[str, ...]:
    return tuple(n for n in (evaluate.independent, *evaluate.notes) if n) if evaluate is not None else ()


def model_of(teacher: Teacher) -> Model:
    """The teacher as the report names it."""
    count = sum(w.numel() for w in teacher.program.weights().values() if w.is_floating_point())
    return Model(teacher.name, teacher.digest, count)
