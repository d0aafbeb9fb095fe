"""The matrix of models and targets: cells really run, whatever becomes of one is a row, finished ones stay finished."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgecompile import matrix
from edgecompile.matrix import parent
from edgecompile.matrix.ledger import Ledger, Row
from edgecompile.matrix.parent import Limits, run

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "edgecompile", "bench", "matrix"]
TINY = ("--only", "digits", "--targets", "onnx@host")
OWN = '''
import os, signal, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import torch
from torch import nn
from edgecompile.target import Artifact, Target


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (torch.randn(2, 3, 8, 8),)


def hanging():
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(__file__).with_name("pid.part").write_text(str(sleeper.pid))
    Path(__file__).with_name("pid.part").rename(Path(__file__).with_name("pid"))
    time.sleep(600)


def broken():
    return nn.Linear(3, 3), (torch.randn(2, 4),)


@dataclass(frozen=True)
class Good(Target):
    """Torch itself."""
    name: ClassVar[str] = "own"

    def emit(self, program, folder, metadata):
        torch.export.save(program.exported(), folder / "model.pt2")
        return Artifact("own", folder, "model.pt2")

    def load(self, artifact, threads=1):
        module = torch.export.load(artifact.path).module()
        return lambda inputs: tuple(self.changed(t) for t in module(*inputs))

    def changed(self, output):
        return output


class Wrong(Good):
    def changed(self, output):
        return output * 1.001


class NotFinite(Good):
    def changed(self, output):
        return output / 0


class Elsewhere(Good):
    def load(self, artifact, threads=1):
        return None


class Refuses(Good):
    def refuse(self, program):
        return [f"layer.{i}: conv2d (conv2d_{i}) has no form" for i in range(5)]


class Crash(Good):
    def emit(self, program, folder, metadata):
        os.kill(os.getpid(), signal.SIGSEGV)


class Exits(Good):
    def emit(self, program, folder, metadata):
        print("no licence", file=sys.stderr, flush=True)
        os._exit(3)


class Bug(Good):
    def emit(self, program, folder, metadata):
        raise KeyError("one\\ntwo")
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("matrix")
    (made / "own.py").write_text(OWN)
    return made


@pytest.fixture(scope="module")
def command(folder: Path) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """The command on two small cells, and its rows."""
    files = ("--ledger", str(folder / "tiny.sqlite"), "--table", str(folder / "tiny.csv"))
    done = subprocess.run([*COMMAND, *TINY, *files, "--json"], capture_output=True, text=True, timeout=300)
    return done, json.loads(done.stdout)


def test_two_cells_are_built_run_and_equal(
    folder: Path, command: tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]
) -> None:
    done, rows = command
    assert done.returncode == 0, done.stderr
    assert [(r["model"], r["target"], r["mode"], r["status"]) for r in rows] == [
        ("digits", "onnx@host", "float", "equal"),
        ("digits", "onnx@host", "int8", "equal"),
    ]
    exact, integers = rows
    assert 0 < exact["error"] < 1e-5
    assert 1e-4 < integers["error"] < 0.2, "integers were asked for, and floats came out"
    assert integers["cosine"] >= 0.99
    assert integers["artifact_mb"] < 0.5 * exact["artifact_mb"]
    assert all(r["seconds"] > 0 and r["peak_mb"] > 50 for r in rows)
    with (folder / "tiny.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["status"] for row in table] == ["equal", "equal"]
    assert table[0]["peak_mb"] == f"{exact['peak_mb']:.0f}"


def test_finished_cells_are_not_run_again(
    folder: Path,
    command: tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Started(Exception):
        pass

    def start(*args: Any, **kwargs: Any) -> Any:
        raise Started

    monkeypatch.setattr(parent.subprocess, "Popen", start)
    tiny = matrix.plan(["digits"], ["onnx@host"])
    with Ledger(folder / "tiny.sqlite") as ledger:
        rows = run(tiny, ledger, Limits())
        assert [vars(row) for row in rows] == command[1]
        with pytest.raises(Started):
            run(tiny, ledger, Limits(), refresh=True)
        with pytest.raises(Started):
            run(matrix.plan(["digits"], ["onnx(opset=19)@host"]), ledger, Limits())


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Row]:
    """One cell of each kind, all of one model."""
    names = ("Good", "Crash", "Refuses", "Exits", "Wrong", "NotFinite", "Elsewhere", "Bug")
    cells = matrix.plan([f"{folder}/own.py:net"], [f"{folder}/own.py:{name}@host" for name in names])
    said: list[str] = []
    with Ledger(folder / "own.sqlite") as ledger:
        rows = run(
            [c for c in cells if c.mode == "float" or "Good" in c.target],
            ledger,
            Limits(),
            progress=lambda what, done, total: said.append(f"{done}/{total} {what.rpartition(':')[2]}"),
        )
    assert said[-1].startswith(f"{len(rows)}/{len(rows)}")
    return {f"{row.target.rpartition(':')[2].partition('@')[0]} {row.mode}": row for row in rows}


def test_outputs_that_are_equal_and_that_are_not(outcomes: dict[str, Row]) -> None:
    assert (outcomes["Good float"].status, outcomes["Good float"].error) == ("equal", 0.0)
    wrong = outcomes["Wrong float"]
    assert (wrong.status, wrong.why) == ("differs", "error 0.001 is above 0.0001")
    assert wrong.cosine == pytest.approx(1)
    assert outcomes["NotFinite float"].status == "differs"
    assert outcomes["NotFinite float"].error == float("inf")


def test_a_crash_is_one_row_and_the_cells_behind_it_are_run(outcomes: dict[str, Row]) -> None:
    crash, exits = outcomes["Crash float"], outcomes["Exits float"]
    assert (crash.status, crash.why) == ("failed", "the process was ended by SIGSEGV")
    assert (exits.status, exits.why) == ("failed", "the process ended with code 3: no licence")
    assert outcomes["Elsewhere float"].status == "built"
    assert outcomes["Elsewhere float"].artifact_mb
    bug = outcomes["Bug float"]
    assert bug.status == "failed"
    assert bug.why.startswith("KeyError: 'one\\ntwo' (")
    assert not any("\n" in row.why or "Traceback" in row.why for row in outcomes.values())


def test_a_refused_cell_says_layer_operator_and_node(outcomes: dict[str, Row]) -> None:
    refused = outcomes["Refuses float"]
    assert refused.status == "refused"
    assert refused.why.startswith("layer.0: conv2d (conv2d_0) has no form; layer.1: ")
    assert refused.why.endswith("; and 2 more")
    assert outcomes["Good int8"].status == "refused"
    assert outcomes["Good int8"].why.startswith("quantize: needs calibration data")


def test_a_model_that_does_not_load_is_a_row_for_each_cell(folder: Path) -> None:
    with Ledger(folder / "broken.sqlite") as ledger:
        rows = run(matrix.plan([f"{folder}/own.py:broken"], ["onnx@host"]), ledger, Limits())
    assert [row.status for row in rows] == ["failed", "failed"]
    assert all("the model fails on its example inputs" in row.why for row in rows)


@pytest.mark.parametrize(
    ("limits", "why"),
    [(Limits(seconds=1), "stopped after 1 s"), (Limits(memory_mb=8), "of memory, more than 8")],
    ids=["time", "memory"],
)
def test_a_limit_ends_a_cell(folder: Path, limits: Limits, why: str) -> None:
    cells = matrix.plan([f"{folder}/own.py:hanging"], ["onnx@host"])[:1]
    with Ledger(folder / f"limit{limits.seconds}.sqlite") as ledger:
        (row,) = run(cells, ledger, limits)
    assert row.status == "failed"
    assert why in row.why


def test_ctrl_c_ends_every_process_and_says_so_in_one_line(folder: Path) -> None:
    (folder / "pid").unlink(missing_ok=True)
    arguments = ("--only", f"{folder}/own.py:hanging", "--targets", "onnx@host", "--ledger", str(folder / "c.sqlite"))
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    while not (folder / "pid").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    sleeper = psutil.Process(int((folder / "pid").read_text()))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("edgecompile: interrupted")
    psutil.wait_procs([sleeper], timeout=30)
    assert not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE
