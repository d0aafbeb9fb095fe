"""The cache: one folder per key, published by rename, verified on every read, never an error.

ROOT/entries/<key>/content/...   what `fill` wrote
ROOT/entries/<key>/sha256        its content hash, so that a damaged entry is found before it is used
ROOT/quarantine/...              damaged entries, kept for whoever wants to know why
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import logging
import numbers
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgecompile.errors import OutputError
from edgecompile.store.content import content_hash, settle, writing
from edgecompile.store.publish import stage, sweep


def key(*parts: object) -> str:
    """SHA-256 (hex) of a canonical encoding of `parts`: the same content gives the same key on every machine.

    Each value is its kind, the byte length of its body, and the body, so no two values share an encoding:
    `s` text as UTF-8, `b` bytes, `n` None, `t`/`f` booleans, `i` integers in decimal, `d` floats as
    `float.hex()`, `l` sequences (list or tuple: the items' encodings in order), `m` mappings (pairs sorted by
    the key's encoding). 1, 1.0, True and "1" differ. Anything else is a TypeError: paths, times and sets have
    no place in a key.
    """
    return hashlib.sha256(_encoded(parts)).hexdigest()


def _encoded(value: object) -> bytes:
    match value:
        case None:
            kind, body = b"n", b""
        case bool():
            kind, body = (b"t" if value else b"f"), b""
        case str():
            kind, body = b"s", value.encode("utf-8", "surrogatepass")
        case bytes():
            kind, body = b"b", value
        case numbers.Integral():
            kind, body = b"i", b"%d" % int(value)
        case numbers.Real():
            kind, body = b"d", float(value).hex().encode()
        case Mapping():
            pairs = sorted((_encoded(name), _encoded(item)) for name, item in value.items())
            kind, body = b"m", b"".join(name + item for name, item in pairs)
        case Sequence():
            kind, body = b"l", b"".join(_encoded(item) for item in value)
        case _:
            raise TypeError(f"a cache key holds text, bytes, numbers, None, mappings and sequences; got {value!r}")
    return b"%s%d:%s" % (kind, len(body), body)


def _default_root() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("edgecompile")


def _log(line: str) -> None:
    logging.getLogger("edgecompile").warning(line)


@dataclass(frozen=True)
class Cache:
    """Folders by key. A damaged, full or unwritable cache costs a warning line and time, never the build."""

    root: Path = field(default_factory=_default_root)
    warn: Callable[[str], None] = _log
    _said: set[str] = field(default_factory=set, repr=False, compare=False)

    def get(self, key: str) -> Path | None:
        """The folder stored under `key` when it is there and whole; read it, never write to it."""
        entry = self.root / "entries" / key
        try:
            wanted = (entry / "sha256").read_bytes()
            if content_hash(entry / "content").encode() == wanted:
                return entry / "content"
        except (FileNotFoundError, NotADirectoryError):
            if not entry.is_dir():
                return None
        except (OSError, ValueError) as error:
            self._say(f"cache entry {entry} cannot be read ({error}); it is quarantined and made anew")
        self._quarantine(entry)
        return None

    def put(self, key: str, fill: Callable[[Path], None]) -> Path:
        """Store what `fill` writes into the empty folder it is given, under `key`; where to read it.

        Of several writers one wins and all get its folder. Where the cache cannot be written, the result is a
        private temporary folder that lives as long as this process.
        """
        try:
            with stage(self.root) as folder, writing(self.root):
                content = folder / "content"
                content.mkdir()
                fill(content)
                try:
                    return self._enter(key, folder)
                except OSError as error:  # made, but not to be kept here: no need to make it twice
                    self._say(f"{self.root}: not cached: {error.strerror}")
                    return _private(lambda copy: _copy(content, copy))
        except OutputError as error:
            self._say(f"not cached: {error}")
            return _private(fill)

    def unfinished(self, key: str) -> Path | None:
        """A folder in which work on `key` keeps what it needs to go on after it was killed; None where none can be."""
        folder = self.root / "unfinished" / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._say(f"{self.root}: unfinished work is not kept: {error.strerror}")
            return None
        return folder

    def finished(self, key: str) -> None:
        """The work on `key` is done: what it kept is removed."""
        shutil.rmtree(self.root / "unfinished" / key, ignore_errors=True)

    def _enter(self, key: str, folder: Path) -> Path:
        # Not synced to disk: what a power cut tears, the hash finds on reading.
        (folder / "sha256").write_text(settle(folder / "content", durable=False))
        entry = self.root / "entries" / key
        entry.parent.mkdir(exist_ok=True)
        sweep(self.root)
        try:
            os.rename(folder, entry)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            winner = self.get(key)  # another writer was first; a damaged entry has now gone to quarantine
            if winner is not None:
                return winner
            os.rename(folder, entry)
        return entry / "content"

    def _quarantine(self, entry: Path) -> None:
        prison = self.root / "quarantine"
        try:
            prison.mkdir(exist_ok=True)
            kept = Path(tempfile.mkdtemp(prefix="damaged-", dir=prison)) / entry.name
            os.rename(entry, kept)
        except FileNotFoundError:  # another process has just done it
            return
        except OSError as error:
            self._say(f"cache entry {entry} is damaged and cannot be moved away: {error.strerror}")
        else:
            self._say(f"cache entry {entry.name[:12]} was damaged and is made anew; the damaged one is {kept}")

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.warn(line)


def _private(fill: Callable[[Path], None]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="edgecompile-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with writing(folder):
        fill(folder)
    return folder


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
