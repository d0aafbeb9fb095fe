"""The end of a build: measure until the verdict is clear, verify, publish, and say all of it in a report."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile import __version__, errors
from edgecompile.building import bundle, predicted
from edgecompile.building.contest import contest
from edgecompile.building.rows import figure_of, promised, ratio_of, rounds_of, row_of
from edgecompile.building.signals import too_late
from edgecompile.building.verdicts import codes_of, drop_budget, latency_answer, latency_budget, size_budget
from edgecompile.building.verified import verified
from edgecompile.building.workshop import Built, Workshop
from edgecompile.data import Dataset
from edgecompile.measure import Samples, fingerprint, machine, settle
from edgecompile.pass_manager import Step
from edgecompile.program import Program
from edgecompile.report import (
    ArtifactFile,
    Decision,
    Figure,
    InputSpec,
    Model,
    Report,
    Score,
    render_html,
)
from edgecompile.store import file_hash, point, prune, seal, stage, unpoint, write_atomic, writing
from edgecompile.teacher import Teacher

if TYPE_CHECKING:
    from edgecompile.building.jobs import Job

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
    fixed = shop.fixed(program)
    golden, golden_kind = bundle.golden_inputs(fixed, evaluate, job.options.golden, job.options.seed)
    won = contest(shop, job.rivals, program, final, job.budgets, golden)
    shop, final = won.shop, won.built
    samples = _settled(job, shop, base, final) if shop.predict is None else {}
    teacher_latency, latency = _figures(samples, shop, baseline, program)
    drop, score = shop.drop(final), _score(job, shop, final, evaluate)
    rows = [
        latency_budget(samples, job.budgets)
        if shop.predict is None or latency is None or teacher_latency is None
        else predicted.latency_budget(latency, teacher_latency, job.budgets),
        drop_budget(
            drop,
            job.budgets,
            job.options.strict,
            job.options.max_drop or "",
            *(["nothing here can run the artifact: score it on the device"] if evaluate is not None else []),
        ),
        size_budget(final.size_bytes, base.size_bytes, job.budgets, job.options.max_size or ""),
    ]
    budgets = tuple(row for row in rows if row is not None)
    codes = codes_of(budgets)
    code = errors.first_code(codes)
    out = Path(job.options.out)
    facts = {
        "edgecompile": __version__,
        "target": job.name,
        "emitter": shop.target.name,
        "device": job.device.name,
        "pipeline": text,
        "teacher": teacher.digest,
        "preprocessing": portable(teacher.preprocessing),
        "versions": dict(shop.versions),
        "batch": shop.batch,
        "threads": job.threads,
        "trusted_model": job.options.trust_model,
        "golden": golden_kind,
        "max_latency": job.options.max_latency or "",
        **promised(latency, score),
    }
    shop.tell("verifying", 0, 1)
    batches = bundle.batches(fixed, evaluate, _DRIFT_BATCHES) or [golden]
    said: list[str] = []
    verify = verified(teacher, shop, program, final, batches, code, steps, said)
    shop.tell("publishing", 0, 1)
    shown = _shown(job, code)
    sealed, files = _sealed(out, shown, final, fixed, golden, facts)
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
        latency_ms=latency,
        teacher_latency_ms=teacher_latency,
        latency_ratio=ratio_of(samples),
        rounds=rounds_of(samples),
        size_bytes=final.size_bytes,
        teacher_size_bytes=base.size_bytes,
        score=score,
        budgets=budgets,
        steps=tuple(row_of(step) for step in steps),
        verify=verify,
        decisions=_decisions(shop, chosen, why, won.decisions),
        notes=tuple(
            dict.fromkeys(
                (
                    *teacher.program.notes,
                    *teacher.notes,
                    *won.notes,
                    *_artifact_notes(final),
                    *said,
                    *_data_notes(evaluate),
                )
            )
        ),
        preprocessing=portable(teacher.preprocessing),
        golden=golden_kind,
        machine={**machine(), "fingerprint": fingerprint()},
        versions=shop.versions,
    )
    write_report(out, report)  # before the link moves: a disk that fills up here leaves the last good artifact
    with too_late():
        point(out, shown, sealed)
        if code == errors.OK:
            unpoint(out, f"rejected/{shown}")
            with contextlib.suppress(OSError):  # another deployment's rejected candidate may be in it
                (out / "rejected").rmdir()
        prune(out)
        return report


def _figures(
    samples: Mapping[str, Samples], shop: Workshop, baseline: Program, program: Program
) -> tuple[Figure | None, Figure | None]:
    """Latency of teacher and artifact: measured where it ran, else predicted."""
    if shop.predict is not None:
        return shop.predict(baseline), shop.predict(program)
    return figure_of(samples.get("teacher")), figure_of(samples.get("artifact"))


def write_report(out: Path, report: Report) -> None:
    """Replace OUT/report.json and OUT/report.html, each at once."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    page, data = render_html(report).encode(), report.to_json().encode()
    write_atomic(out / "report.html", page)  # the larger of the two: where it has no room, neither is replaced
    write_atomic(out / "report.json", data)


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


def _shown(job: Job, code: int) -> str:
    """The bundle's link in OUT: the deployment's name when every budget holds, else one under `rejected`."""
    plain = job.name.removesuffix(job.suffix)
    name = (plain if plain.isidentifier() else f"{job.target.name}@{job.device.name}") + job.suffix
    name = re.sub(r"[^\w.@-]", "_", name)
    return name if code == errors.OK else f"rejected/{name}"


def _sealed(
    out: Path, shown: str, final: Built, fixed: Program, golden: Any, facts: Mapping[str, Any]
) -> tuple[Path, tuple[ArtifactFile, ...]]:
    """The bundle in the store, with no link to it yet; and its files as the report names them."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with stage(out) as folder:
        with writing(folder):
            files = bundle.fill(folder, final.artifact, final.run, fixed, golden, facts)
        told = tuple(
            ArtifactFile(kind, f"{shown}/{p.relative_to(folder).as_posix()}", file_hash(p), p.stat().st_size)
            for kind, p in files.items()
        )
        return seal(folder, out), told


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
        "predicted" if final.stands_in else "measured",
        scored.samples,
        evaluate.independent if evaluate is not None else "",
    )


def _decisions(shop: Workshop, chosen: str, why: str, told: tuple[Decision, ...]) -> tuple[Decision, ...]:
    known = {d.key for d in told}
    made = (Decision(k, v, "measured on this machine") for k, v in sorted(shop.decisions.items()) if k not in known)
    return (Decision("pipeline", chosen, why), *made, *told)


def portable(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing with absolute paths (a tokenizer's) cut to the file's name: a manifest names no machine."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return {k: plain(v) for k, v in preprocessing.items()}


def _artifact_notes(final: Built) -> tuple[str, ...]:
    instead = ("scored and compared by the same graph in ONNX Runtime, not on the device",) if final.stands_in else ()
    return (*final.artifact.notes, *instead)


def _data_notes(evaluate: Dataset | None) -> tuple[str, ...]:
    return tuple(n for n in (evaluate.independent, *evaluate.notes) if n) if evaluate is not None else ()


def model_of(teacher: Teacher) -> Model:
    """The teacher as the report names it."""
    count = sum(w.numel() for w in teacher.program.weights().values() if w.is_floating_point())
    return Model(teacher.name, teacher.digest, count)
