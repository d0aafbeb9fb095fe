"""Parse a foreign file in a child process: limits, a wall clock, no network, and plain files back."""

from __future__ import annotations

import json
import os
import selectors
import signal
import site
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edgecompile
from edgecompile import errors
from edgecompile.errors import EdgeCompileError, InputError, Refused
from edgecompile.ingest.child import PARSERS, STATUS
from edgecompile.ingest.limits import ChildLimits
from edgecompile.ingest.rules import text_safe

_STATUS_BYTES = 4 << 20
_UNUSED = "the file is not used"
_FIELDS = frozenset({"rule", "where", "limit", "value", "how_to_allow", "reasons"})
_KEPT = ("LD_LIBRARY_PATH", "SYSTEMROOT", "TZ")


@dataclass(frozen=True)
class ChildStatus:
    """What the child said besides its files: the parser's JSON result, and notes for the report."""

    result: Any
    notes: tuple[str, ...]


def parse_in_child(
    kind: str,
    args: Mapping[str, Any],
    out: Path,
    limits: ChildLimits = ChildLimits(),  # noqa: B008
    parsers: Mapping[str, str] = PARSERS,
    search: Sequence[Path] = (),
) -> Path:
    """Run the parser of `kind` on `args` (JSON; `path` names the file) in a child, and return `out`.

    `out` must be missing or empty. Raises what the parser raised, if it is an `EdgeCompileError`;
    `InputError` when it raised anything else, crashed, or met a limit; `Refused` when it left anything but
    plain files. `search` are folders from which the parser may be imported besides edgecompile's own.
    `read_status(out)` has the rest.
    """
    if kind not in parsers:
        raise InputError(f"no parser for '{text_safe(kind)}'{errors.near(kind, parsers)}")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise InputError(f"{out}: not empty; a parsed model needs a folder of its own")
    path = args.get("path")
    size = os.stat(path).st_size if isinstance(path, (str, Path)) and os.path.exists(path) else 0
    bounds = limits.for_file(size)
    where = text_safe(str(path), 400) if path else kind
    # the child works in a folder of its own, where a relative path names nothing
    paths = {k: os.path.abspath(v) for k, v in args.items() if k == "path" or isinstance(v, Path)}
    request = {
        "function": parsers[kind],
        "args": {**args, **paths},
        "out": os.path.abspath(out),
        "limits": asdict(bounds),
        "parent": os.getpid(),
    }
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as folder:
        run = _run(json.dumps(request), Path(folder), bounds, search)
    _check_files(out, where)
    try:
        return _outcome(out, where, kind, run, bounds)
    except errors.EdgeCompileError as error:
        error.args = tuple(
            a.replace(paths["path"], str(path)) if path and isinstance(a, str) else a for a in error.args
        )
        raise


def read_status(out: Path) -> ChildStatus:
    """The result and notes that a finished child left in `out`."""
    status = json.loads((out / STATUS).read_text(encoding="utf-8"))
    return ChildStatus(status["result"], tuple(status["notes"]))


@dataclass(frozen=True)
class _Run:
    code: int
    timed_out: bool
    tail: str


def _run(request: str, folder: Path, limits: ChildLimits, search: Sequence[Path]) -> _Run:
    """Start the child in a process group of its own and read its output until it ends or its time does."""
    command = [sys.executable, "-P", "-W", "ignore", "-m", "edgecompile.ingest.child"]
    request_file = folder / "request.json"
    request_file.write_text(request, encoding="utf-8")
    work = folder / "work"
    work.mkdir()
    with request_file.open("rb") as stdin:
        child = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=work,
            env=_environment(work, search),
            start_new_session=True,
        )
    try:
        tail, timed_out = _follow(child, limits)
    finally:
        # Also after Ctrl-C, and for what the child may have started itself.
        _kill_group(child)
        code = child.wait()
        assert child.stdout is not None
        child.stdout.close()
    return _Run(code, timed_out, tail.decode("utf-8", "replace"))


def _follow(child: subprocess.Popen[bytes], limits: ChildLimits) -> tuple[bytes, bool]:
    """The end of the child's output, and whether its time ran out."""
    assert child.stdout is not None
    deadline = time.monotonic() + (limits.wall_s or 0.0)
    tail = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return tail, True
            # A grandchild may hold the pipe open after the child has ended, so ask for that too.
            if not selector.select(min(left, 0.2)):
                if child.poll() is not None:
                    return tail, False
                continue
            data = os.read(child.stdout.fileno(), 1 << 16)
            if not data:
                break
            tail = (tail + data)[-limits.output_bytes :]
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return tail, True
    return tail, False


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it and all it started are gone


def _environment(work: Path, search: Sequence[Path]) -> dict[str, str]:
    """A fresh environment: no secrets, proxies or start-up hooks; edgecompile is found where it is here."""
    roots = [
        str(Path(edgecompile.__file__).resolve().parent.parent),
        *(os.path.abspath(folder) for folder in search),
    ]
    if site.ENABLE_USER_SITE:
        roots.append(site.getusersitepackages())
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {
        "PATH": "/usr/bin:/bin",
        "HOME": str(work),
        "TMPDIR": str(work),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(roots),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "NNCF_CI": "1",
    }


def _check_files(out: Path, where: str) -> None:
    """Refuse what a child that has been taken over might leave for the parent to follow."""
    for folder, folders, names in os.walk(out):
        for name in (*folders, *names):
            status = os.lstat(os.path.join(folder, name))
            plain = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
            if not plain:
                value = f"'{text_safe(name)}' left by the parser"
                raise Refused("EC-IN-050", where, "plain files only", value, "there is no way round")


def _outcome(out: Path, where: str, kind: str, run: _Run, limits: ChildLimits) -> Path:
    if run.timed_out:
        raise InputError(f"{where}: parsing took longer than {limits.wall_s:.0f} s (stage: parse {kind}); {_UNUSED}")
    if run.code < 0:
        raise InputError(f"{where}: {_died(-run.code, limits)} (stage: parse {kind}); {_UNUSED}")
    status = _status(out, where, kind, run)
    if status["ok"] is True:
        return out
    if error := status.get("error"):
        raise _rebuilt(error)
    if status.get("stage") == "memory":
        limit = (limits.memory_bytes or 0) / (1 << 30)
        raise InputError(f"{where}: parsing needs more than {limit:.1f} GB of memory (stage: parse {kind}); {_UNUSED}")
    raise InputError(f"{where}: the file could not be parsed: {text_safe(str(status.get('what')), 400)}")


def _died(number: int, limits: ChildLimits) -> str:
    if number == signal.SIGXCPU:
        return f"parsing used more than {limits.cpu_s} s of processor time"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    hint = ", often for want of memory" if number in (signal.SIGKILL, signal.SIGABRT) else ""
    return f"the parser was ended by {name}{hint}"


def _status(out: Path, where: str, kind: str, run: _Run) -> dict[str, Any]:
    """The status that the child wrote; raises `InputError` when it ended without one."""
    path = out / STATUS
    try:
        if path.stat().st_size > _STATUS_BYTES:
            raise ValueError("it is too large")
        status = json.loads(path.read_bytes())
        if not isinstance(status, dict) or not isinstance(status.get("ok"), bool):
            raise ValueError("it is no status")
    except (OSError, ValueError, RecursionError) as error:
        last = next((line for line in reversed(run.tail.splitlines()) if line.strip()), "it said nothing")
        said = text_safe(last.strip(), 200)
        raise InputError(
            f"{where}: the parser ended with code {run.code} and no result (stage: parse {kind}): {said}"
        ) from error
    return status


def _rebuilt(error: Mapping[str, Any]) -> EdgeCompileError:
    """The child's error as the same class with the same text, if it is one of edgecompile.errors."""
    known = {k: v for k, v in vars(errors).items() if isinstance(v, type) and issubclass(v, EdgeCompileError)}
    kind = known.get(str(error.get("class")), InputError)
    rebuilt = kind.__new__(kind)
    rebuilt.args = (text_safe(str(error.get("message")), 20_000),)
    fields = error.get("fields")
    for name, value in fields.items() if isinstance(fields, dict) else ():
        if name in _FIELDS:
            setattr(rebuilt, name, value)
    return rebuilt
