"""What may be said of rounds that came over a wire, and of lines that nobody should trust."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgecompile.remote
from edgecompile.errors import DeviceLost, OutputError, TargetError
from edgecompile.measure import Samples, median_ms, quantile_ms
from edgecompile.remote.address import parse_address
from edgecompile.remote.board import crashed, failed_copy, failed_run, probe_script, read_probe, run_script
from edgecompile.remote.measured import Heard, measured
from edgecompile.remote.ssh_command import scp, ssh, unreachable
from edgecompile.remote.wire import Transcript, printable

BOARD = parse_address("ssh://me@board:2222")


def steady(rounds: int = 30, seed: int = 0) -> list[list[float]]:
    return (np.random.default_rng(seed).normal(1e-3, 1e-5, (rounds, 40))).tolist()


def test_the_statistics_are_those_of_measure() -> None:
    rounds = steady()
    found = measured("ssh://a", "ssh", Heard(rounds))
    samples = Samples(tuple(map(tuple, rounds)))
    assert found.interval == median_ms(samples)
    assert dict(found.percentiles) == {p: quantile_ms(samples, p / 100) for p in (50, 90, 97, 99)}
    assert found.certified


def test_few_samples_have_no_percentiles() -> None:
    found = measured("ssh://a", "ssh", Heard([r[:3] for r in steady()]))
    assert set(found.percentiles.values()) == {None}
    assert found.interval is not None


def test_nothing_at_all() -> None:
    found = measured("ssh://a", "ssh", Heard(), "the connection dropped after 0 of 30 rounds")
    assert (found.complete, found.certified, found.interval, found.samples_ms) == (False, False, None, ())


def test_a_cut_run_is_not_certified() -> None:
    assert not measured("ssh://a", "ssh", Heard(steady()), "the connection dropped").certified


def test_a_clock_that_falls() -> None:
    found = measured("ssh://a", "ssh", Heard(steady(), clocks_mhz=[1800.0] * 15 + [1200.0] * 15))
    assert found.why_noisy == "throttling: the clock fell from 1800 to 1200 MHz"
    assert found.environment["clock_mhz"] == [1200.0, 1800.0]
    idle = [1800.0, 600.0] * 15  # read at a moment of rest: no throttling
    assert measured("ssh://a", "ssh", Heard(steady(), clocks_mhz=idle)).certified


def test_times_that_rise() -> None:
    rounds = (np.array(steady()) * np.linspace(1, 1.2, 30)[:, None]).tolist()
    assert measured("ssh://a", "ssh", Heard(rounds)).why_noisy.startswith("throttling: times rose by 1")
    falling = measured("ssh://a", "ssh", Heard(rounds[::-1]))
    assert "throttling" not in falling.why_noisy


def test_times_that_scatter() -> None:
    rng = np.random.default_rng(0)
    rounds = (np.array(steady()) * rng.choice([1.0, 1.6], (30, 1))).tolist()
    assert measured("ssh://a", "ssh", Heard(rounds)).why_noisy.startswith("spread: the 99 % interval")


def test_steady_devices_are_rarely_called_noisy() -> None:
    noisy = sum(measured("a", "ssh", Heard(steady(seed=seed))).noisy for seed in range(100))
    assert noisy <= 2


@given(st.text(max_size=80))
def test_lines_that_are_not_ours_are_passed_over(line: str) -> None:
    assert Transcript("nonce").hear(line) == ""


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "round", "seconds": [0.0], "clock_mhz": None, "temperature_c": None},
        {"event": "round", "seconds": [float("nan")], "clock_mhz": None, "temperature_c": None},
        {"event": "round", "seconds": ["x"], "clock_mhz": None, "temperature_c": None},
        {"event": "round", "seconds": [1e-3], "clock_mhz": float("inf"), "temperature_c": None},
        {"event": "round"},
        {"event": "operators", "rows": [["a", 1.0]]},
        {"event": "environment", "facts": 3},
        {},
    ],
)
def test_lines_that_cannot_be_ours(fields: dict[str, object]) -> None:
    with pytest.raises(DeviceLost, match=r"a line that its script does not write"):
        Transcript("n").hear(json.dumps({"nonce": "n", **fields}))


def test_a_device_cannot_write_to_the_terminal() -> None:
    said = Transcript("n")
    said.hear(json.dumps({"nonce": "n", "event": "error", "text": "\x1b[2J\nall good" + "x" * 1000}))
    assert said.error.isprintable()
    assert len(said.error) <= 300
    assert printable("a\x00b\r\nc") == "a b  c"
    assert printable(None) == ""


def test_command_lines() -> None:
    """Checking of host keys is on, questions are off, and nothing of the address can become an option."""
    command = ssh(BOARD)
    assert command[-6:] == ["me", "-T", "--", "board", "sh", "-s"]
    for option in ("StrictHostKeyChecking=yes", "BatchMode=yes", "ConnectTimeout=10"):
        assert command[command.index(option) - 1] == "-o"
    copied = scp(BOARD, [Path("/tmp/a:b.onnx")], "/tmp/t")
    assert copied[-3:] == ["--", "/tmp/a:b.onnx", "me@board:/tmp/t/"]
    assert scp(parse_address("ssh://me@[::1]"), [Path("/a")], "/t")[-1] == "me@[::1]:/t/"


@pytest.mark.parametrize(
    ("complaint", "message"),
    [
        ("ssh: connect to host b port 22: Connection timed out", r"not reachable \(connection timed out\)"),
        ("ssh: connect to host b port 22: No route to host", r"not reachable \(no route to host\)"),
        ("ssh: Could not resolve hostname b: Name or service not known", r"no host of that name"),
        ("me@b: Permission denied (publickey).", r"it accepted no key; give it yours: ssh-copy-id -p 2222 me@board"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", r"refused: .* ssh-keygen -R '\[board\]:2222'"),
        ("No ED25519 host key is known for b and you have requested strict checking.", r"refused: .*not known"),
        ("kex_exchange_identification: banner line\nsomething new", r"the connection failed: something new"),
        ("", r"ssh ended without a word"),
    ],
)
def test_complaints_of_ssh(complaint: str, message: str) -> None:
    error = unreachable(BOARD, complaint)
    assert error.exit_code == 6
    with pytest.raises(DeviceLost, match=message):
        raise error


def test_what_a_board_answers() -> None:
    lines = {"os": "Linux", "machine": "riscv64", "missing": "onnxruntime", "done": "yes"}

    def text(**changed: str) -> str:
        return "Welcome!\n" + "".join(f"n {k} {v}\n" for k, v in {**lines, **changed}.items() if v is not None)

    with pytest.raises(TargetError, match=r"wrong architecture: riscv64 has no builds of onnxruntime"):
        read_probe(text(), "n", BOARD)
    with pytest.raises(TargetError, match=r"it runs Darwin, not Linux"):
        read_probe(text(os="Darwin"), "n", BOARD)
    with pytest.raises(OutputError, match=r"no temporary folder can be made there: mktemp: read-only"):
        read_probe(text(missing="", nofolder="mktemp: read-only"), "n", BOARD)
    with pytest.raises(DeviceLost, match=r"which is not a plain path"):
        read_probe(text(missing="", folder="/tmp/$(reboot)"), "n", BOARD)
    with pytest.raises(DeviceLost, match=r"its shell did not run a script"):
        read_probe("This account is currently not available.", "n", BOARD)
    free = "/dev/mmcblk0p1  30000  20000  10000  67% /"
    board = read_probe(text(missing="", folder="/tmp/tmp.aB3", free=free), "n", BOARD)
    assert (board.folder, board.free_bytes) == ("/tmp/tmp.aB3", 10_240_000)
    assert (board.tegra, board.trtexec, board.banner) == ("", "", "")
    jetson = text(missing="", folder="/t", tegra="# R36", trtexec="/usr/bin/trtexec", banner="[TensorRT v100300]")
    assert read_probe(jetson, "n", BOARD).trtexec == "/usr/bin/trtexec"


def test_what_ended_without_a_word() -> None:
    assert "built for another processor" in str(crashed(132, "", "ssh://b"))
    assert "want of memory" in str(crashed(137, "", "ssh://b"))
    assert "status 1: ValueError: x" in str(crashed(1, "Traceback\nValueError: x\n", "ssh://b"))
    assert "its disk is full" in str(failed_run("No space left on device (/tmp/x)", 28, "ssh://b"))
    assert "its disk is full" in str(failed_copy('scp: write remote "/t/m": No space left on device', "ssh://b"))
    assert "may be full" in str(failed_copy('scp: write remote "/t/m": Failure', "ssh://b"))
    assert failed_copy("Connection closed", "ssh://b") is None


def test_scripts_quote_what_they_are_given() -> None:
    assert "P=/opt/a+b/bin/python\n" in probe_script("0f", "/opt/a+b/bin/python")
    assert run_script("/tmp/a b", "python3").startswith("cd '/tmp/a b' && python3 board_script.py;")


@pytest.mark.parametrize("name", ["board_script.py", "mac_script.py"])
def test_scripts_stand_alone(name: str) -> None:
    """They parse as Python 3.8, and import nothing of ours."""
    source = Path(edgecompile.remote.__file__).with_name(name).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    roots = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    roots |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not any("edgecompile" in root for root in roots)
