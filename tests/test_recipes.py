"""Which passes a build runs when none are named: from the budget, the data that is there, and the preset."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompile.building.jobs import prepare
from edgecompile.building.options import BuildOptions
from edgecompile.building.recipes import choose
from edgecompile.building.run import build
from edgecompile.errors import SpecError
from edgecompile.models import digits
from edgecompile.pass_manager import parse
from edgecompile.passes import PASSES
from edgecompile.store import Cache
from edgecompile.teacher import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return digits.teacher()


def text(teacher: Teacher, calib: bool = True, train: bool = True, **options: Any) -> tuple[str, str]:
    (job, *_) = prepare(BuildOptions(**{"target": "onnx@host", **options}))
    data = teacher.calib if calib else None
    passes, found, why = choose(job, teacher, data, teacher.train if train else None, {})
    own = parse(found, PASSES)
    assert tuple(type(p) for p in passes if not p.exact) == tuple(type(p) for p in own)
    return found, why


def test_without_a_latency_it_is_quantization_as_before(teacher: Teacher) -> None:
    assert text(teacher)[0] == "quantize"
    assert text(teacher, max_latency="60%")[0] == "quantize"
    assert text(teacher, calib=False)[0] == ""
    assert text(teacher, max_drop="0pp")[0] == ""


def test_training_data_and_a_latency_fit_heal_and_quantize(teacher: Teacher) -> None:
    found, why = text(teacher, max_latency="50%")
    assert found == "quantize"  # the teacher's own training data is no wish to train
    assert why.startswith("there is calibration data")
    asked = {"max_latency": "50%"}
    (job, *_) = prepare(BuildOptions(target="onnx@host", train="some.npz", **asked))
    _, found, why = choose(job, teacher, teacher.calib, teacher.train, {})
    assert found == "fit(latency=0.485, unreachable=fastest), distill, quantize"
    assert why == "--train and --max-latency are given"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"preset": "fast", "max_latency": "50%"}, "fit(latency=0.485, unreachable=fastest), quantize"),
        (
            {"preset": "balanced", "max_latency": "p99:2ms", "train_budget": "10m", "augment": "shift=1"},
            "fit(ms=1.8, unreachable=fastest), distill(time='10m', augment='shift=1'), quantize",
        ),
        (
            {"preset": "best", "max_latency": "50%", "keep_float": ("head",)},
            "fit(latency=0.485, unreachable=fastest, tries=24), distill(epochs=12.0), quantize(keep_float=(head,))",
        ),
        (
            {"preset": "best", "max_latency": "50%", "train_budget": "1h"},
            "fit(latency=0.485, unreachable=fastest, tries=24), distill(time='1h'), quantize",
        ),
        ({"preset": "fast", "max_latency": "100%"}, "quantize"),
    ],
)
def test_presets(teacher: Teacher, options: Any, expected: str) -> None:
    found, _ = text(teacher, **options)
    assert parse(found, PASSES) == parse(expected, PASSES)
    assert parse(found, PASSES) == parse(text(teacher, **options)[0], PASSES)


def test_a_prediction_is_aimed_at_by_its_upper_end(teacher: Teacher) -> None:
    (fit, *_) = parse(text(teacher, target="onnx@galaxy-s24", preset="fast", max_latency="50%")[0], PASSES)
    assert 0.05 < getattr(fit, "latency", 0) <= 0.485


@pytest.mark.parametrize(
    ("options", "data", "says"),
    [
        ({"preset": "fast"}, {}, "--preset fast: fits a latency, and there is no budget for one: give --max-latency"),
        ({"preset": "fast", "max_latency": "50%"}, {"calib": False}, "--preset fast: needs data: give --train, or"),
        ({"preset": "best", "max_latency": "50%"}, {"train": False}, "--preset best: trains, and there is no data"),
        (
            {"pipeline": "distill(epochs=2)", "train_budget": "10m"},
            {},
            "--train-budget 10m: distill has epochs of its own: drop one of them",
        ),
        (
            {"pipeline": "distill(augment=flip)", "augment": "shift=2"},
            {},
            "--augment shift=2: distill has augment of its own: drop one of them",
        ),
        ({"preset": "fast", "pipeline": "quantize"}, {}, "--preset fast: chooses the passes: give it or a pipeline"),
    ],
)
def test_what_a_preset_lacks_is_said(teacher: Teacher, options: Any, data: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        text(teacher, **options, **data)


@pytest.mark.slow
def test_one_build_fits_heals_and_keeps_its_budget_and_a_rerun_gives_the_same(tmp_path: Path) -> None:
    whole = digits.teacher()
    assert whole.train is not None
    (batch,) = [next(iter(dataclasses.replace(whole.train, batch_size=800)))]  # type: ignore[type-var]
    np.savez(tmp_path / "train.npz", x=batch.inputs[0].numpy(), y=batch.targets.numpy())
    cache = Cache(tmp_path / "cache")
    options: dict[str, Any] = {
        "target": "onnx@host",
        "pipeline": "fit(latency=0.6, tries=2, built=4, samples=64, method=magnitude), distill(steps=20), quantize",
        "max_latency": "70%",
        "train": str(tmp_path / "train.npz"),
    }
    first = build("digits", out=str(tmp_path / "a"), cache=cache, **options)
    assert [s.pass_ for s in first.steps][-3:] == ["fit", "distill", "quantize"]
    assert first.latency_ratio is not None
    assert first.exit_code in (0, 3)  # of the budget, which this machine may miss by its noise
    assert first.score is not None
    assert (first.score.artifact or 0) > 80
    second = build("digits", out=str(tmp_path / "b"), cache=cache, **options)
    assert {a.path.split("/")[-1]: a.sha256 for a in second.artifacts if "model" in a.path} == {
        a.path.split("/")[-1]: a.sha256 for a in first.artifacts if "model" in a.path
    }


def test_a_flag_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    for flag, value in (("train_budget", "10m"), ("augment", "flip")):
        with pytest.raises(SpecError, match=f"--{flag.replace('_', '-')} {value}: no pass of this build trains: drop"):
            build("digits", out=str(tmp_path), target="onnx@host", pipeline="quantize", **{flag: value})


def test_several_budgets_are_a_job_each() -> None:
    jobs = prepare(BuildOptions(target="onnx@host", max_latency="50%, p99:2ms", max_drop="1pp"))
    assert [(j.name, j.options.max_latency) for j in jobs] == [
        ("onnx@host-50pct", "50%"),
        ("onnx@host-p99-2ms", "p99:2ms"),
    ]
    assert [j.budgets.latency and j.budgets.latency.percent for j in jobs] == [50, None]
    with pytest.raises(SpecError, match=r"'50%' is given twice"):
        prepare(BuildOptions(target="onnx@host", max_latency="50%,50%"))
    with pytest.raises(SpecError, match="a budget between the commas is missing"):
        prepare(BuildOptions(target="onnx@host", max_latency="50%,"))
    with pytest.raises(SpecError, match=r"--max-latency 'fast': expected a time or a share of the teacher"):
        prepare(BuildOptions(target="onnx@host", max_latency="50%,fast"))


@pytest.mark.slow
def test_one_run_gives_an_artifact_for_each_budget(teacher: Teacher, tmp_path: Path) -> None:
    report = build(
        teacher,
        target="onnx@host",
        pipeline="quantize",
        max_latency="300%,1%",
        out=str(tmp_path),
        cache=Cache(tmp_path / "cache"),
    )
    rows = {row.deployment: row for row in report.builds}
    assert {name: row.exit_code for name, row in rows.items()} == {"onnx@host-300pct": 0, "onnx@host-1pct": 3}
    assert (tmp_path / "onnx@host-300pct" / "model.onnx").is_file()
    assert (tmp_path / "rejected" / "onnx@host-1pct" / "model.onnx").is_file()
    assert (tmp_path / "reports" / "onnx@host-1pct" / "report.json").is_file()
