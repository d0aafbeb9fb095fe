"""Read parts of a foreign file that is known to be a regular file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgecompile.errors import InputError
from edgecompile.ingest.rules import corrupt, text_safe


@dataclass(frozen=True)
class Source:
    """An open file, read by position: when it shrinks meanwhile, an error (a map would raise SIGBUS)."""

    descriptor: int
    size: int
    device: int
    inode: int
    where: str
    base: int = 0

    def part(self, start: int, size: int, where: str) -> Source:
        """`size` bytes from `start` as a source of their own: a file within this file."""
        return Source(self.descriptor, size, self.device, self.inode, where, self.base + start)

    def read(self, position: int, count: int) -> bytes:
        """Exactly `count` bytes at `position`; raises `InputError` when the file ends before."""
        if position < 0 or count < 0 or position + count > self.size:
            raise corrupt(self.where, "it ends too early")
        parts = []
        while count:
            part = os.pread(self.descriptor, min(count, 1 << 30), self.base + position)
            if not part:
                raise corrupt(self.where, "it shrank while it was read")
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return b"".join(parts)


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open a regular file for reading; raises `InputError` for what is missing, no regular file, or empty."""
    where = text_safe(str(path), 400)
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{where}: cannot be opened ({reason}); check the path") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{where}: not a regular file; give the model file itself")
        if status.st_size == 0:
            raise InputError(f"{where}: empty file (truncated or corrupt); copy or export the file again")
        yield Source(descriptor, status.st_size, status.st_dev, status.st_ino, where)
    finally:
        os.close(descriptor)
