"""Which passes a build runs: those that were given, or a recipe from the budget and the data that is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgecompile.building.jobs import Job
from edgecompile.building.options import BuildOptions
from edgecompile.building.predicted import predictor
from edgecompile.data import Dataset
from edgecompile.errors import SpecError
from edgecompile.pass_manager import Pass, parse, show
from edgecompile.spec import Latency
from edgecompile.teacher import Teacher

_AIM = 0.97
"""What of a latency budget is aimed at: it is measured once more in the end."""
_TAIL = 0.9
"""The same for a budget of a percentile above the median, which is higher by the noise of the machine."""


def choose(
    job: Job, teacher: Teacher, calib: Dataset | None, train: Dataset | None, recorded: Mapping[str, str]
) -> tuple[tuple[Pass, ...], str, str]:
    """The passes to run (the exact ones first), the text of those behind the exact ones, and who chose them."""
    from edgecompile.passes import EXACT, PASSES

    options = job.options
    exact = parse(", ".join(EXACT), PASSES)
    last = parse(job.target.legalize, PASSES)
    if job.passes is not None:
        return (*exact, *job.passes, *last), show(job.passes), "given as objects"
    if options.pipeline is not None:
        text, why = options.pipeline, "given"
    elif "pipeline" in recorded:
        text, why = recorded["pipeline"], "the recorded choice is replayed"
    else:
        text, why = _recipe(job, teacher, calib, train)
    given = tuple(_trained_so(_with_kept(p, options.keep_float), options) for p in parse(text, PASSES))
    return (*exact, *given, *last), show(given), why


def _recipe(job: Job, teacher: Teacher, calib: Dataset | None, train: Dataset | None) -> tuple[str, str]:
    """`quantize` where the target has integers; before it what fits a latency and heals, where that is asked for."""
    options = job.options
    integers, why = bool(job.target.quantizable()), "there is calibration data, and the target has integer kernels"
    if not integers:
        why = f"exact passes only: {job.target.name} has no integer kernels"
    elif calib is None:
        integers, why = False, "exact passes only: quantization needs calibration data (--calib)"
    elif job.budgets.drop_pp == 0:
        integers, why = False, "exact passes only: the drop budget is 0"
    words = ["quantize"] if integers else []
    latency = options.budgets().latency
    preset = options.preset or ("balanced" if options.train is not None and latency is not None else None)
    if preset is None or job.budgets.drop_pp == 0:
        return ", ".join(words), why
    if latency is None:
        raise SpecError(f"--preset {preset}: fits a latency, and there is no budget for one: give --max-latency")
    if calib is None:
        raise SpecError(f"--preset {preset}: needs data: give --train, or --calib for --preset fast")
    if preset != "fast" and train is None:
        raise SpecError(f"--preset {preset}: trains, and there is no data: give --train, or take --preset fast")
    told = f"--preset {preset}" if options.preset else "--train and --max-latency are given"
    if latency.percent is not None and latency.percent >= 100:
        return ", ".join(words), f"{told}, and the budget is no less than the teacher's time"
    before = [_fit(job, teacher, latency, preset)]
    if preset != "fast":
        before.append("distill(epochs=12)" if preset == "best" and not options.train_budget else "distill")
    return ", ".join([*before, *words]), told


def _fit(job: Job, teacher: Teacher, latency: Latency, preset: str) -> str:
    """The share or the milliseconds that are aimed at; of a prediction, its upper end must hold."""
    aim = _AIM if latency.quantile <= 0.5 else _TAIL
    if not job.device.measured_here:
        figure = predictor(job.device, job.options.batch, job.target)(teacher.program)
        if figure.kind == "predicted" and figure.high:
            aim *= figure.value / figure.high
    tries = ", tries=24" if preset == "best" else ""
    if latency.ms is not None:
        return f"fit(ms={latency.ms * aim:.4g}, unreachable=fastest{tries})"
    assert latency.percent is not None
    return f"fit(latency={latency.percent / 100 * aim:.4g}, unreachable=fastest{tries})"


def _with_kept(one: Pass, globs: tuple[str, ...]) -> Pass:
    """`--keep-float` added to every pass that has such an option."""
    own = getattr(one, "keep_float", None)
    if own is None or not globs:
        return one
    return replace(one, keep_float=tuple(dict.fromkeys((*own, *globs))))  # type: ignore[call-arg]


def _trained_so(one: Pass, options: BuildOptions) -> Pass:
    """`--train-budget` and `--augment` for a pass that trains; raises `SpecError` where it says so itself."""
    if not getattr(one, "needs_train", False):
        return one
    fields: dict[str, Any] = {}
    pairs = (("--train-budget", options.train_budget, "time"), ("--augment", options.augment, "augment"))
    for flag, value, name in pairs:
        if not value:
            continue
        others = ("time", "steps", "epochs") if name == "time" else (name,)
        said = next((n for n in others if getattr(one, n, None) not in (None, "")), None)
        if said is not None or not hasattr(one, name):
            why = f"has {said} of its own" if said is not None else f"has no option {name}"
            raise SpecError(f"{flag} {value}: {one.name} {why}: drop one of them")
        fields[name] = value
    return replace(one, **fields)
