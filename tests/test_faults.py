"""Builds that are killed, interrupted, starved of disk, or beside each other: the last good artifact is untouched."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecompile.building.other_reports import told
from edgecompile.errors import INTERRUPTED, OK, TERMINATED, USAGE
from edgecompile.store import verifies
from tests import warm

KEPT = ("--pipeline", "quantize(keep=always)", "--calib", "calib.npz", "--eval", "eval.npz")
STAGES = (
    "loading the model",
    "exact passes",
    "running the teacher",
    "emitting",
    "scoring",
    "measuring",
    "running quantize",
    "verifying",
    "publishing",
)
VISIBLE = {".store", "host", "rejected", "report.html", "report.json"}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A folder with a model and data; the artifacts that an undisturbed exact and an INT8 build give."""

    folder: Path
    exact: str
    kept: str

    def own(self, path: Path) -> Path:
        """A copy with the exact artifact in `o`, and nothing of the INT8 build in the cache."""
        for name in ("net.py", "calib.npz", "eval.npz", "logits.npy"):
            shutil.copy(self.folder / name, path / name)
        shutil.copytree(self.folder / "o", path / "o", symlinks=True)
        shutil.copytree(self.folder / "exact cache", path / "cache")
        return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("faults")
    warm.write_user_files(folder)
    built = []
    for out, options in (("o", ("--pipeline", "")), ("kept", KEPT)):
        assert warm.cli(folder, "build", "net.py:net", "--out", out, *options).wait().code == OK
        built.append((folder / out / "host").readlink().name)
        if out == "o":
            shutil.copytree(folder / "cache", folder / "exact cache")
    return Prepared(folder, *built)


@pytest.fixture
def own(prepared: Prepared, tmp_path: Path) -> Path:
    return prepared.own(tmp_path)


def untouched(folder: Path, artifact: str) -> None:
    """The last good artifact is there and whole, and nobody sees a half-written thing."""
    out = folder / "o"
    assert (out / "host").readlink().name == artifact
    assert verifies(out / "host")
    assert {p.name for p in out.iterdir()} <= VISIBLE | {p.name for p in out.glob(".tmp-*")}
    assert json.loads((out / "report.json").read_text())["schema_version"]
    assert (out / "report.html").read_text().rstrip().endswith("</html>")


def completes(folder: Path, artifact: str) -> warm.Ended:
    """The same command again goes on, gives the same bytes, and clears up."""
    ended = warm.cli(folder, "build", "net.py:net", "--out", "o", *KEPT).wait()
    assert ended.code == OK, ended.err
    assert (folder / "o/host").readlink().name == artifact
    assert {p.name for p in (folder / "o").iterdir()} == {".store", "host", "report.html", "report.json"}
    left = [p.name for p in (folder / "o/.store").iterdir() if p.is_dir()]
    assert left == [artifact]
    return ended


def dies(folder: str, nth: int) -> None:
    """A build that kills its process without warning at the n-th stage that it comes to."""
    import edgecompile

    seen: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        if seen[-1:] != [stage]:
            seen.append(stage)
            print(f"edgecompile: {stage}", file=sys.stderr, flush=True)
            if len(seen) == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    options = {"pipeline": KEPT[1], "calib": KEPT[3], "eval": KEPT[5], "out": "o"}
    edgecompile.build("net.py:net", progress=progress, **options)
    print("done", flush=True)


@pytest.mark.parametrize("nth", [8, pytest.param(0, marks=pytest.mark.slow)])
def test_killed_at_a_stage_boundary(own: Path, prepared: Prepared, nth: int) -> None:
    """At each stage in turn (at one of them in the default run), going on from what the killed builds left."""
    met: set[str] = set()
    for number in [nth] if nth else range(1, 40):
        ended = warm.start(own, dies, str(own), number).wait()
        met |= {line.removeprefix("edgecompile: ") for line in ended.err.splitlines()}
        if ended.out:
            assert ended.code == OK
            break
        assert ended.code == -signal.SIGKILL
        untouched(own, prepared.exact)
    assert met <= set(STAGES)
    if not nth:
        assert {"loading the model", "exact passes", "measuring", "verifying", "publishing"} <= met
    completes(own, prepared.kept)


@pytest.mark.slow
def test_killed_at_each_stage_of_a_first_build(prepared: Prepared, tmp_path: Path) -> None:
    """Each time from an empty cache, so that every stage is really met."""
    met: list[str] = []
    for number in range(1, 40):
        folder = tmp_path / str(number)
        folder.mkdir()
        prepared.own(folder)
        shutil.rmtree(folder / "cache")
        ended = warm.start(folder, dies, str(folder), number).wait()
        if ended.out:
            break
        untouched(folder, prepared.exact)
        met = [line.removeprefix("edgecompile: ") for line in ended.err.splitlines()]
        completes(folder, prepared.kept)
        shutil.rmtree(folder)
    assert set(met) == set(STAGES)


SIGNALS = [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)]


def interrupted(folder: Path, number: int, code: int, stage: str, wait_s: float, artifacts: tuple[str, str]) -> bool:
    """Send a signal some time after a stage began; whether the build had not ended before."""
    child = warm.cli(folder, "build", "net.py:net", "--out", "o", *KEPT)
    child.reaches(stage)
    time.sleep(wait_s)
    with contextlib.suppress(ProcessLookupError):
        child.send(number)
    ended = child.wait()
    if ended.code == OK:  # it was at its end: then it ended well
        untouched(folder, artifacts[1])
        return False
    assert ended.code == code, ended.err
    assert "; the last good artifact is untouched, the same command goes on" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    said = json.loads((folder / "o/report.json").read_text())["exit_code"]
    untouched(folder, artifacts[1] if said == OK else artifacts[0])  # a signal while the report is printed
    assert said in (code, OK)
    return said == code


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_interrupted(own: Path, prepared: Prepared, number: int, code: int) -> None:
    assert interrupted(own, number, code, "exact passes", 0.1, (prepared.exact, prepared.kept))


def test_a_signal_behind_a_librarys_clean_up_is_what_is_told() -> None:
    """torch's tracer raises an assertion of its own where Ctrl-C falls between its modes."""

    def stumbling() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise AssertionError("Trying to pop empty mode stack")

    with pytest.raises(AssertionError) as caught:
        stumbling()
    assert type(told(caught.value)) is KeyboardInterrupt
    assert told(own := AssertionError("a bug")) is own


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["loading the model", "exact passes", "running quantize", "measuring", "verifying", "publishing"]
)
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_interrupted_at_a_random_moment(
    own: Path, prepared: Prepared, number: int, code: int, stage: str, request: pytest.FixtureRequest
) -> None:
    wait_s = random.Random(request.node.name).random() * (0.1 if stage in ("verifying", "publishing") else 1)
    interrupted(own, number, code, stage, wait_s, (prepared.exact, prepared.kept))
    completes(own, prepared.kept)


@pytest.mark.slow
@pytest.mark.parametrize("limit_bytes", [1000, 9_000])
def test_files_that_may_not_grow(own: Path, prepared: Prepared, limit_bytes: int) -> None:
    """RLIMIT_FSIZE is how a quota looks to a process: every file beyond it fails in the middle of writing."""
    before = (own / "o/report.json").read_bytes()
    child = warm.cli(own, "build", "net.py:net", "--out", "o", *KEPT, limits={resource.RLIMIT_FSIZE: limit_bytes})
    ended = child.wait()
    assert ended.code == USAGE, ended.err
    said = [line for line in ended.err.splitlines() if line.startswith("edgecompile: ")]
    assert re.search(r"larger than this process may write; raise `ulimit -f`|File too large; free some space", said[-1])
    assert "Traceback" not in ended.err
    untouched(own, prepared.exact)
    if limit_bytes < len(before):
        assert (own / "o/report.json").read_bytes() == before
    completes(own, prepared.kept)


@pytest.fixture
def tmpfs(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    size = f"size={request.param}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    "tmpfs", [20, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8, 12, 28))], indirect=True
)
def test_a_full_disk(own: Path, prepared: Prepared, tmpfs: Path) -> None:
    ended = warm.cli(own, "build", "net.py:net", "--out", str(tmpfs), *KEPT).wait()
    assert ended.code == USAGE
    assert re.search(r"the disk is full; free some space|No space left on device; free", ended.err.splitlines()[-1])
    assert "Traceback" not in ended.err
    assert not (tmpfs / "host").exists()
    assert not list(tmpfs.glob(".tmp-*"))


@pytest.mark.slow
def test_two_builds_into_one_folder(own: Path, prepared: Prepared) -> None:
    first = warm.cli(own, "build", "net.py:net", "--out", "o", *KEPT)
    first.reaches("exact passes")
    before = (own / "o/report.json").read_bytes()
    second = warm.cli(own, "build", "net.py:net", "--out", "o", "--pipeline", "").wait()
    assert second.code == USAGE
    assert f"o: held by another build (pid {first.process.pid} on " in second.err.splitlines()[-1]
    assert (own / "o/report.json").read_bytes() == before
    assert first.wait().code == OK
    assert (own / "o/host").readlink().name == prepared.kept


@pytest.mark.slow
def test_builds_that_share_a_cache(own: Path, prepared: Prepared) -> None:
    children = [warm.cli(own, "build", "net.py:net", "--out", f"o{i}", *KEPT) for i in range(3)]
    for i, child in enumerate(children):
        ended = child.wait()
        assert ended.code == OK, ended.err
        assert (own / f"o{i}/host").readlink().name == prepared.kept
        assert "quarantin" not in ended.err


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(own: Path, prepared: Prepared) -> None:
    shutil.rmtree(own / "cache")
    (own / "cache").write_text("a file in its place")
    ended = warm.cli(own, "build", "net.py:net", "--out", "o", *KEPT).wait()
    assert ended.code == OK, ended.err
    assert (own / "o/host").readlink().name == prepared.kept
    assert all(line.startswith("edgecompile: ") for line in ended.err.splitlines())


WATCH = """
import os, socket
def denied(*arguments, **keywords):
    with open(os.environ["WATCHED"], "a") as file:
        file.write(f"{arguments} {keywords}\\n")
    raise OSError("no network here")
class Socket(socket.socket):
    def connect(self, address):
        denied(address) if self.family != socket.AF_UNIX else super().connect(address)
socket.socket = Socket
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = denied
"""


def process(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[1])
    own = {"PYTHONPATH": root, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    merged = {**os.environ, **own, **env}
    merged["PYTHONPATH"] = os.pathsep.join((env["PYTHONPATH"], root)) if "PYTHONPATH" in env else root
    command = [sys.executable, "-m", "edgecompile", *arguments]
    return subprocess.run(command, cwd=folder, env=merged, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_process_of_its_own_looks_nothing_up_and_says_only_its_own_lines(tmp_path: Path) -> None:
    """The flagship path in a fresh interpreter, where libraries are first imported: sockets fail and are recorded."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(WATCH)
    watched = tmp_path / "watched"
    env = {"PYTHONPATH": str(hook), "WATCHED": str(watched)}
    ended = process(tmp_path, "build", "digits", "--max-drop", "2pp", "--out", "o", **env)
    assert ended.returncode == OK, ended.stderr
    assert not watched.exists(), watched.read_text()
    noise = [line for line in ended.stderr.splitlines() if not line.startswith("edgecompile: ")]
    assert noise == []
    check = [sys.executable, "-c", "import socket; socket.create_connection(('localhost', 1))"]
    with contextlib.suppress(subprocess.CalledProcessError):  # the hook does watch
        subprocess.run(check, env={**os.environ, **env}, check=True, capture_output=True)
    assert "localhost" in watched.read_text()


@pytest.mark.slow
def test_the_same_bytes_whatever_the_hash_seed_folder_and_environment(prepared: Prepared, tmp_path: Path) -> None:
    """By one runtime: which of two is the faster is a measurement, and a fresh build's bytes follow from it."""
    bundles = []
    variants: list[dict[str, Any]] = [
        {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"},
        {"PYTHONHASHSEED": "2", "LC_ALL": "C", "TZ": "UTC"},
    ]
    for index, env in enumerate(variants):
        folder = tmp_path / f"place {index}" / ("deeper" * index)
        folder.mkdir(parents=True)
        prepared.own(folder)
        shutil.rmtree(folder / "cache")
        old = os.umask(0o077 if index else 0o022)
        try:
            ended = process(folder, "build", "net.py:net", "--target", "onnx@host", "--out", "fresh", *KEPT, **env)
        finally:
            os.umask(old)
        assert ended.returncode == OK, ended.stderr
        bundles.append((folder / "fresh/onnx@host").resolve())
    assert bundles[0].name == bundles[1].name  # their address: a digest of every file
    same = "model.onnx"
    assert (bundles[0] / same).read_bytes() == (prepared.folder / "kept/host" / same).read_bytes()
