"""What can go wrong by the user's hand, each with its exit code.

Everything here is printed as one line (where, what, what to do) without a traceback. Any other exception is a bug of
ours and keeps its traceback (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

OK = 0
BUG = 1
USAGE = 2
LATENCY = 3
ACCURACY = 4
UNSUPPORTED = 5
DEVICE_LOST = 6
INCONCLUSIVE = 7
REFUSED = 8
MISMATCH = 9
SIZE = 10
INTERRUPTED = 130
TERMINATED = 143

_PRECEDENCE = (REFUSED, MISMATCH, USAGE, ACCURACY, LATENCY, SIZE, UNSUPPORTED, DEVICE_LOST, INCONCLUSIVE)


def first_code(codes: Iterable[int]) -> int:
    """The exit code of a build that earned several: the first in the order of the design, 0 when none."""
    found = set(codes)
    return next((code for code in _PRECEDENCE if code in found), OK)


class EdgeCompileError(Exception):
    """An error that a user can cause and mend. `str()` is the one line that is printed."""

    exit_code = USAGE


class SpecError(EdgeCompileError):
    """A wrong option, name, pipeline text, budget or TOML field."""


class InputError(EdgeCompileError):
    """A model, weights or data file that is missing, truncated, of the wrong dtype, NaN, empty, ..."""


class OutputError(EdgeCompileError):
    """The output folder cannot be written: permissions, disk full, held by another build."""


class PassError(EdgeCompileError):
    """A pass cannot do what its options ask of this program."""


class TargetError(EdgeCompileError):
    """A target or its toolchain cannot take the program (`rule="toolchain"`: it failed itself, or is missing)."""

    exit_code = UNSUPPORTED

    def __init__(self, message: str, rule: str = "target") -> None:
        super().__init__(message)
        self.rule = rule


class Unsupported(TargetError):
    """Operators that cannot be taken, all of them at once."""

    def __init__(self, where: str, reasons: Sequence[str]) -> None:
        count = f"{len(reasons)} reasons: " if len(reasons) > 1 else ""
        super().__init__(f"{where}: {count}" + "; ".join(reasons), rule="operator")
        self.reasons = list(reasons)


class Refused(EdgeCompileError):
    """A foreign file was refused for safety.

    `rule` is a stable id (`EC-IN-012`); `where` names the file and the place in it; `limit` and `value` are what was
    allowed and what was found; `how_to_allow` says what the user can do.
    """

    exit_code = REFUSED

    def __init__(self, rule: str, where: str, limit: str, value: str, how_to_allow: str) -> None:
        super().__init__(f"{where}: {value} refused by {rule} ({limit}); {how_to_allow}")
        self.rule, self.where, self.limit, self.value, self.how_to_allow = (
            rule,
            where,
            limit,
            value,
            how_to_allow,
        )

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str, str, str, str]]:
        return type(self), (self.rule, self.where, self.limit, self.value, self.how_to_allow)


class Mismatch(EdgeCompileError):
    """A file is not the one that a manifest or a lock names."""

    exit_code = MISMATCH


class DeviceLost(EdgeCompileError):
    """A device that cannot be reached, or was lost on the way; `partial` is what was measured until then, or None."""

    exit_code = DEVICE_LOST

    def __init__(self, message: str, partial: object = None) -> None:
        super().__init__(message)
        self.partial = partial


def near(name: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"` for a near spelling, followed by what is known: for the end of an error line."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else ""
    listed = ", ".join(names[:20]) + (f", ... {len(names) - 20} more" if len(names) > 20 else "")
    return f"{hint} (known: {listed})" if names else hint
