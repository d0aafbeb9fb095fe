"""Publishing, locking and caching under kill -9, full disks, failing calls and concurrent writers."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompile.errors import USAGE, OutputError
from edgecompile.store import (
    Cache,
    content_hash,
    hold,
    key,
    point,
    prune,
    publish,
    seal,
    stage,
    unpoint,
    verifies,
    write_atomic,
    writing,
)

REPOSITORY = Path(__file__).resolve().parents[1]


def fill_with(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "weights").mkdir()
        for name in ("model.onnx", "weights/a.bin", "manifest.json"):
            (folder / name).write_text(text)

    return fill


def texts(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.rglob("*") if path.is_file()}


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.rglob("*") if path.name.startswith(("stage-", ".tmp-"))]


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    return stdout


# --- what is published


def test_publish_makes_a_relative_link_to_a_folder_named_by_its_content(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    sealed = publish(out, "host", fill_with("one"))
    assert os.readlink(out / "host") == f".store/{sealed.name}"
    assert sealed.name == content_hash(sealed)
    assert verifies(out / "host")
    moved = out.rename(tmp_path / "moved")
    assert texts(moved / "host") == {"one"}


def test_same_content_is_the_same_folder_whatever_umask_time_and_order(tmp_path: Path) -> None:
    def backwards(folder: Path) -> None:
        (folder / "manifest.json").write_text("one")
        (folder / "weights").mkdir(mode=0o700)
        (folder / "weights/a.bin").write_text("one")
        (folder / "model.onnx").write_text("one")
        (folder / "model.onnx").chmod(0o600)
        os.utime(folder / "model.onnx", (0, 0))

    first = publish(tmp_path / "a", "host", fill_with("one"))
    second = publish(tmp_path / "b", "host", backwards)
    assert first.name == second.name
    assert publish(tmp_path / "a", "host", backwards) == first
    modes = {path.name: path.stat().st_mode & 0o777 for path in (second, *second.rglob("*"))}
    assert modes == {
        second.name: 0o755,
        "weights": 0o755,
        "a.bin": 0o644,
        "model.onnx": 0o644,
        "manifest.json": 0o644,
    }


def test_a_script_stays_executable_and_that_counts(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "build.sh").write_text("true")

    def fill_executable(folder: Path) -> None:
        fill(folder)
        (folder / "build.sh").chmod(0o744)

    plain, executable = publish(tmp_path, "a", fill), publish(tmp_path, "b", fill_executable)
    assert plain != executable
    assert (executable / "build.sh").stat().st_mode & 0o777 == 0o755


tree = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "ab", "a-b", "é"]), min_size=1, max_size=3).map("/".join),
    st.binary(max_size=3),
    max_size=4,
).filter(lambda files: not any(x != y and y.startswith(x + "/") for x in files for y in files))


@given(tree, tree)
def test_hash_differs_exactly_when_names_or_bytes_do(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], two: dict[str, bytes]
) -> None:
    hashes = []
    for files in (one, two):
        folder = tmp_path_factory.mktemp("tree")
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        hashes.append(content_hash(folder))
    assert (hashes[0] == hashes[1]) == (one == two)


def test_links_are_not_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only files and folders are published"):
        publish(tmp_path, "host", lambda folder: (folder / "link").symlink_to("/etc/passwd"))
    assert not (tmp_path / "host").exists()


def test_a_damaged_store_folder_is_replaced_by_the_next_build(tmp_path: Path) -> None:
    sealed = publish(tmp_path, "host", fill_with("one"))
    (sealed / "model.onnx").write_text("two")
    assert not verifies(tmp_path / "host")
    publish(tmp_path, "host", fill_with("one"))
    assert verifies(tmp_path / "host")
    prune(tmp_path)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, OSError])
def test_a_failing_fill_leaves_the_last_good_and_no_trace(tmp_path: Path, error: type[BaseException]) -> None:
    publish(tmp_path, "host", fill_with("old"))

    def fill(folder: Path) -> None:
        fill_with("new")(folder)
        raise error

    with pytest.raises(error):
        publish(tmp_path, "host", fill)
    assert texts(tmp_path / "host") == {"old"}
    assert not leftovers(tmp_path)


def test_rejected_candidates_and_their_removal(tmp_path: Path) -> None:
    good = publish(tmp_path, "host", fill_with("good"))
    with stage(tmp_path) as folder:
        fill_with("bad")(folder)
        sealed = seal(folder, tmp_path)
        assert not (tmp_path / "rejected").exists()
        assert prune(tmp_path) == []  # sealed but not yet named: alive while its stage is
        point(tmp_path, "rejected/host", sealed)
    assert os.readlink(tmp_path / "rejected/host") == f"../.store/{sealed.name}"
    assert prune(tmp_path) == []
    unpoint(tmp_path, "rejected/host")
    unpoint(tmp_path, "rejected/host")
    assert prune(tmp_path) == [sealed]
    assert verifies(good)


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", ".store", ".store/x", "a/b/c"])
def test_names_that_leave_the_folder_are_bugs(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name for a published folder"):
        publish(tmp_path, name, fill_with("one"))


def test_prune_spares_the_living_and_takes_the_dead(tmp_path: Path) -> None:
    code = """if 1:
        import os, sys, pathlib
        from edgecompile.store import stage
        from edgecompile.store.publish import _marked, _temporary
        out = pathlib.Path(sys.argv[1])
        with stage(out) as folder:
            (folder / "half").write_text("half")
            _marked(lambda: _temporary(out / "report.json"))
            print(folder, flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert prune(tmp_path) == []
    assert (folder / "half").exists()
    process.kill()
    process.communicate()
    assert len(prune(tmp_path)) == 2
    assert not leftovers(tmp_path)
    assert prune(tmp_path / "absent") == []


# --- kill -9, full disks, failing calls


PUBLISHING_LOOP = """if 1:
    import pathlib, sys
    from edgecompile.store import publish, write_atomic
    out, start = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    def fill_with(text):
        def fill(folder):
            (folder / "weights").mkdir()
            for name in ("a.bin", "weights/b.bin", "manifest.json"):
                (folder / name).write_text(text)
        return fill
    print("ready", flush=True)
    for i in range(start, start + 10**6):
        publish(out, "host", fill_with(f"{i:09d}" * 20000))
        write_atomic(out / "report.json", (f"{i:09d}" * 20000).encode())
"""


def test_kill_9_at_any_time_leaves_a_whole_artifact(tmp_path: Path) -> None:
    rng = random.Random(0)
    publish(tmp_path, "host", fill_with("first"))
    for kill in range(20):
        process = child(PUBLISHING_LOOP, tmp_path, kill * 10**6)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.06))
        process.kill()
        process.communicate()
        assert verifies(tmp_path / "host")
        assert len(texts(tmp_path / "host")) == 1
        report = tmp_path / "report.json"
        if report.exists():
            assert report.read_text() == report.read_text()[:9] * 20000
        prune(tmp_path)
        assert not leftovers(tmp_path)
        assert len([path for path in (tmp_path / ".store").iterdir() if path.is_dir()]) == 1


FILE_SIZE_LIMIT = """if 1:
    import pathlib, resource, sys
    from edgecompile.errors import OutputError
    from edgecompile.store import Cache, publish, write_atomic
    out = pathlib.Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    fill = lambda folder: (folder / "big").write_bytes(bytes(200_000)) and None
    for act in (lambda: publish(out, "host", fill),
                lambda: write_atomic(out / "report.json", bytes(200_000)),
                lambda: Cache(out / "cache", warn=print).put("k", fill)):
        try:
            act()
        except OutputError as error:
            print(error)
"""


def test_a_file_larger_than_the_limit_is_one_line_and_the_last_good_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    publish(out, "host", fill_with("old"))
    write_atomic(out / "report.json", b"old")
    lines = finished(child(FILE_SIZE_LIMIT, out)).splitlines()
    advice = "a file is larger than this process may write; raise `ulimit -f`, or write to another folder"
    assert lines[:3] == [
        f"{out}: {advice}",
        f"{out}/report.json: {advice}",
        f"not cached: {out}/cache: {advice}",
    ]
    assert lines[3].endswith(advice)
    assert len(lines) == 4
    assert texts(out / "host") == {"old"}
    assert (out / "report.json").read_text() == "old"
    assert not leftovers(out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(disk)]
    if not mounted or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_disk_full(small_disk: Path) -> None:
    def big(folder: Path) -> None:
        for i in range(20):
            (folder / str(i)).write_bytes(bytes(100_000))

    def rust(folder: Path) -> None:
        import numpy
        from safetensors.numpy import save_file

        save_file({"w": numpy.zeros(1_000_000)}, folder / "weights.safetensors")

    publish(small_disk, "host", fill_with("old"))
    advice = f"{small_disk}: the disk is full; free some space, or write to another folder"
    for fill in (big, rust):
        with pytest.raises(OutputError) as caught:
            publish(small_disk, "host", fill)
        assert str(caught.value) == advice
        assert caught.value.exit_code == USAGE
    with pytest.raises(OutputError):
        write_atomic(small_disk / "report.json", bytes(1_000_000))
    said: list[str] = []
    kept = Cache(small_disk / "cache", said.append).put("k", big)
    assert len(list(kept.iterdir())) == 20
    assert len(said) == 1
    assert said[0].endswith("the disk is full; free some space, or write to another folder")
    assert texts(small_disk / "host") == {"old"}
    assert not leftovers(small_disk)
    publish(small_disk, "host", fill_with("new"))
    assert texts(small_disk / "host") == {"new"}


class Fault:
    """Makes the n-th call (and with `forever` all later ones) of the file system's functions fail."""

    names = ("open", "write", "fsync", "rename", "replace", "symlink", "mkdir", "chmod", "fchmod")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int, forever: bool) -> None:
        self.calls, self.fail_at, self.code, self.forever = 0, -1, code, forever
        self.fired: list[str] = []
        for name in self.names:
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))
        monkeypatch.setattr(io, "open", self.wrapped("io.open", io.open))

    def wrapped(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if self.fail_at >= 0:
                self.calls += 1
                if self.calls == self.fail_at or (self.forever and self.calls > self.fail_at):
                    self.fired.append(name)
                    raise OSError(self.code, os.strerror(self.code))
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failing_the_nth_call_never_harms_the_last_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, forever: bool
) -> None:
    publish(tmp_path, "host", fill_with("old"))
    write_atomic(tmp_path / "report.json", b"old")
    fault = Fault(monkeypatch, code, forever)
    seen: set[str] = set()
    for n in range(1, 500):
        fault.calls, fault.fail_at, fault.fired = 0, n, []
        new = f"new {n}"
        try:
            publish(tmp_path, "host", fill_with(new))
            write_atomic(tmp_path / "report.json", new.encode())
            failed = False
        except OutputError:
            failed = True
        fault.fail_at = -1
        seen.update(fault.fired)
        assert verifies(tmp_path / "host"), n
        assert len(texts(tmp_path / "host")) == 1
        assert (tmp_path / "report.json").read_text().startswith(("old", "new"))
        assert failed or texts(tmp_path / "host") == {new}
        if failed and not forever:  # (when the one fault hit the cleaning up itself, `prune` has the rest to do)
            assert not leftovers(tmp_path), (n, fault.fired)
        prune(tmp_path)
        assert not leftovers(tmp_path)
        if not fault.fired:
            break
    assert not fault.fired
    assert seen >= {"open", "write", "fsync", "rename", "replace", "symlink", "mkdir", "io.open"}


def test_everything_is_on_the_disk_before_it_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of fsync and rename, read off the descriptors: content, then the folders, then the names."""
    events: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def named(path: str) -> str:
        parts = Path(path).relative_to(tmp_path).parts
        return "/".join("STAGE" if part.startswith("stage-") else part for part in parts)

    def log(verb: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(first: int | Path, *rest: Path) -> None:
            target = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(rest[0])
            events.append(f"{verb} {named(target)}")
            real(first, *rest)

        return call

    monkeypatch.setattr(os, "fsync", log("fsync", fsync))
    monkeypatch.setattr(os, "rename", log("rename", rename))
    monkeypatch.setattr(os, "replace", log("replace", replace))
    sealed = publish(tmp_path, "host", fill_with("one"))
    stage = "fsync .store/STAGE"
    assert events == [
        f"{stage}/weights/a.bin",
        f"{stage}/weights",
        f"{stage}/model.onnx",
        f"{stage}/manifest.json",
        stage,
        f"rename .store/{sealed.name}",
        "fsync .store",
        "replace host",
        "fsync ",
    ]


def test_two_writers_at_once_leave_one_whole_artifact(tmp_path: Path) -> None:
    processes = [child(PUBLISHING_LOOP.replace("10**6", "12"), tmp_path, start) for start in (0, 100)]
    for process in processes:
        finished(process)
    assert verifies(tmp_path / "host")
    assert next(iter(texts(tmp_path / "host"))) in {f"{i:09d}" * 20000 for i in (11, 111)}
    prune(tmp_path)
    assert len([path for path in (tmp_path / ".store").iterdir() if path.is_dir()]) == 1


# --- what the user sees


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "host").mkdir()
    (tmp_path / "report.json").mkdir()
    in_the_way = "a file is where a folder is needed; move the file away, or write to another folder"
    under = tmp_path / "file" / "out"
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: publish(tmp_path / "file", "host", fill_with("x")), f"{tmp_path}/file: {in_the_way}"),
        (lambda: publish(under, "host", fill_with("x")), f"{under}: {in_the_way}"),
        (lambda: write_atomic(under, b""), f"{under}: {in_the_way}"),
        (lambda: hold(under).__enter__(), f"{under}: {in_the_way}"),
        (
            lambda: write_atomic(tmp_path / "report.json", b""),
            f"{tmp_path}/report.json: a folder is where a file is needed; move the folder away, "
            "or write to another folder",
        ),
        (
            lambda: publish(tmp_path, "host", fill_with("x")),
            f"{tmp_path}/host: is no link of edgecompile's; move it away, or write to another folder",
        ),
        (
            lambda: publish(tmp_path, "file", fill_with("x")),
            f"{tmp_path}/file: is no link of edgecompile's; move it away, or write to another folder",
        ),
        (lambda: publish(tmp_path, "file/host", fill_with("x")), f"{tmp_path}/file/host: {in_the_way}"),
        (
            lambda: publish(tmp_path / ("x" * 300), "host", fill_with("x")),
            f"{tmp_path}/{'x' * 300}: the path is too long; write to a shorter one",
        ),
    ]
    for act, message in cases:
        with pytest.raises(OutputError) as caught:
            act()
        assert str(caught.value) == message
        assert caught.value.exit_code == USAGE
    assert (tmp_path / "file").read_text() == "mine"
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EACCES, "no permission to write; change the permissions, or write to another folder"),
        (errno.EROFS, "the file system is read-only; write to another folder"),
        (errno.EDQUOT, "the disk quota is used up; free some space, or write to another folder"),
    ],
)
def test_refusals_that_root_does_not_meet(tmp_path: Path, code: int, advice: str) -> None:
    with pytest.raises(OutputError) as caught, writing(tmp_path):
        raise OSError(code, os.strerror(code), str(tmp_path / "x"))
    assert str(caught.value) == f"{tmp_path}: {advice}"


def test_errors_that_are_not_about_the_output_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), writing(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / "data.npz"))
    with pytest.raises(FileExistsError):  # a bug in the filling, not the user's doing
        publish(tmp_path, "host", lambda folder: folder.mkdir())
    with pytest.raises(RuntimeError), writing(tmp_path):
        raise RuntimeError("(os error 2)")


# --- one build at a time


HOLDER = """if 1:
    import pathlib, sys
    from edgecompile.store import hold
    with hold(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_the_second_build_is_told_who_holds_the_folder_and_kill_9_frees_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    holder = json.loads((tmp_path / ".store/holder.json").read_text())
    with pytest.raises(OutputError) as caught, hold(tmp_path):
        pass
    assert str(caught.value) == (
        f"{tmp_path}: held by another build (pid {process.pid} on {holder['host']}, "
        f"since {holder['since']}); wait for it to end, stop it (kill {process.pid}), "
        "or write to another folder"
    )
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with hold(tmp_path), pytest.raises(OutputError, match=f"pid {os.getpid()} "), hold(tmp_path):
        pass
    with hold(tmp_path):
        (tmp_path / ".store/holder.json").write_text("{")
        with pytest.raises(OutputError, match="another build that started this moment"), hold(tmp_path):
            pass
    assert not (tmp_path / ".store/holder.json").exists()


def test_waiting_for_the_folder(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    release = threading.Timer(0.2, process.communicate)
    release.start()
    with hold(tmp_path, wait_s=30):
        assert json.loads((tmp_path / ".store/holder.json").read_text())["pid"] == os.getpid()
    release.join()


# --- the cache


scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
value = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def typed(item: object) -> object:
    """A view in which values of different types, or zeros of different signs, are never equal."""
    match item:
        case dict():
            return {name: typed(inner) for name, inner in item.items()}
        case list() | tuple():
            return [typed(inner) for inner in item]
    return (type(item).__name__, repr(item))


@given(value, value)
def test_keys_are_equal_exactly_when_the_content_is(one: object, two: object) -> None:
    assert (key(one) == key(two)) == (typed(one) == typed(two))


def test_keys_by_example() -> None:
    distinct: list[tuple[object, ...]] = [
        (), ("",), (b"",), (None,), (0,), (0.0,), (-0.0,), (False,), ("a", "b"), (["a", "b"],), ("ab",),
        ({"a": 1},), ({"a": "1"},), (["a", 1],), (1,), (1.0,), (True,), ("1",), (float("nan"),),
    ]  # fmt: skip
    assert len({key(*parts) for parts in distinct}) == len(distinct)
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert key((1, 2)) == key([1, 2])
    assert key("a", 1) == hashlib.sha256(b"l8:s1:ai1:1").hexdigest()
    with pytest.raises(TypeError, match="a cache key holds text, bytes, numbers"):
        key(Path("model.onnx"))


def test_get_and_put(tmp_path: Path) -> None:
    said: list[str] = []
    cache = Cache(tmp_path, said.append)
    assert cache.get("k") is None
    kept = cache.put("k", fill_with("one"))
    assert cache.get("k") == kept
    assert texts(kept) == {"one"}
    assert cache.put("k", fill_with("two")) == kept
    assert texts(kept) == {"one"}  # the first to publish wins
    assert said == []
    assert not leftovers(tmp_path)


def flip(entry: Path) -> None:
    data = bytearray((entry / "content/model.onnx").read_bytes())
    data[1] ^= 1
    (entry / "content/model.onnx").write_bytes(data)


def put_folder_for_hash(entry: Path) -> None:
    (entry / "sha256").unlink()
    (entry / "sha256").mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped byte": flip,
    "truncated": lambda entry: os.truncate(entry / "content/model.onnx", 1),
    "deleted file": lambda entry: (entry / "content/model.onnx").unlink(),
    "deleted content": lambda entry: shutil.rmtree(entry / "content"),
    "deleted hash": lambda entry: (entry / "sha256").unlink(),
    "hash of something else": lambda entry: (entry / "sha256").write_text("0" * 64),
    "added file": lambda entry: (entry / "content/more").write_text(""),
    "folder for a file": put_folder_for_hash,
    "link inside": lambda entry: (entry / "content/link").symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("look_first", [True, False])
def test_damage_is_found_quarantined_and_made_anew(
    tmp_path: Path, damage: Callable[[Path], object], look_first: bool
) -> None:
    said: list[str] = []
    cache = Cache(tmp_path, said.append)
    kept = cache.put("k", fill_with("one"))
    damage(kept.parent)
    if look_first:
        assert cache.get("k") is None
    assert cache.put("k", fill_with("one")) == kept
    assert cache.get("k") == kept
    assert texts(kept) == {"one"}
    assert any("damaged" in line for line in said)
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_an_unusable_cache_costs_one_line_and_no_error(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.write_text("a file where the folder should be")
    said: list[str] = []
    cache = Cache(root, said.append)
    assert cache.get("k") is None
    first, second = cache.put("k", fill_with("one")), cache.put("j", fill_with("two"))
    assert (texts(first), texts(second)) == ({"one"}, {"two"})
    assert first.stat().st_mode & 0o777 == 0o700
    advice = "a file is where a folder is needed; move the file away, or write to another folder"
    assert said == [f"not cached: {root}: {advice}"]
    assert cache.get("k") is None


def test_what_was_made_is_not_made_twice_when_it_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "entries").write_text("a file where a folder should be")
    said: list[str] = []
    made: list[Path] = []

    def fill(folder: Path) -> None:
        made.append(folder)
        fill_with("one")(folder)

    assert texts(Cache(tmp_path, said.append).put("k", fill)) == {"one"}
    assert len(made) == 1
    assert said == [f"{tmp_path}: not cached: File exists"]


def test_failing_the_nth_call_of_the_cache_never_fails_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cache = Cache(tmp_path, said.append)
    fault = Fault(monkeypatch, errno.ENOSPC, forever=False)
    for n in range(1, 200):
        fault.calls, fault.fail_at, fault.fired = 0, n, []
        kept = cache.put(f"k{n}", fill_with(f"{n}"))
        fault.fail_at = -1
        assert texts(kept) == {f"{n}"}
        assert cache.get(f"k{n}") in (None, kept)
        if not fault.fired:
            break
    assert not fault.fired
    assert not leftovers(tmp_path)
    assert not (tmp_path / "quarantine").exists()


def test_a_failing_fill_stores_nothing_and_raises_its_own_error(tmp_path: Path) -> None:
    cache = Cache(tmp_path, pytest.fail)

    def fill(folder: Path) -> None:
        fill_with("half")(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.put("k", fill)
    assert cache.get("k") is None
    assert not leftovers(tmp_path)


PUTTING = """if 1:
    import pathlib, sys
    from edgecompile.store import Cache
    cache = Cache(pathlib.Path(sys.argv[1]), warn=lambda line: sys.exit(line))
    for i in range(30):
        kept = cache.put(f"k{i}", lambda folder: (folder / "x").write_text(str(i) * 5000) and None)
        assert (kept / "x").read_text() == str(i) * 5000
        assert cache.get(f"k{i}") == kept
"""


def test_concurrent_puts_all_succeed(tmp_path: Path) -> None:
    for process in [child(PUTTING, tmp_path) for _ in range(4)]:
        finished(process)
    assert len(list((tmp_path / "entries").iterdir())) == 30
    assert not leftovers(tmp_path)


def test_stages_of_killed_writers_are_swept_by_the_next_put(tmp_path: Path) -> None:
    code = """if 1:
        import os, pathlib, sys
        from edgecompile.store import Cache
        def fill(folder):
            (folder / "half").write_text("half")
            os.kill(os.getpid(), 9)
        Cache(pathlib.Path(sys.argv[1])).put("k", fill)
    """
    process = child(code, tmp_path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert leftovers(tmp_path)
    cache = Cache(tmp_path, pytest.fail)
    assert cache.get("k") is None
    assert texts(cache.put("k", fill_with("one"))) == {"one"}
    assert not leftovers(tmp_path)


def test_the_default_place_is_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache().root.is_relative_to(tmp_path)
    assert Cache().root.name == "edgecompile"


def test_importing_the_store_is_light() -> None:
    heavy = ("torch", "numpy", "scipy", "filelock", "asyncio")
    code = f"import sys, edgecompile.store; print([name for name in {heavy} if name in sys.modules])"
    assert finished(child(code)) == "[]\n"
