"""Publish a folder so that a reader sees the old one or the new one, never a mixture.

    OUT/host -> .store/<sha256 of the content>      a relative link, swapped by one rename
    OUT/.store/<sha256>/...                         sealed, never changed again
    OUT/.store/stage-<random>/...                   being filled; `prune` removes those of dead processes
    OUT/.store/lock, holder.json                    one build at a time: `hold`

What is being written is marked by `flock` on its folder or file: the kernel drops the mark when the process
dies, however it dies, so a process id that is given out again keeps no rubbish alive. POSIX only.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from edgecompile.errors import OutputError
from edgecompile.store.content import STAGE, STORE, settle, sync, verifies, writing

_TEMPORARY = ".tmp-"


def publish(out: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """Fill a staging folder, seal it and move OUT/<name> to it; on any failure OUT/<name> stays."""
    with stage(out) as folder:
        with writing(out):
            fill(folder)
        sealed = seal(folder, out)
        point(out, name, sealed)
        return sealed


@contextlib.contextmanager
def stage(out: Path) -> Iterator[Path]:
    """A private folder under OUT/.store to fill; removed at the end unless `seal` has taken it."""
    with writing(out):
        (out / STORE).mkdir(parents=True, exist_ok=True)
        folder, mark = _marked(lambda: Path(tempfile.mkdtemp(prefix=STAGE, dir=out / STORE)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what this leaves on a broken disk, prune removes
        os.close(mark)


def seal(folder: Path, out: Path) -> Path:
    """Move a staged folder to OUT/.store/<content hash>, durable before it is visible; idempotent."""
    with writing(out):
        name = settle(folder, durable=True)
        sealed = out / STORE / name
        if sealed.exists() and not verifies(sealed):
            os.rename(sealed, Path(tempfile.mkdtemp(prefix=STAGE, dir=sealed.parent)) / "damaged")
        try:
            os.rename(folder, sealed)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # the same bytes are there already
                raise
        sync(sealed.parent)
        return sealed


def point(out: Path, name: str, folder: Path) -> None:
    """Make OUT/<name> a relative link to `folder` in one step; `name` may be nested ("rejected/host").

    A file or folder of that name that is no link is the user's own, and is never replaced.
    """
    link = _link(out, name)
    with stage(out) as scratch, writing(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.exists() and not link.is_symlink():
            raise OutputError(f"{link}: is no link of edgecompile's; move it away, or write to another folder")
        target = os.path.relpath(os.path.realpath(folder), os.path.realpath(link.parent))
        os.symlink(target, scratch / "link")
        os.replace(scratch / "link", link)
        sync(link.parent)


def unpoint(out: Path, name: str) -> None:
    """Remove the link OUT/<name> if there is one: a build that passes drops its "rejected/..." forerunner."""
    link = _link(out, name)
    with writing(link):
        if link.is_symlink():
            link.unlink()
            sync(link.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data`: the old bytes or the new ones, never a part."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, mark = _marked(lambda: _temporary(path))
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(mark, view) :]
            os.fchmod(mark, 0o644)
            os.fsync(mark)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            os.close(mark)
            temporary.unlink(missing_ok=True)


def prune(out: Path) -> list[Path]:
    """Remove what no link of OUT names and what dead processes left; call it while holding OUT."""
    if not out.is_dir():
        return []
    with writing(out):
        links = [path for path in (*out.iterdir(), *out.glob("*/*")) if path.is_symlink()]
        named = {os.path.realpath(link) for link in links}
        removed = []
        for path in (*_children(out / STORE), *out.glob(_TEMPORARY + "*")):
            leftover = path.is_dir() or path.name.startswith(_TEMPORARY)
            if leftover and os.path.realpath(path) not in named and _remove_abandoned(path):
                removed.append(path)
        return sorted(removed)


@contextlib.contextmanager
def hold(out: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold OUT for one build; a second one waits `wait_s` seconds, then an OutputError names the owner.

    The lock is the kernel's (`flock`), so it is free again the moment its owner dies.
    """
    import filelock

    owner = out / STORE / "holder.json"
    with writing(out):
        owner.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(str(out / STORE / "lock"), timeout=wait_s)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise OutputError(f"{out}: held by {_described(owner)}, or write to another folder") from None
    try:
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        held = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        write_atomic(owner, json.dumps(held).encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # only the text of a message is lost
            owner.unlink(missing_ok=True)
        lock.release()


def sweep(out: Path) -> None:
    """Remove the staging folders of dead processes."""
    for path in _children(out / STORE):
        if path.name.startswith(STAGE):
            with contextlib.suppress(OSError):  # another user's, or just being removed by someone else
                _remove_abandoned(path)


def _marked(make: Callable[[], Path]) -> tuple[Path, int]:
    """Make a file or folder and mark it as alive; its path, and the descriptor to close at the end."""
    while True:
        path = make()
        try:
            descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        except FileNotFoundError:  # a pruner took it between making and marking: make another
            continue
        except OSError:
            path.rmdir() if path.is_dir() else path.unlink()
            raise
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return path, descriptor
        os.close(descriptor)


def _remove_abandoned(path: Path) -> bool:
    """Remove a marked file or folder if the process that made it is dead; whether it was removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    os.close(descriptor)
    return Path(name)


def _link(out: Path, name: str) -> Path:
    parts = Path(name).parts
    if not parts or len(parts) > 2 or parts[0] == STORE or ".." in parts or Path(name).is_absolute():
        raise ValueError(f"{name!r}: not a name for a published folder")
    return out / name


def _described(owner: Path) -> str:
    try:
        held = json.loads(owner.read_bytes())
        pid, host, since = held["pid"], held["host"], held["since"]
    except (OSError, ValueError, KeyError, TypeError):  # its owner has the lock and is just writing this file
        return "another build that started this moment; wait for it to end"
    return f"another build (pid {pid} on {host}, since {since}); wait for it to end, stop it (kill {pid})"


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
