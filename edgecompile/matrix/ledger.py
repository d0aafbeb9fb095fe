"""The ledger: one row a finished cell, in a SQLite file that several processes may write."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgecompile.errors import InputError, OutputError

T = TypeVar("T")
Status = Literal["equal", "differs", "built", "refused", "failed"]
_BUSY_S = 60.0


@dataclass(frozen=True)
class Row:
    """How a cell ended.

    `equal` and `differs`: it ran, within and beyond the limits of its type. `built`: there is nothing here to run it.
    `refused`: the target or a pass says why it does not take the model. `failed`: a toolchain, a limit or a crash.
    `error` is the largest difference over the largest output, `cosine` and `norm` (the ratio of lengths less one) are
    the worst over outputs; `peak_mb` was sampled over the process and its children.
    """

    model: str
    target: str
    mode: str
    status: Status
    why: str = ""
    dtype: str = ""
    error: float | None = None
    cosine: float | None = None
    norm: float | None = None
    artifact_mb: float | None = None
    seconds: float = 0.0
    peak_mb: float = 0.0


class Ledger:
    """Rows by the key of their cell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"--ledger {path}: cannot be opened: {error}; name another file") from None
        self._do(lambda: self._base.execute("CREATE TABLE IF NOT EXISTS cells (key TEXT PRIMARY KEY, body TEXT)"))

    def get(self, key: str) -> Row | None:
        """The row of a finished cell."""
        found = self._do(lambda: self._base.execute("SELECT body FROM cells WHERE key = ?", (key,)).fetchone())
        if found is None:
            return None
        try:
            return Row(**json.loads(found[0]))
        except (TypeError, ValueError):
            return None  # of another version: made anew

    def put(self, key: str, row: Row) -> None:
        """Record a cell, in place of what was recorded of it before."""
        body = json.dumps(dataclasses.asdict(row))
        self._do(lambda: self._base.execute("INSERT OR REPLACE INTO cells VALUES (?, ?)", (key, body)))

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _do(self, what: Callable[[], T]) -> T:
        try:
            return what()
        except sqlite3.OperationalError as error:
            raise OutputError(f"--ledger {self.path}: {error}; free it, or name another file") from None
        except sqlite3.DatabaseError as error:
            raise InputError(f"--ledger {self.path}: {error}: not a ledger of edgecompile; name another file") from None
