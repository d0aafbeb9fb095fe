"""Foreign names and numbers made fit to be read: no hidden characters, three significant digits."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable

from edgecompile.report.model import Budget, Figure, Ratio

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])|\x9b[0-?]*[ -/]*[@-~]")
_HIDDEN = {
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
}  # controls, direction marks and zero widths, surrogates, private, unassigned
_BREAKS = {"Zl", "Zp", "Zs"}


def plain(text: str, limit: int = 160, ascii_only: bool = False) -> str:
    """One line of visible characters: no escape sequences, breaks as spaces, long names cut in the middle.

    Names of layers, files and models come from foreign files. A terminal would obey their escape sequences,
    and a bidirectional override would show `gpj.exe` as `exe.jpg`.
    """
    if len(text) > 8 * limit:  # a name of a megabyte is not worth looking at whole
        text = text[: 4 * limit] + text[-4 * limit :]
    text = _ESCAPES.sub("", text)
    shown = (_visible(character) for character in text)
    line = " ".join("".join(shown).split())
    dots = "..." if ascii_only else "…"
    if len(line) > limit:
        half = (limit - len(dots)) // 2
        line = line[: limit - len(dots) - half] + dots + line[-half:]
    return line.encode("ascii", "backslashreplace").decode("ascii") if ascii_only else line


def _visible(character: str) -> str:
    if character in "\t\n\r\v\f\x85":
        return " "
    category = unicodedata.category(character)
    return " " if category in _BREAKS else "" if category in _HIDDEN else character


def decimals(value: float) -> int:
    """Digits after the point that leave three significant ones (0 for hundreds, 6 at most)."""
    if not value or not math.isfinite(value):
        return 2
    return min(6, max(0, 2 - math.floor(math.log10(abs(value)))))


def number(value: float | None, like: float | None = None) -> str:
    """`value` with three significant digits, or with as many decimals as `like` has; empty when None."""
    if value is None:
        return ""
    return f"{value:.{decimals(value if like is None else like)}f}" if abs(value) < 1e7 else f"{value:.2e}"


def interval(of: Figure | Ratio | Budget, value: float | None) -> str:
    """`[4.02, 4.21]` with the decimals of `value`; empty without bounds."""
    if of.low is None and of.high is None:
        return ""
    low, high = (number(bound, like=value) or "?" for bound in (of.low, of.high))
    return f"[{low}, {high}]"


def least(values: Iterable[float | None]) -> float:
    """The smallest magnitude above zero: its decimals suit a whole column, so that the points align."""
    return min((abs(value) for value in values if value and math.isfinite(value)), default=1.0)


def megabytes(size_bytes: float | None, like: float | None = None) -> str:
    """A size in MB (10^6 bytes) without its unit, with the decimals of `like` (bytes)."""
    return "" if size_bytes is None else number(size_bytes / 1e6, None if like is None else like / 1e6)


def size(size_bytes: float | None) -> str:
    """A size with the unit that suits it: `812 B`, `13.4 kB`, `4.90 MB`, `2.10 GB`."""
    if size_bytes is None:
        return ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size_bytes) >= scale:
            return f"{number(size_bytes / scale)} {unit}"
    return f"{size_bytes:.0f} B"


def change(ratio: float | None) -> str:
    """A ratio as a change in percent: 0.46 is `-54 %`, 1.004 is `+0.4 %`; empty when None."""
    if ratio is None:
        return ""
    percent = (ratio - 1) * 100
    return f"{percent:+.{1 if abs(percent) < 9.95 else 0}f} %"


def quantity(value: float | None, unit: str) -> str:
    """A budget's limit or finding with its unit (`ms`, `pp`, `bytes`)."""
    if value is None:
        return "unknown"
    return size(value) if unit == "bytes" else f"{value:.2f} {unit}" if unit == "pp" else f"{number(value)} {unit}"


def budget_interval(budget: Budget) -> str:
    """The interval of a budget's finding in its own unit; empty without bounds."""
    if budget.low is None and budget.high is None:
        return ""
    if budget.unit == "ms":
        return interval(budget, budget.found)
    bounds = (budget.low, budget.high)
    return "[" + ", ".join("?" if b is None else quantity(b, budget.unit).removesuffix(" pp") for b in bounds) + "]"


def short_json(value: object, limit: int = 200) -> str:
    """A value from a free mapping as a short line."""
    match value:
        case str():
            return plain(value, limit)
        case float():
            return f"{value:g}"
        case dict():
            return plain(", ".join(f"{key} {short_json(item, limit)}" for key, item in value.items()), limit)
        case list() | tuple():
            return plain(", ".join(short_json(item, limit) for item in value), limit)
        case _:
            return plain(str(value), limit)
