"""`edgecompile profile` as it is typed: what it prints, keeps and teaches the estimates, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from edgecompile import errors
from edgecompile.building.profiled import teach
from edgecompile.cost import measured
from edgecompile.cost.estimate import estimate
from edgecompile.device import DeviceProfile
from edgecompile.measure import Interval
from edgecompile.models.loaders import load
from edgecompile.remote import Measured
from edgecompile.remote.ssh_command import CONFIG
from tests.remote.sshd import Find, Server, free_port, start, stop, write_artifact, write_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, apt_tool: Find) -> Iterator[Server]:
    tools = Path(sys.executable).parent
    server = start(tmp_path_factory.mktemp("verb"), apt_tool, f"{tools}:/usr/local/bin:/usr/bin:/bin")
    yield server
    stop(server)


def typed(folder: Path, config: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"EDGECOMPILE_DATA": str(folder / "data"), "OMP_NUM_THREADS": "1"}
    if config is not None:
        env[CONFIG] = str(config)
    command = [sys.executable, "-m", "edgecompile", "profile", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_board_is_profiled_and_the_record_kept(server: Server, tmp_path: Path) -> None:
    write_artifact(tmp_path / "built")
    config = server.folder / "ssh_config"
    done = typed(tmp_path, config, "built", "--device", server.url, "--rounds", "10", "--as", "rpi5", "--json")
    assert done.returncode in (errors.OK, errors.INCONCLUSIVE), done.stderr  # a busy machine is not certified
    body = json.loads(done.stdout)
    assert body["complete"]
    assert body["latency_ms"]["value"] > 0
    assert {row["name"] for row in body["rows"]} == {"product", "relu"}
    (kept,) = (tmp_path / "data/profiles").iterdir()
    assert json.loads(kept.read_text())["samples_ms"] == body["samples_ms"]
    assert (tmp_path / "data/measured/rpi5.json").is_file() == body["certified"], body["notes"]
    assert body["certified"] or any(note.startswith("nothing was learnt for rpi5: ") for note in body["notes"])


@pytest.mark.slow
def test_this_machine(tmp_path: Path) -> None:
    write_artifact(tmp_path / "built")
    done = typed(tmp_path, None, "built", "--rounds", "10", "--json")
    assert done.returncode in (errors.OK, errors.INCONCLUSIVE), done.stderr
    body = json.loads(done.stdout)
    assert (body["device"], body["complete"], len(body["samples_ms"])) == ("host", True, 10)
    assert {row["name"] for row in body["rows"]} == {"product", "relu"}
    assert body["environment"]["inputs"] == "golden"
    late = typed(tmp_path, None, "built", "--rounds", "900", "--timeout", "0.01")
    assert late.returncode == errors.INCONCLUSIVE
    assert "NOT CERTIFIED: time was up after " in late.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("model.onnx", "--device", "ssh://me@127.0.0.1:{port}"), errors.DEVICE_LOST, "127.0.0.1"),
        (("--device", "ssh://me@127.0.0.1"), errors.USAGE, "say which artifact"),
        (("model.so", "--device", "host"), errors.USAGE, "runs .onnx files"),
        (("none.onnx", "--device", "ssh://me@127.0.0.1:{port}"), errors.USAGE, "none.onnx"),
        (("model.onnx", "--device", "telnet://me"), errors.USAGE, "telnet"),
        (("model.onnx", "--device", "ssh://me@127.0.0.1", "--as", "oron"), errors.USAGE, "did you mean"),
        (("model.so", "--device", "tvm://10.1.2.3:9190/key"), errors.REFUSED, "10.1.2.3"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], code: int, line: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx")
    (tmp_path / "model.so").write_bytes(b"\x7fELF")
    done = typed(tmp_path, None, *(a.format(port=free_port()) for a in arguments))
    assert done.returncode == code, done.stderr
    (said,) = done.stderr.strip().splitlines()[-1:]
    assert said.startswith("edgecompile: ")
    assert line in said
    assert "Traceback" not in done.stderr


def found(value: float, noisy: bool = False) -> Measured:
    near = Interval(value, 0.97 * value, 1.03 * value)
    return Measured(
        "ssh://board", "ssh", True, "", (), ((value,),) * 10, MappingProxyType({}), near, noisy,
        "spread" if noisy else "", MappingProxyType({"date": "2026-01-01"}), (),
    )  # fmt: skip


@pytest.mark.slow
def test_estimates_learn_from_what_was_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECOMPILE_DATA", str(tmp_path / "data"))
    board = DeviceProfile.load("agx-orin-64gb:30W")
    small, large = write_model(tmp_path / "small.onnx"), write_model(tmp_path / "large.onnx", 512)
    programs = [load(str(p), weights=None, inputs=(), image=None, fix=(), trust=False).program for p in (small, large)]
    before = [estimate(p, board).latency_ms for p in programs]
    assert "spread" in teach(found(1.0, noisy=True), small, board, 1)
    assert measured.of("agx-orin-64gb@30W") == []
    assert teach(found(3 * before[0].value), small, board, 1) == ""
    after = [estimate(p, board).latency_ms for p in programs]
    assert (after[0].kind, after[0].value) == ("measured", pytest.approx(3 * before[0].value))
    assert before[1].value < after[1].value < 3.2 * before[1].value
    assert estimate(programs[0], "agx-orin-64gb").latency_ms.kind != "measured"  # another power mode
