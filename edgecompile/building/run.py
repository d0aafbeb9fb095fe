"""build(): the whole life of a build, from what a user typed to a verified artifact and a report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile import __version__
from edgecompile.building.contest import contested
from edgecompile.building.finish import finish, portable, write_report
from edgecompile.building.fixed import at_batch
from edgecompile.building.jobs import Job, prepare
from edgecompile.building.options import BuildOptions, options_from
from edgecompile.building.other_reports import failed, planned, told, tool_versions
from edgecompile.building.outputs import cached_outputs
from edgecompile.building.predicted import predictor
from edgecompile.building.recipes import choose
from edgecompile.building.remembered import remembered
from edgecompile.building.several import several
from edgecompile.building.workshop import Progress, Workshop
from edgecompile.data import Outputs, choose_score, open_dataset, outputs, truth
from edgecompile.errors import (
    InputError,
    OutputError,
    SpecError,
    Unsupported,
)
from edgecompile.pass_manager import Context, Observer, Pass, PassManager, Step, check_data, show
from edgecompile.program import Program
from edgecompile.report import Report
from edgecompile.store import Cache, hold, key
from edgecompile.target import Target
from edgecompile.teacher import Teacher

if TYPE_CHECKING:
    from edgecompile.data import Dataset

_CALIBRATED_ON = 500
"""Samples of the training data that are calibrated with where no others are given."""
Begun = dict[str, tuple[Program, Step]]
"""What exact passes, by their text, made of the teacher: the same for every artifact of a build."""


def build(
    model: str | Teacher,
    options: BuildOptions | None = None,
    *,
    passes: Sequence[Pass] | None = None,
    target: Target | str | None = None,
    progress: Progress | None = None,
    observers: tuple[Observer, ...] = (),
    cache: Cache | None = None,
    **values: Any,
) -> Report:
    """Build `model` for a target under its budgets; `values` are the fields of `BuildOptions`.

    `passes` are objects to run behind the exact passes instead of a pipeline text, and `target` is a name or an object
    to emit for instead of the one that is named: passes and targets of your own need no registration.

    Returns the report, whose `exit_code` says whether the budgets hold; it is also written to OUT/report.json and
    OUT/report.html. Raises `EdgeCompileError` for what cannot be built at all; the report says so too.
    """
    if isinstance(target, str):
        values, target = {**values, "target": target}, None
    chosen = options if options is not None else options_from(values, "build")
    if options is not None and values:
        raise SpecError(f"build: give options or keywords, not both ({', '.join(values)})")
    out = Path(chosen.out)
    name = model if isinstance(model, str) else model.name

    begun: Begun = {}

    def run(what: str | Teacher, job: Job) -> Report:
        return _run(what, job, progress, observers, cache or Cache(), begun)

    if chosen.dry_run:
        return run(model, prepare(chosen, passes, target)[0])
    with hold(out):
        try:
            jobs = prepare(chosen, passes, target)
            if len(jobs) == 1:
                return run(model, jobs[0])
            return several(model if isinstance(model, Teacher) else _load(model, chosen), jobs, run)
        except BaseException as error:  # Ctrl-C and our own bugs leave a report too
            shown = told(error)
            with contextlib.suppress(OutputError):  # the first error is the one to be heard of
                write_report(out, failed(name, chosen, shown))
            if shown is error:
                raise
            raise shown from error


def _run(
    model: str | Teacher,
    job: Job,
    progress: Progress | None,
    observers: tuple[Observer, ...],
    cache: Cache,
    begun: Begun,
) -> Report:
    options, budgets = job.options, job.budgets
    tell: Callable[[str, int, int], None] = progress or (lambda what, done, total: None)
    tell("loading the model", 0, 1)
    teacher = model if isinstance(model, Teacher) else _load(model, options)
    calib = _data(options.calib, teacher.calib, teacher, options)
    evaluate = _data(options.eval, teacher.evaluate, teacher, options, labels=True)
    train = _data(options.train, teacher.train, teacher, options)
    if calib is None and train is not None:
        calib = train.take(_CALIBRATED_ON)
    batch = _batch(options.batch, teacher)
    score = choose_score(teacher, evaluate, options.score) if evaluate is not None else None
    recorded = _recorded(options.decisions)
    passes, chosen, why = choose(job, teacher, calib, train, recorded)
    check_data(passes, calib, train)
    _unread(options, passes)
    exact = _exact(teacher, job, passes, observers, begun, tell)
    baseline, _ = exact
    fixed = at_batch(baseline, batch)
    if reasons := job.target.refuse(fixed):
        raise Unsupported(f"{teacher.name} for {job.name}", reasons)
    if options.dry_run:
        return planned(teacher, job, show(passes), why)
    versions = tool_versions()
    found = _teacher_outputs(teacher, evaluate, cache, versions, tell) if evaluate is not None else None
    text = show(passes)
    metadata = {"edgecompile": __version__, "pipeline": text, "teacher": teacher.digest, **versions}
    if teacher.preprocessing:
        metadata["preprocessing"] = json.dumps(portable(teacher.preprocessing), sort_keys=True)
    shop = Workshop(
        job.target,
        cache,
        batch,
        job.threads,
        options.seed,
        versions,
        metadata,
        evaluate,
        score,
        found,
        size_budget=budgets.size_bytes is not None or budgets.size_percent is not None,
        replay=recorded,
        progress=progress,
        _fixed={id(baseline): (baseline, fixed)},
        predict=None if job.device.measured_here else predictor(job.device, batch, job.target),
    )
    if evaluate is not None and score is not None:
        shop.truth = truth(evaluate, score)
    context = Context(
        teacher.program,
        job.device,
        job.target,
        calib,
        train,
        options.seed,
        budgets.drop_pp,
        shop.drop_pp if evaluate is not None else None,
        shop.share,
        contest=(lambda one, of: contested(shop, job.rivals, one, of)) if job.rivals else None,
        ms=shop.ms,
        decide=lambda name, find: shop.decide(name, shop.decided(name) or find()),
        tell=shop.tell,
        sized=shop.size_budget,
    )
    manager = PassManager(passes, observers, remembered(cache, versions, shop, teacher.digest))
    program, steps = manager.run(teacher.program, context, shop, exact)
    if program is not baseline and (reasons := job.target.refuse(shop.fixed(program))):
        raise Unsupported(f"{teacher.name} for {job.name}", reasons)
    return finish(job, teacher, shop, baseline, program, steps, text, chosen, why, evaluate)


def _exact(
    teacher: Teacher,
    job: Job,
    passes: tuple[Pass, ...],
    observers: tuple[Observer, ...],
    begun: Begun,
    tell: Progress,
) -> tuple[Program, Step]:
    """The leading exact passes, run once for all artifacts: ours ask neither for the target nor for the device."""
    leading = tuple(takewhile(lambda p: p.exact, passes))
    ours = all(type(p).__module__.startswith("edgecompile.passes.") for p in leading)
    name = show(leading) if ours else f"{job.name}: {show(leading)}"
    if name not in begun:
        tell("exact passes", 0, 1)
        context = Context(teacher.program, job.device, job.target)
        begun[name] = PassManager(passes, observers).begin(teacher.program, context)
    return begun[name]


def _load(model: str, options: BuildOptions) -> Teacher:
    from edgecompile.models.loaders import load

    weights = Path(options.weights) if options.weights else None
    return load(
        model, weights=weights, inputs=options.input, image=options.image, fix=options.fix, trust=options.trust_model
    )


def _data(
    ref: str | None, shipped: Dataset | None, teacher: Teacher, options: BuildOptions, labels: bool = False
) -> Dataset | None:
    if ref is None:
        return shipped
    file = Path(options.labels) if labels and options.labels else None
    return open_dataset(ref, teacher.program, teacher.preprocessing, file)


def _batch(asked: int, teacher: Teacher) -> int:
    """The batch of the artifact: the one asked for, where the teacher's own is not fixed."""
    fixed = teacher.program.batch
    if fixed is not None and asked not in (1, fixed):
        raise InputError(f"--batch {asked}: {teacher.name} takes batches of {fixed} only: leave --batch out")
    return fixed or asked


def _teacher_outputs(
    teacher: Teacher, evaluate: Dataset, cache: Cache, versions: Mapping[str, str], tell: Progress
) -> Outputs:
    whole = teacher.program

    def make() -> Outputs:
        tell("running the teacher", 0, 1)
        return outputs(lambda x: whole(*x), evaluate, whole.batch)

    return cached_outputs(cache, key("teacher outputs", teacher.digest, evaluate.digest, versions), make)


def _unread(options: BuildOptions, passes: tuple[Pass, ...]) -> None:
    """Refuse options that nothing of this build would read, rather than ignore them."""
    if options.keep_float and not any(hasattr(p, "keep_float") for p in passes):
        raise SpecError(f"--keep-float {options.keep_float[0]}: no pass of this build quantizes: drop it")
    if options.labels and options.eval is None:
        raise SpecError(f"--labels {options.labels}: labels belong to --eval, which is not given")
    trains = any(getattr(p, "needs_train", False) for p in passes)
    for value, flag in ((options.train_budget, "--train-budget"), (options.augment, "--augment")):
        if value and not trains:
            raise SpecError(f"{flag} {value}: no pass of this build trains: drop it")
    if options.train and not trains and not any(getattr(p, "reads_train", False) for p in passes):
        raise SpecError(f"--train {options.train}: no pass of this build trains: drop it")


def _recorded(path: str | None) -> dict[str, str]:
    """The decisions of a `report.json`, to be replayed."""
    if path is None:
        return {}
    try:
        report = Report.from_json(Path(path).read_bytes(), path)
    except OSError as error:
        raise InputError(f"--decisions {path}: cannot be read: {error.strerror}") from None
    return {d.key: d.value for d in report.decisions}
