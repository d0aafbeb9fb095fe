"""DeviceProfile: what is known of a device, read from a TOML file in `device_profiles/` or from the user's own."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgecompile.errors import SpecError, near
from edgecompile.spec import make

_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class DeviceProfile:
    """A device as a target sees it. `measured_here` is true for the machine that runs the build.

    `runtime` names what executes artifacts there. `threads` is the default number of threads that an artifact is
    measured with, `memory_mb` the largest resident size of a model (0: not limited).
    """

    name: str
    title: str
    runtime: str
    measured_here: bool = False
    threads: int = 1
    memory_mb: int = 0
    source: str = ""

    @staticmethod
    def load(name: str) -> DeviceProfile:
        """The profile of that name, or of that `.toml` file; raises `SpecError` with the line of a wrong field."""
        if name.endswith(".toml"):
            path = Path(name)
            if not path.is_file():
                raise SpecError(f"--device {name}: no such file")
            return _read(path.name, path.read_bytes(), path.stem)
        files = {f.name.removesuffix(".toml"): f for f in _folder()}
        if name not in files:
            raise SpecError(f"unknown device {name!r}{near(name, files)}")
        return _read(f"{name}.toml", files[name].read_bytes(), name)

    @staticmethod
    def names() -> list[str]:
        """Every installed profile."""
        return sorted(f.name.removesuffix(".toml") for f in _folder())


def _folder() -> list[resources.abc.Traversable]:
    return [f for f in resources.files("edgecompile.device_profiles").iterdir() if f.name.endswith(".toml")]


def _read(file: str, data: bytes, name: str) -> DeviceProfile:
    if len(data) > _MAX_BYTES:
        raise SpecError(f"{file}: {len(data)} bytes, more than {_MAX_BYTES}: not a device profile")
    try:
        text = data.decode("utf-8")
        table = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError(f"{file}: not TOML: {error}") from None
    try:
        return make(DeviceProfile, {"name": name, **table}, file)
    except SpecError as error:
        raise SpecError(_with_line(str(error), file, text)) from None


def _with_line(message: str, file: str, text: str) -> str:
    """Put the line of the field that the message is about behind the file's name."""
    field = re.search(r"unknown option '(\w+)'|^\S+\.toml\.(\w+)", message)
    if field:
        word = field[1] or field[2]
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(rf"\s*\[?{word}\b", line):
                return message.replace(file, f"{file}:{number}", 1)
    return message
