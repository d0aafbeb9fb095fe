"""Deployments of several artifacts: each for itself, one report over all, and one that fails keeps none from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jsonschema
import pytest

from edgecompile import errors
from edgecompile.errors import TargetError
from edgecompile.program import Program
from edgecompile.report.json_form import json_schema
from edgecompile.target import Artifact, Target
from edgecompile.targets import DEPLOYMENTS, PRIMARY
from tests import warm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("several")
    warm.write_user_files(made)
    return made


@pytest.mark.slow
def test_two_artifacts_and_one_that_is_not_there(folder: Path) -> None:
    """Budgets bind the primary artifacts; a missing toolchain is said, and the others are built."""
    ended = warm.start(folder, deployed, str(folder)).wait()
    assert ended.code == errors.UNSUPPORTED, ended
    body = json.loads((folder / "out/report.json").read_text())
    jsonschema.validate(body, json_schema())
    assert body["exit_code"] == errors.UNSUPPORTED
    assert body["target"] == "trio"
    rows = {row["deployment"]: row for row in body["builds"]}
    assert [(r["primary"], r["exit_code"]) for r in rows.values()] == [(True, 0), (False, 0), (False, 5)]
    assert list(rows) == ["onnx@galaxy-s24", "onnx@h100", "missing@rpi5"]
    assert rows["onnx@galaxy-s24"]["latency_ms"]["kind"] == "predicted"
    assert [b["kind"] for b in body["budgets"]] == ["latency"]
    for name in ("onnx@galaxy-s24", "onnx@h100"):
        assert (folder / "out" / name / "model.onnx").is_file()
        own = json.loads((folder / "out/reports" / name / "report.json").read_text())
        assert own["target"] == name
    assert json.loads((folder / "out/reports/onnx@h100/report.json").read_text())["budgets"] == []
    assert "no such toolchain; pip install it" in json.dumps(body["refusals"])
    assert "missing@rpi5: exit code 5, not bound by the budgets" in ended.out


@dataclass(frozen=True)
class Missing(Target):
    """A target whose toolchain is not installed."""

    name: ClassVar[str] = "missing"

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        raise TargetError("missing: no such toolchain; pip install it", rule="toolchain")


def deployed(folder: str) -> None:
    """A build for a deployment of three artifacts, the last of a target whose toolchain is missing."""
    from edgecompile import targets
    from edgecompile.cli.main import main

    targets.TARGETS["missing"] = Missing  # type: ignore[assignment]
    targets.DEPLOYMENTS["trio"] = ("onnx@galaxy-s24", "onnx@h100", "missing@rpi5")
    sys.argv = ["edgecompile", "build", "net.py:net", "--target", "trio", "--pipeline", "", "--out", "out"]
    sys.argv += ["--max-latency", "20ms"]
    main()


def test_primaries_are_no_more_than_there_are() -> None:
    assert all(0 < PRIMARY[name] <= len(DEPLOYMENTS[name]) for name in PRIMARY)
