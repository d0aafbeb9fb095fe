"""`--target host`: one program in two runtimes, timed side by side; the faster is the result, and the other is told."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from edgecompile import build
from edgecompile.building.options import BuildOptions
from edgecompile.data import digest_of
from edgecompile.errors import TargetError
from edgecompile.program import Program
from edgecompile.report import Decision, Report
from edgecompile.store import Cache
from edgecompile.target import Artifact, Run, Target
from edgecompile.teacher import Teacher

pytestmark = pytest.mark.runtimes


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)).eval()
    program = Program.capture(net, (torch.randn(2, 3, 16, 16),))
    return Teacher("net", program, digest_of(program))


@pytest.fixture
def rival(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have `--target both` weigh ONNX Runtime against a target."""
    from edgecompile import targets

    def weigh(cls: type[Target]) -> str:
        monkeypatch.setitem(targets.TARGETS, cls.name, cls)  # type: ignore[arg-type]
        monkeypatch.setitem(targets.DEPLOYMENTS, "both", (f"onnx|{cls.name}@host",))
        return "both"

    return weigh


class _Paced:
    """Torch's answer after a wait: how fast a runtime is, is what the test says."""

    def __init__(self, path: Path, wait_s: float) -> None:
        self.held, self.wait_s = torch.load(path, weights_only=True), wait_s

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        time.sleep(self.wait_s)
        return (self.held["answer"],) if self.wait_s else (torch.zeros(1, 32, 16, 16),)

    def bound(self, inputs: tuple[Tensor, ...]) -> Any:
        return lambda: self(inputs)


@dataclass(frozen=True)
class Slow(Target):
    """Right, and slower than any runtime."""

    name: ClassVar[str] = "slow"
    wait_s: float = 0.01

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        from edgecompile.building.bundle import golden_inputs

        inputs, _ = golden_inputs(program, None, "synthetic", 0)
        torch.save({"answer": program(*inputs)[0].detach()}, folder / "answer.pt")
        return Artifact(self.name, folder, "answer.pt")

    def load(self, artifact: Artifact, threads: int = 1) -> Run | None:
        return _Paced(artifact.path, self.wait_s)


@dataclass(frozen=True)
class Wrong(Slow):
    """Faster than any runtime, and wrong."""

    name: ClassVar[str] = "wrong"
    wait_s: float = 0.0


@dataclass(frozen=True)
class Refusing(Slow):
    """Takes nothing."""

    name: ClassVar[str] = "refusing"

    def refuse(self, program: Program) -> list[str]:
        return ["first: conv2d is not for me", "second: nor is relu"]


@dataclass(frozen=True)
class Absent(Slow):
    """Its toolchain is not installed."""

    name: ClassVar[str] = "absent"

    def refuse(self, program: Program) -> list[str]:
        raise TargetError("absent: no such toolchain: pip install it", rule="toolchain")


def _choice(report: Report) -> Decision:
    (found,) = [d for d in report.decisions if d.key.startswith("runtime:")]
    return found


@pytest.mark.slow
def test_the_slower_one_is_told_and_not_taken(teacher: Teacher, rival: Any, tmp_path: Path) -> None:
    report = _built(teacher, rival(Slow), tmp_path)
    choice = _choice(report)
    assert choice.value == "onnx"
    assert set(choice.evidence) == {"onnx_ms", "slow_ms", "onnx_bytes", "slow_bytes"}
    assert choice.evidence["slow_ms"] > 10 > choice.evidence["onnx_ms"]
    assert "slow at " in choice.why
    assert (tmp_path / "out/both/model.onnx").is_file()


@pytest.mark.slow
def test_a_recorded_choice_is_replayed(teacher: Teacher, rival: Any, tmp_path: Path) -> None:
    report = _built(teacher, rival(Slow), tmp_path)
    body = json.loads((tmp_path / "out/report.json").read_text())
    for row in body["decisions"]:
        row["value"] = "slow" if row["key"].startswith("runtime:") else row["value"]
    (tmp_path / "decisions.json").write_text(json.dumps(body))
    again = _built(teacher, "both", tmp_path / "again", decisions=str(tmp_path / "decisions.json"))
    assert _choice(report).value == "onnx"
    assert _choice(again).value == "slow"
    assert _choice(again).why.endswith("the recorded choice is replayed")
    assert "slow" in [f.kind for f in again.artifacts]


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (Wrong, "wrong: not in the running: its outputs differ from onnx's: signal to noise "),
        (Refusing, "refusing: not in the running: first: conv2d is not for me (and 1 more)"),
        (Absent, "absent: not in the running: absent: no such toolchain: pip install it"),
    ],
)
def test_who_cannot_win_is_a_note(teacher: Teacher, rival: Any, tmp_path: Path, cls: type[Target], why: str) -> None:
    report = _built(teacher, rival(cls), tmp_path)
    assert report.exit_code == 0
    assert any(why in note for note in report.notes), report.notes
    assert not [d for d in report.decisions if d.key.startswith("runtime:")]
    assert "onnx" in [f.kind for f in report.artifacts]


@pytest.mark.slow
def test_host_weighs_tvm(teacher: Teacher, tmp_path: Path) -> None:
    """The real pair: whichever wins, its bundle verifies, and both figures are in the report."""
    from edgecompile.building.check import check

    report = _built(teacher, "host", tmp_path)
    choice = _choice(report)
    assert choice.value in ("onnx", "tvm")
    assert {"onnx_ms", "tvm_ms", "onnx_bytes", "tvm_bytes"} == set(choice.evidence)
    assert choice.value in [f.kind for f in report.artifacts]
    found = check(tmp_path / "out/host", rounds=8)
    assert found.exit_code == 0, found
    assert [f.state for f in found.findings] == ["ok", "ok", "ok"]


def _built(teacher: Teacher, deployment: str, folder: Path, **values: Any) -> Report:
    options = BuildOptions(target=deployment, pipeline="", out=str(folder / "out"), **values)
    return build(teacher, options, cache=Cache(folder / "cache"))


@dataclass(frozen=True)
class Copying(Slow):
    """Puts a file that an option names into what it emits."""

    name: ClassVar[str] = "copying"
    file: str = ""

    def reads(self) -> tuple[Path, ...]:
        return (Path(self.file),)

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        (folder / "words").write_bytes(Path(self.file).read_bytes())
        return super().emit(program, folder, metadata)


@pytest.mark.slow
def test_a_file_that_a_target_reads_is_read_again_when_it_changes(teacher: Teacher, tmp_path: Path) -> None:
    words, cache = tmp_path / "words", Cache(tmp_path / "cache")
    for text in ("one", "two"):
        words.write_text(text)
        options = BuildOptions(target="onnx@host", pipeline="", out=str(tmp_path / "out"))
        build(teacher, options, target=Copying(file=str(words), wait_s=0.0), cache=cache)
        (made,) = (tmp_path / "out").glob("*/words")
        assert made.read_text() == text
