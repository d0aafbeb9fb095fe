"""The lines that the script on the device prints, read into rounds; nothing in them is trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from edgecompile.errors import DeviceLost
from edgecompile.remote.measured import Heard, Row

_MOST_TEXT = 64_000_000


class Transcript:
    """Everything that one run has said so far."""

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self.rounds: list[tuple[float, ...]] = []
        self.clocks_mhz: list[float] = []
        self.temperatures_c: list[float] = []
        self.rows: list[Row] = []
        self.environment: dict[str, object] = {}
        self.notes: list[str] = []
        self.texts: dict[str, str] = {}
        self.watched: list[str] = []
        self.error = ""
        self.errno = 0
        self.ended = False
        self.removed = False

    def hear(self, line: str) -> str:
        """Take one line in; the event that it was, "" for anything that is not ours (a greeting, a warning)."""
        try:
            said: Any = json.loads(line)
        except (ValueError, RecursionError):
            return ""
        if not isinstance(said, dict) or said.get("nonce") != self.nonce:
            return ""
        try:
            self._take(said)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise DeviceLost("the device sent a line that its script does not write; is it the same version?") from None
        return str(said.get("event", ""))

    def heard(self) -> Heard:
        """What the statistics are made of."""
        return Heard(
            self.rounds, self.clocks_mhz, self.temperatures_c, self.rows, dict(self.environment), tuple(self.notes)
        )

    def _take(self, said: Mapping[str, Any]) -> None:
        match said["event"]:
            case "round":
                self.rounds.append(tuple(_positive(s) for s in said["seconds"]))
                for name, kept in (("clock_mhz", self.clocks_mhz), ("temperature_c", self.temperatures_c)):
                    if said[name] is not None:
                        kept.append(_number(said[name]))
            case "operators":
                self.rows = [Row(printable(name), _number(us), printable(unit)) for name, us, unit in said["rows"]]
            case "environment":
                self.environment |= {printable(k): _plain(v) for k, v in said["facts"].items()}
            case "note":
                self.notes.append(printable(said["text"]))
            case "text":
                self.texts[str(said["name"])] = str(said["text"])[:_MOST_TEXT]
            case "watch":
                self.watched.append(str(said["line"])[:10_000])
            case "error":
                self.error, self.errno = printable(said["text"]), int(said.get("errno") or 0)
            case "end":
                self.ended, self.removed = True, bool(said["removed"])


def printable(text: object, most: int = 300) -> str:
    """Text of a device as one line without control characters, which could rewrite a terminal; None is ""."""
    plain = "" if text is None else str(text)
    return "".join(c if c.isprintable() else " " for c in plain)[:most].strip()


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, (bool, int, float)) else printable(value)


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _positive(value: Any) -> float:
    number = _number(value)
    if number <= 0:
        raise ValueError
    return number
