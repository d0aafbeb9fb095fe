"""The child process: whatever the parser does, the parent goes on with one line and plain files."""

from __future__ import annotations

import os
import signal
import site
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgecompile.errors import EdgeCompileError, InputError, Refused, Unsupported
from edgecompile.ingest import ChildLimits, parse_in_child, read_status
from edgecompile.ingest.child import PARSERS
from tests.ingest import hostile_parsers

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = [
    name
    for name, value in vars(hostile_parsers).items()
    if getattr(value, "__module__", "") == hostile_parsers.__name__
]
TABLE: Mapping[str, str] = {name: f"tests.ingest.hostile_parsers:{name}" for name in FUNCTIONS}
UNUSED = "the file is not used"
QUICK = ChildLimits(wall_s=20, memory_bytes=2 << 30, written_bytes=8 << 20)


def run(name: str, out: Path, limits: ChildLimits = QUICK, **args: object) -> Path:
    return parse_in_child(name, args, out, limits, TABLE, search=[ROOT])


def error_of(name: str, out: Path, limits: ChildLimits = QUICK, **args: object) -> EdgeCompileError:
    with pytest.raises(EdgeCompileError) as caught:
        run(name, out, limits, **args)
    assert str(caught.value).isprintable()
    return caught.value


def test_files_and_result_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("PYTHONSTARTUP", "/etc/startup.py")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    model = tmp_path / "model.bin"
    model.write_bytes(b"12")
    out = run("good", tmp_path / "new" / "out", path=model, number=3)
    assert (out / "data.txt").read_text() == "here"
    status = read_status(out)
    assert status.result["args"] == {"path": str(model), "number": 3}
    assert (status.result["files"], status.result["torch"]) == ([], False)
    assert status.result["cwd"] not in (os.getcwd(), str(ROOT))
    assert not Path(status.result["cwd"]).exists()
    environment = status.result["env"]
    assert not {"SECRET_TOKEN", "PYTHONSTARTUP"} & set(environment)
    assert environment["LD_LIBRARY_PATH"] == "/opt/lib"
    assert environment["HOME"] == status.result["cwd"]


@pytest.mark.parametrize("name", ["sleep", "silent"])
def test_the_wall_clock(tmp_path: Path, name: str) -> None:
    start = time.monotonic()
    error = error_of(name, tmp_path / "out", ChildLimits(wall_s=1))
    assert 1 <= time.monotonic() - start < 5
    assert str(error) == f"{name}: parsing took longer than 1 s (stage: parse {name}); {UNUSED}"
    assert (type(error), error.exit_code) == (InputError, 2)


def test_processor_time(tmp_path: Path) -> None:
    error = error_of("loop", tmp_path / "out", ChildLimits(wall_s=30, cpu_s=1))
    assert str(error) == f"loop: parsing used more than 1 s of processor time (stage: parse loop); {UNUSED}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "memory",
            f"memory: parsing needs more than 2.0 GB of memory (stage: parse memory); {UNUSED}",
        ),
        ("leave", "leave: the parser ended with code 3 and no result (stage: parse leave): leaving early"),
        (
            "segfault",
            f"segfault: the parser was ended by SIGSEGV (stage: parse segfault); {UNUSED}",
        ),
        (
            "killed",
            f"killed: the parser was ended by SIGKILL, often for want of memory (stage: parse killed); {UNUSED}",
        ),
        (
            "realtime_signal",
            f"realtime_signal: the parser was ended by signal 40 (stage: parse realtime_signal); {UNUSED}",
        ),
        ("big_file", "big_file: the file could not be parsed: OSError: [Errno 27] File too large"),
        ("other_error", "other_error: the file could not be parsed: KeyError: 'odd\\n\\x1b[31mname'"),
        (
            "not_json",
            "not_json: the file could not be parsed: TypeError: Object of type object is not JSON serializable",
        ),
        ("input_error", "a plain reason"),
        (
            "forged",
            "forged: the parser ended with code 0 and no result (stage: parse forged): it said nothing",
        ),
        (
            "huge_status",
            "huge_status: the parser ended with code 0 and no result (stage: parse huge_status): it said nothing",
        ),
        ("forged_error", "bye\\x1b"),
    ],
)
def test_every_failure_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    error = error_of(name, tmp_path / "out")
    assert str(error) == text
    assert (type(error), error.exit_code) == (InputError, 2)


def test_memory_that_torch_asks_for(tmp_path: Path) -> None:
    error = error_of("torch_memory", tmp_path / "out", ChildLimits(wall_s=60))
    assert str(error) == f"torch_memory: parsing needs more than 8.0 GB of memory (stage: parse torch_memory); {UNUSED}"


def test_errors_of_ours_keep_their_class(tmp_path: Path) -> None:
    refused = error_of("refuse", tmp_path / "a")
    assert isinstance(refused, Refused)
    assert (refused.rule, refused.value, refused.exit_code) == ("EC-IN-007", "4 things", 8)
    assert str(refused) == "file: 4 things refused by EC-IN-007 (at most 3); use fewer"
    unsupported = error_of("unsupported", tmp_path / "b")
    assert isinstance(unsupported, Unsupported)
    assert (unsupported.reasons, unsupported.exit_code) == (["Foo (node a)", "Bar (node b)"], 5)
    assert str(unsupported) == "net: 2 reasons: Foo (node a); Bar (node b)"


def test_output_is_bounded(tmp_path: Path) -> None:
    error = error_of("noisy", tmp_path / "out")
    assert "the parser ended with code 4 and no result" in str(error)
    assert len(str(error)) < 500


def test_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        out = run("network", tmp_path / "out", port=server.getsockname()[1])
    status = read_status(out)
    if any(note.startswith("network not cut") for note in status.notes):
        pytest.skip("this system does not let a process unshare its network")
    assert status.result.startswith("failed: ")


def test_no_writes_elsewhere(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.txt"
    status = read_status(run("write_elsewhere", tmp_path / "out", target=str(target)))
    if any(note.startswith("writes not confined") for note in status.notes):
        pytest.skip("this kernel has no Landlock")
    assert status.result == "PermissionError"
    assert not target.exists()


def test_links_are_refused(tmp_path: Path) -> None:
    error = error_of("link", tmp_path / "out")
    assert isinstance(error, Refused)
    assert (
        str(error)
        == "link: 'weights' left by the parser refused by EC-IN-050 (plain files only); there is no way round"
    )


def test_what_the_child_started_ends_with_it(tmp_path: Path) -> None:
    pid = int(read_status(run("leaves_a_daemon", tmp_path / "out")).result)
    for _ in range(50):
        if not _runs(pid):
            return
        time.sleep(0.1)
    pytest.fail("a process that the parser started is still there")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_the_parent(tmp_path: Path, end: signal.Signals) -> None:
    """Ctrl-C and kill -9 of the parent leave no child behind."""
    code = (
        "import sys, pathlib\n"
        "from edgecompile.ingest import parse_in_child\n"
        "parse_in_child('sleep', {}, pathlib.Path(sys.argv[1]), "
        "parsers={'sleep': 'tests.ingest.hostile_parsers:sleep'})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], env=environment, stderr=subprocess.PIPE
    )
    children: list[str] = []
    for _ in range(100):
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        if children and b"edgecompile.ingest.child" in Path(f"/proc/{children[0]}/cmdline").read_bytes():
            break
        time.sleep(0.05)
    time.sleep(0.5)
    parent.send_signal(end)
    parent.communicate(timeout=10)
    assert children
    for _ in range(50):
        if not _runs(int(children[0])):
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent")


def test_from_another_thread(tmp_path: Path) -> None:
    """A parent's death signal belongs to the thread that started the child; a thread that lives is enough."""
    results: list[Path] = []
    thread = threading.Thread(target=lambda: results.append(run("good", tmp_path / "out")))
    thread.start()
    thread.join(30)
    assert results == [tmp_path / "out"]


@pytest.mark.parametrize("enabled", [True, False])
def test_packages_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool) -> None:
    """HOME is another one in the child, so the user's own packages are named to it where they are in use."""
    monkeypatch.setattr(site, "ENABLE_USER_SITE", enabled)
    path = read_status(run("good", tmp_path / "out")).result["env"]["PYTHONPATH"].split(os.pathsep)
    assert (site.getusersitepackages() in path) is enabled
    assert str(ROOT) in path


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no parser for 'onx'; did you mean onnx\? \(known: onnx, pt2, torch_weights\)"
    ):
        parse_in_child("onx", {}, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(InputError, match="full: not empty; a parsed model needs a folder of its own"):
        parse_in_child("onnx", {}, tmp_path / "full")


def test_limits_grow_with_the_file() -> None:
    small, large = ChildLimits().for_file(0), ChildLimits().for_file(2 << 30)
    assert (small.wall_s, small.memory_bytes, small.written_bytes) == (60, 8 << 30, 1 << 30)
    assert large.wall_s is not None
    assert large.memory_bytes is not None
    assert large.wall_s > 160
    assert large.memory_bytes > 20 << 30


def test_parsers_are_inside_edgecompile() -> None:
    assert all(spec.startswith("edgecompile.models.") for spec in PARSERS.values())
    assert sorted(PARSERS) == ["onnx", "pt2", "torch_weights"]
