"""What is in a folder, as one hash; and what the file system's refusals mean to a user."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from edgecompile.errors import OutputError

STORE = ".store"
STAGE = "stage-"
_ELSEWHERE = "or write to another folder"
_DISK = {  # whoever meets these while writing, it is the disk's doing
    errno.ENOSPC: f"the disk is full; free some space, {_ELSEWHERE}",
    errno.EDQUOT: f"the disk quota is used up; free some space, {_ELSEWHERE}",
    errno.EFBIG: f"a file is larger than this process may write; raise `ulimit -f`, {_ELSEWHERE}",
    errno.EROFS: "the file system is read-only; write to another folder",
    errno.EIO: f"the disk reports an input/output error; check it, {_ELSEWHERE}",
    errno.ENOLCK: "the file system has no file locks; write to a local folder",
    errno.ENOSYS: "the file system has no file locks; write to a local folder",
}
_PLACE = {  # the user's doing at a path that the user chose; inside a staging folder, a bug of ours
    errno.EACCES: f"no permission to write; change the permissions, {_ELSEWHERE}",
    errno.EPERM: f"no permission to write; change the permissions, {_ELSEWHERE}",
    errno.ENOTDIR: f"a file is where a folder is needed; move the file away, {_ELSEWHERE}",
    errno.EEXIST: f"a file is where a folder is needed; move the file away, {_ELSEWHERE}",
    errno.EISDIR: f"a folder is where a file is needed; move the folder away, {_ELSEWHERE}",
    errno.ENAMETOOLONG: "the path is too long; write to a shorter one",
    errno.ELOOP: "its links form a loop; write to another folder",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses below `path` into a one-line OutputError (exit code 2).

    An error about a file elsewhere (a data set that cannot be read, say) passes through unchanged.
    """
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        advice = _advice(error, path)
        if advice is None:
            raise
        raise OutputError(f"{path}: {advice}") from error


def _advice(error: Exception, path: Path) -> str | None:
    """What to do when the file system refused at `path`; None when the error is about something else."""
    if not isinstance(error, OSError):  # safetensors, like all of Rust, says "... (os error 28)"
        found = re.search(r"\(os error (\d+)\)", str(error))
        return _DISK.get(int(found[1])) if found else None
    culprit = error.filename2 or error.filename  # a failing rename names its source first
    if isinstance(culprit, (str, bytes)):
        named, here = Path(os.path.abspath(os.fsdecode(culprit))), Path(os.path.abspath(path))
        if not (named.is_relative_to(here) or here.is_relative_to(named)):
            return None
        if error.errno in _PLACE and not any(part.startswith(STAGE) for part in named.parts):
            return _PLACE[error.errno]
    return _DISK.get(error.errno or 0)


def content_hash(folder: Path) -> str:
    """SHA-256 (hex) over a folder's relative names, bytes and executable bits; times do not count."""
    total = hashlib.sha256()
    for path in _tree(folder):
        name = os.fsencode(path.relative_to(folder).as_posix())
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            kind, body = b"d", b""
        elif stat.S_ISREG(status.st_mode):
            kind, body = (b"x" if status.st_mode & stat.S_IXUSR else b"f"), file_hash(path).encode()
        else:
            raise ValueError(f"{path}: only files and folders are published, no links or devices")
        total.update(b"%s%d:%s%s" % (kind, len(name), name, body))
    return total.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of one file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verifies(folder: Path) -> bool:
    """Whether a sealed folder still holds what its name says; `folder` may be the link to it."""
    real = Path(os.path.realpath(folder))
    try:
        return content_hash(real) == real.name
    except (OSError, ValueError):
        return False


def settle(folder: Path, durable: bool) -> str:
    """Normalise modes to 0644/0755 (so that umask leaves no trace), fsync if `durable`; the content hash."""
    for path in (*reversed(_tree(folder)), folder):  # children first: a folder is synced after what it names
        status = path.lstat()
        if not stat.S_ISLNK(status.st_mode):
            is_open = stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IXUSR
            os.chmod(path, 0o755 if is_open else 0o644)
            if durable:
                sync(path)
    return content_hash(folder)


def sync(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tree(folder: Path) -> list[Path]:
    """Everything below a folder, parents first, in an order that no file system or locale changes."""
    return sorted(folder.rglob("*"), key=lambda path: os.fsencode(path.relative_to(folder).as_posix()))
