"""Budgets to exit codes, through the command line in a process of its own; and what a missed budget leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from edgecompile import errors
from edgecompile.building.options import BuildOptions
from edgecompile.building.verdicts import codes_of, drop_budget, latency_budget, size_budget
from edgecompile.measure import Drop, Samples
from edgecompile.report import Budget
from edgecompile.report.json_form import json_schema
from edgecompile.store import verifies
from tests import warm

Build = Callable[..., tuple[warm.Ended, dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("budgets")
    warm.write_user_files(made)
    return made


@pytest.fixture
def build(folder: Path) -> Build:
    def run(out: str, *arguments: str) -> tuple[warm.Ended, dict[str, Any]]:
        ended = warm.cli(folder, "build", "net.py:net", "--out", out, *arguments).wait()
        body = json.loads((folder / out / "report.json").read_text())
        jsonschema.validate(body, json_schema())
        assert body["exit_code"] == ended.code
        assert "Traceback" not in ended.err
        assert all(line.startswith("edgecompile:") for line in ended.err.splitlines())
        return ended, body

    return run


EXACT = ("--pipeline", "")
EVAL = ("--eval", "eval.npz")


@pytest.mark.slow
def test_the_life_of_an_output_folder(build: Build, folder: Path) -> None:
    """A good build, three kinds of missed budgets at once beside it, and a good build that clears up."""
    ended, _ = build("life", *EXACT, *EVAL, "--max-latency", "900s", "--max-drop", "0pp")
    assert ended.code == 0
    good = (folder / "life/host").readlink()
    missed = ("--score", "net.py:equal_bits", *EVAL, "--max-drop", "1pp")
    ended, body = build("life", *EXACT, *missed, "--max-latency", "1ns", "--max-size", "1B", "--json")
    assert json.loads(ended.out) == body
    assert ended.code == errors.ACCURACY  # of several, this comes first
    assert body["exit_codes"] == [errors.LATENCY, errors.ACCURACY, errors.SIZE]
    assert [b["verdict"] for b in body["budgets"]] == ["miss"] * 3
    assert all(b["reachable"] for b in body["budgets"])
    assert (folder / "life/host").readlink() == good
    assert verifies(folder / "life/host")
    assert verifies(folder / "life/rejected/host")
    assert {a["path"].rpartition("/")[0] for a in body["artifacts"]} == {"life/rejected/host"[5:]}
    ended, _ = build("life", *EXACT, *EVAL, "--max-latency", "900s", "--max-drop", "0pp")
    assert ended.code == 0
    assert sorted(p.name for p in (folder / "life").iterdir()) == [".store", "host", "report.html", "report.json"]
    assert (folder / "life/host").readlink() == good
    assert len([p for p in (folder / "life/.store").iterdir() if p.is_dir()]) == 1


def test_a_latency_that_cannot_be_had(build: Build) -> None:
    ended, body = build("latency", *EXACT, "--max-latency", "0.001ms")
    assert ended.code == errors.LATENCY
    assert body["budgets"][0]["limit"] == 0.001
    assert "LATENCY MISSED" in ended.out
    assert "was reached" in ended.out


@pytest.mark.slow
def test_a_size_that_cannot_be_had(build: Build) -> None:
    ended, body = build("size", *EXACT, "--max-size", "10%")
    assert ended.code == errors.SIZE
    assert body["budgets"][0]["limit"] == int(0.1 * body["teacher_size_bytes"])


@pytest.mark.slow
def test_few_samples_cannot_certify(build: Build) -> None:
    ended, body = build("strict", *EXACT, *EVAL, "--max-drop", "1pp", "--strict")
    assert ended.code == errors.INCONCLUSIVE
    assert body["score"]["certified"] is False
    assert "64 samples cannot prove 1 pp" in body["budgets"][0]["reachable"]
    ended, body = build("strict", *EXACT, *EVAL, "--max-drop", "1pp")
    assert ended.code == errors.OK
    assert body["score"]["certified"] is False


@pytest.mark.slow
def test_a_drop_budget_without_data_is_inconclusive(build: Build) -> None:
    ended, body = build("no data", *EXACT, "--max-drop", "1pp")
    assert ended.code == errors.INCONCLUSIVE
    assert body["budgets"][0]["reachable"] == "no evaluation data: give --eval"


@pytest.mark.slow
def test_layers_fall_back_to_float_until_the_drop_budget_holds(build: Build, folder: Path) -> None:
    """Ranges of data a hundred times too small clip everything: integers lose, and the search keeps the budget."""
    with np.load(folder / "calib.npz") as calib:
        np.savez(folder / "small.npz", x=calib["x"] / 100)
    quantize = ("--calib", "small.npz", "--pipeline", "quantize(keep=always)")
    _, body = build("clipped", *quantize, *EVAL)
    assert body["score"]["artifact"] < 90
    ended, body = build("rescued", *quantize, *EVAL, "--max-drop", "2pp")
    assert ended.code == 0
    assert body["score"]["artifact"] >= 98
    step = next(s for s in body["steps"] if s["pass"] == "quantize")
    assert step["stats"]["float_layers"] >= 1


def samples(ms: float, spread: float = 0.0) -> Samples:
    return Samples(tuple((1e-3 * (ms + spread * (i % 2 - 0.5)),) * 40 for i in range(30)))


def asked(**values: str) -> Any:
    return BuildOptions(**values).budgets()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "verdict"),
    [("2ms", "pass"), ("0.9ms", "miss"), ("50%", "pass"), ("20%", "miss"), ("p99:2ms", "pass"), ("p99:0.5ms", "miss")],
)
def test_latency_verdicts(budget: str, verdict: str) -> None:
    row = latency_budget({"teacher": samples(4), "artifact": samples(1)}, asked(max_latency=budget))
    assert row is not None
    assert row.verdict == verdict
    assert bool(row.reachable) == (verdict == "miss")


def test_a_latency_that_straddles_the_limit_is_inconclusive() -> None:
    row = latency_budget({"teacher": samples(4), "artifact": samples(1, 0.5)}, asked(max_latency="1ms"))
    assert row is not None
    assert row.verdict == "inconclusive"
    assert "too noisy" in row.reachable
    assert latency_budget({}, asked(max_latency="1ms")).verdict == "inconclusive"  # type: ignore[union-attr]
    assert latency_budget({}, asked()) is None


def test_drop_verdicts() -> None:
    seen = Drop(0.5, -0.2, 1.4, 1.2, 450)
    for limit, strict, verdict in (("1pp", False, "pass"), ("1pp", True, "inconclusive"), ("0.4pp", True, "miss")):
        row = drop_budget(seen, asked(max_drop=limit), strict, limit)
        assert row is not None
        assert row.verdict == verdict
    proven = drop_budget(Drop(0.0, -0.1, 0.2, 0.3, 4000), asked(max_drop="1pp"), True, "1pp")
    assert proven is not None
    assert proven.verdict == "pass"


def test_size_verdicts() -> None:
    for text, limit, verdict in (("1KB", 1000, "pass"), ("1KiB", 1024, "pass"), ("25%", 500, "miss")):
        row = size_budget(900, 2000, asked(max_size=text), text)
        assert row is not None
        assert (row.limit, row.verdict) == (limit, verdict)


def test_of_several_codes_the_first_of_the_design_applies() -> None:
    def row(kind: Any, verdict: Any) -> Budget:
        return Budget(kind, "", None, "ms", None, verdict)

    codes = codes_of([row("latency", "miss"), row("drop", "inconclusive"), row("size", "miss")])
    assert set(codes) == {errors.LATENCY, errors.INCONCLUSIVE, errors.SIZE}
    assert errors.first_code(codes) == errors.LATENCY
    assert codes_of([row("latency", "pass")]) == ()
    order = [8, 9, 2, 4, 3, 10, 5, 6, 7]
    for index, code in enumerate(order):
        assert errors.first_code(reversed(order[index:])) == code
    assert errors.first_code(()) == 0
