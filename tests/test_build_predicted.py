"""Builds for a device that is not here: every latency says predicted or unvalidated, and budgets go by its interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgecompile import errors
from edgecompile.building.options import BuildOptions
from edgecompile.building.predicted import latency_budget, pays
from edgecompile.report import Budget, Figure
from tests import warm

PHONE = ("--target", "onnx@galaxy-s24")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("predicted")
    warm.write_user_files(made)
    return made


def built(folder: Path, out: str, *arguments: str) -> tuple[warm.Ended, dict[str, Any]]:
    ended = warm.cli(folder, "build", "net.py:net", "--pipeline", "", "--out", out, *arguments).wait()
    return ended, json.loads((folder / out / "report.json").read_text())


def test_a_latency_on_a_phone_is_predicted_and_never_timed(folder: Path) -> None:
    ended, body = built(folder, "phone", *PHONE, "--max-latency", "20ms")
    assert ended.code == errors.OK
    assert body["latency_ms"]["kind"] == "predicted"
    assert body["teacher_latency_ms"]["kind"] == "predicted"
    assert "rounds" not in body or body["rounds"] is None
    assert all(s["latency_after"]["kind"] == "predicted" for s in body["steps"] if s.get("latency_after"))
    assert "predicted" in ended.out
    assert (folder / "phone/onnx@galaxy-s24/model.onnx").is_file()
    missed, body = built(folder, "missed", *PHONE, "--max-latency", "1us")
    assert missed.code == errors.LATENCY
    assert "at best is predicted" in body["budgets"][0]["reachable"]


def test_what_nothing_backs_is_inconclusive(folder: Path) -> None:
    ended, body = built(folder, "h100", "--target", "onnx@h100", "--max-latency", "20ms")
    assert ended.code == errors.INCONCLUSIVE
    assert body["latency_ms"]["kind"] == "unvalidated"
    assert "measure it with edgecompile profile" in body["budgets"][0]["reachable"]


@pytest.mark.parametrize(
    ("low", "high", "kind", "verdict"),
    [
        (2.0, 3.9, "predicted", "pass"),
        (4.1, 9.0, "predicted", "miss"),
        (3.0, 5.0, "predicted", "inconclusive"),
        (1.0, 2.0, "unvalidated", "inconclusive"),
    ],
)
def test_a_prediction_meets_a_budget_with_its_whole_interval(low: float, high: float, kind: Any, verdict: str) -> None:
    found = Figure((low * high) ** 0.5, low, high, kind)
    teacher = Figure(8.0, 6.0, 10.0, kind)
    for text in ("4ms", "50%"):
        row = latency_budget(found, teacher, BuildOptions(max_latency=text).budgets())
        assert isinstance(row, Budget)
        assert row.verdict == verdict
        assert row.limit == 4.0
    assert latency_budget(found, teacher, BuildOptions().budgets()) is None


def test_a_step_pays_from_two_percent_on() -> None:
    before = Figure(1.0, 0.8, 1.25, "predicted")
    assert pays(before, Figure(0.97, 0.8, 1.2, "predicted"))[0]
    assert not pays(before, Figure(0.99, 0.8, 1.2, "predicted"))[0]
