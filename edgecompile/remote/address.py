"""The address of a device that is reached over a wire: `ssh://user@host:22`, `tvm://tracker:9190/key`, ..."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from edgecompile.errors import SpecError, near

KINDS = ("ssh", "tvm", "adb", "mac")
_FORMS = {
    "ssh": "ssh://user@host[:port]",
    "tvm": "tvm://tracker:port/key",
    "adb": "adb://serial",
    "mac": "mac://user@host[:port]",
}
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]+(?:%[A-Za-z0-9]+)?")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*\$?")
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATH = re.compile(r"/[A-Za-z0-9._/+-]+")


@dataclass(frozen=True)
class Address:
    """Where a device is; every part has been checked, so that none can be taken for an option or a command.

    `key` is TVM's device key, `host` adb's serial number; `python` is the interpreter on the device.
    """

    text: str
    kind: str
    host: str
    user: str = ""
    port: int = 0
    key: str = ""
    python: str = "python3"

    @property
    def destination(self) -> str:
        """`user@host` as scp writes it: an IPv6 address stands in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" if self.user else host


def parse_address(text: str) -> Address:
    """The parts of a device's address; raises `SpecError`.

    `ssh://user@host?python=/opt/env/bin/python` names the interpreter that has onnxruntime.
    """
    kind, found, rest = text.partition("://")
    if not found or kind not in KINDS:
        raise SpecError(f"--device {text}: expected one of {', '.join(_FORMS.values())}{near(kind, KINDS)}")
    if kind == "adb":
        return Address(text, kind, _matched(_SERIAL, rest, text, "the serial number", kind))
    try:
        parts = urlsplit(text)
        port, host = parts.port or 0, _host(parts.netloc)
    except ValueError as error:
        raise SpecError(f"--device {text}: {error}; write it as {_FORMS[kind]}") from None
    if parts.password is not None:
        raise SpecError(
            f"--device: no password belongs into an address; use a key (ssh-copy-id {parts.username}@{host})"
        )
    _matched(_HOST, host, text, "the host", kind)
    user = _matched(_USER, parts.username, text, "the user", kind) if parts.username is not None else ""
    python = _python(parts.query, text) if kind in ("ssh", "mac") else "python3"
    key = parts.path.strip("/")
    if parts.fragment or (parts.query and kind == "tvm") or (key and kind != "tvm"):
        raise SpecError(f"--device {text}: nothing may follow the host; write it as {_FORMS[kind]}")
    if kind == "tvm":
        _matched(_KEY, key, text, "the device key", kind)
        if not port:
            raise SpecError(f"--device {text}: the tracker's port is missing; write it as {_FORMS[kind]}")
    return Address(text, kind, host, user, port, key, python)


def _host(netloc: str) -> str:
    """The host as it was written: urllib would make it lower case, and names in an ssh configuration are not."""
    rest = netloc.rpartition("@")[2]
    return rest[1:].partition("]")[0] if rest.startswith("[") else rest.partition(":")[0]


def _python(query: str, text: str) -> str:
    options = dict(parse_qsl(query, keep_blank_values=True))
    python = options.pop("python", "python3")
    if options:
        raise SpecError(
            f"--device {text}: unknown option {next(iter(options))!r}{near(next(iter(options)), ['python'])}"
        )
    if python != "python3" and not _PATH.fullmatch(python):
        raise SpecError(
            f"--device {text}: python must be an absolute path of letters, digits and ./_+-, not {python!r}"
        )
    return python


def _matched(pattern: re.Pattern[str], value: str, text: str, what: str, kind: str) -> str:
    if not pattern.fullmatch(value):
        problem = f"{what} {value!r} has characters that do not belong there" if value else f"{what} is missing"
        raise SpecError(f"--device {text}: {problem}; write it as {_FORMS[kind]}")
    return value
