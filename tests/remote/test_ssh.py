"""Profiling through a real sshd on loopback, which is this host: rounds, operators, and every kind of loss."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from edgecompile.errors import DEVICE_LOST, DeviceLost, TargetError
from edgecompile.remote import Measured, profile
from edgecompile.remote.ssh_command import CONFIG
from tests.remote.sshd import Find, Server, start, stop, write_artifact, write_model


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, apt_tool: Find) -> Iterator[Server]:
    tools = Path(sys.executable).parent
    server = start(tmp_path_factory.mktemp("sshd"), apt_tool, f"{tools}:/usr/local/bin:/usr/bin:/bin")
    yield server
    stop(server)


@pytest.fixture
def server(shared: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv(CONFIG, str(shared.folder / "ssh_config"))
    return shared


def test_this_host_through_ssh(server: Server, tmp_path: Path) -> None:
    """All rounds, operators, percentiles, the comparison with the golden outputs; nothing stays on the board."""
    told: list[tuple[str, int, int]] = []
    found = profile(
        write_artifact(tmp_path / "a"),
        server.url,
        rounds=12,
        date="2026-01-01",
        progress=lambda stage, done, total: told.append((stage, done, total)),
    )
    assert (found.kind, found.complete, found.why_partial) == ("ssh", True, "")
    assert len(found.samples_ms) == 12
    assert min(min(r) for r in found.samples_ms) > 0
    assert found.interval is not None
    assert found.interval.low <= found.interval.value <= found.interval.high
    assert all(i is not None for i in found.percentiles.values()), "12 rounds of 84 single calls are above 1000"
    assert {(row.name, row.unit) for row in found.rows} == {("product", "CPU"), ("relu", "CPU")}
    assert sum(row.us for row in found.rows) > 0
    assert found.environment["date"] == "2026-01-01"
    assert found.environment["inputs"] == "golden"
    assert found.environment["machine"] == os.uname().machine
    (note,) = found.notes
    assert note.startswith("largest difference to the golden outputs: ")
    assert float(note.rsplit(" ", 1)[1]) < 1e-3
    assert told[-1] == ("measuring", 12, 12)
    assert found.certified == (not found.noisy)
    assert not list(server.temporary.iterdir())


def test_batch_and_threads(server: Server, tmp_path: Path) -> None:
    free = write_model(tmp_path / "free.onnx", batch="n")
    assert profile(free, server.url, batch=3, threads=2, rounds=8).environment["inputs"] == "zeros"
    with pytest.raises(TargetError, match=r"the model's batch is fixed at 1, not 3"):
        profile(write_model(tmp_path / "fixed.onnx"), server.url, batch=3, rounds=8)


def test_few_rounds_are_not_certified(server: Server, tmp_path: Path) -> None:
    found = profile(write_model(tmp_path / "m.onnx"), server.url, rounds=4)
    assert (found.complete, found.noisy, found.certified, found.interval) == (True, True, False, None)
    assert found.why_noisy == "too few rounds: 4 of at least 8"


@pytest.mark.slow
def test_a_line_that_falls_silent(server: Server, tmp_path: Path) -> None:
    """Nothing arrives any more, and nobody says so: 15 s without an answer to a keep-alive are a lost device."""
    stopped: list[psutil.Process] = []

    def stop_all(stage: str, done: int, total: int) -> None:
        if stage == "measuring" and done == 3 and not stopped:
            stopped.extend(server.children())
            for process in stopped:
                process.suspend()

    try:
        with pytest.raises(DeviceLost, match=r"the connection dropped after \d+ of 30 rounds"):
            profile(write_model(tmp_path / "m.onnx", 2000), server.url, progress=stop_all)
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.parametrize("victim", ["connection", "script"])
def test_killed_in_the_middle(server: Server, tmp_path: Path, victim: str) -> None:
    """The rows so far are kept, exit code 6 for a dropped connection; a crash there is said to be one."""
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "measuring" and done == 3 and not killed:
            names = {"connection": "sshd", "script": "python3"}
            victims = [p for p in server.children() if p.name().startswith(names[victim])]
            for process in victims:
                killed.append(process.pid)
                process.send_signal(signal.SIGKILL)

    model = write_model(tmp_path / "m.onnx", 2000)  # 30 rounds of it last for seconds
    if victim == "script":
        with pytest.raises(TargetError, match=r"the run was killed there, most likely for want of memory"):
            profile(model, server.url, progress=kill)
    else:
        with pytest.raises(DeviceLost, match=r"the connection dropped after \d+ of 30 rounds") as caught:
            profile(model, server.url, progress=kill, date="today")
        assert caught.value.exit_code == DEVICE_LOST == 6
        assert "\n" not in str(caught.value)
        partial = caught.value.partial
        assert isinstance(partial, Measured)
        assert not partial.complete
        assert not partial.certified
        assert 3 <= len(partial.samples_ms) < 30
        assert partial.why_partial.startswith("the connection dropped after")
        assert partial.environment["date"] == "today"
    assert killed
    for _ in range(100):  # the script there sees its input close, and goes
        if not list(server.temporary.iterdir()):
            break
        time.sleep(0.1)
    assert not list(server.temporary.iterdir())


def test_time_is_up(server: Server, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", 2000, batch="n")
    with pytest.raises(DeviceLost, match=r"time was up after \d+ of 1000 rounds") as caught:
        profile(model, server.url, batch=100, rounds=1000, timeout_s=5)
    assert isinstance(caught.value.partial, Measured)


def test_another_interpreter(server: Server, tmp_path: Path) -> None:
    found = profile(write_model(tmp_path / "m.onnx"), f"{server.url}?python={sys.executable}", rounds=8)
    assert found.complete
