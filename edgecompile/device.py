"""DeviceProfile: what is known of a device, read from a TOML file in `device_profiles/` or from the user's own."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from edgecompile.errors import SpecError, near
from edgecompile.spec import make

_MAX_BYTES = 1_000_000

How = Literal["quoted", "derived", "recalled", "fitted", "measured"]
Law = Literal["none", "cpu", "gpu", "hexagon", "neural_engine"]


@dataclass(frozen=True)
class Figure:
    """A number with where it comes from: quoted from a document, derived from such, recalled, fitted or measured."""

    value: float
    how: How
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise SpecError(f"value: {self.value:g} is impossible: it must be above 0")


@dataclass(frozen=True)
class Unit:
    """A compute unit. `rates` are dense peak tera-operations a second by dtype (a multiply-accumulate counts two).

    `sparse_rates` are those of 2:4 sparse weights, `vector_rate` that of float arithmetic outside the matrix engine.
    `unsupported` are kinds of fused operators that it has no kernel for, `law` its own where it is not the device's.
    """

    cores: Figure | None = None
    clock_mhz: Figure | None = None
    count: int = 1
    rates: Mapping[str, Figure] = field(default_factory=dict)
    sparse_rates: Mapping[str, Figure] = field(default_factory=dict)
    vector_rate: Figure | None = None
    unsupported: tuple[str, ...] = ()
    law: Law = "none"

    def __post_init__(self) -> None:
        for dtype, sparse in self.sparse_rates.items():
            dense = self.rates.get(dtype)
            if dense is not None and sparse.value < dense.value:
                raise SpecError(f"sparse_rates.{dtype}: {sparse.value:g} is below the dense {dense.value:g}: swap them")


@dataclass(frozen=True)
class Mode:
    """A power mode: what of the main unit and the memory it changes."""

    cores: Figure | None = None
    clock_mhz: Figure | None = None
    bandwidth_gb_s: Figure | None = None


@dataclass(frozen=True)
class DeviceProfile:
    """A device as a target sees it. `measured_here` is true for the machine that runs the build.

    `runtime` names what executes artifacts there. `threads` is the default number of threads that an artifact is
    measured with, `memory_mb` the memory that a model may fill. `law` is the shape of the latency
    predictor (see `edgecompile.cost.laws`), `fit` the name of its fitted parameters. The first of `units` is the one
    that networks run on, the last the one that takes what others cannot. `mode` is the power mode in force.
    """

    name: str
    title: str
    runtime: str
    measured_here: bool = False
    threads: int = 1
    memory_mb: Figure | None = None
    source: str = ""
    law: Law = "none"
    fit: str = ""
    bandwidth_gb_s: Figure | None = None
    cache_mb: Figure | None = None
    units: Mapping[str, Unit] = field(default_factory=dict)
    modes: Mapping[str, Mode] = field(default_factory=dict)
    mode: str = ""

    def __post_init__(self) -> None:
        if self.mode and self.mode not in self.modes:
            raise SpecError(f"mode: {self.mode!r} is not one of its power modes{near(self.mode, self.modes)}")
        if self.law != "none" and not (self.units and self.bandwidth_gb_s):
            raise SpecError("law: a predictor needs units and bandwidth_gb_s")

    @property
    def unit(self) -> str:
        """The name of the unit that networks run on."""
        return next(iter(self.units), "CPU")

    @staticmethod
    def load(name: str) -> DeviceProfile:
        """The profile of that name, or of that `.toml` file; `name:mode` picks a power mode.

        Raises `SpecError` with the line of a wrong field.
        """
        name, _, mode = name.partition(":")
        if name.endswith(".toml"):
            path = Path(name)
            if not path.is_file():
                raise SpecError(f"--device {name}: no such file")
            return _read(path.name, path.read_bytes(), path.stem, mode)
        files = {f.name.removesuffix(".toml"): f for f in _folder()}
        if name not in files:
            raise SpecError(f"unknown device {name!r}{near(name, files)}")
        return _read(f"{name}.toml", files[name].read_bytes(), name, mode)

    @staticmethod
    def names() -> list[str]:
        """Every installed profile."""
        return sorted(f.name.removesuffix(".toml") for f in _folder())


def _folder() -> list[resources.abc.Traversable]:
    return [f for f in resources.files("edgecompile.device_profiles").iterdir() if f.name.endswith(".toml")]


def _read(file: str, data: bytes, name: str, mode: str) -> DeviceProfile:
    if len(data) > _MAX_BYTES:
        raise SpecError(f"{file}: {len(data)} bytes, more than {_MAX_BYTES}: not a device profile")
    try:
        text = data.decode("utf-8")
        table = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError(f"{file}: not TOML: {error}") from None
    try:
        profile = make(DeviceProfile, {"name": name, **table}, file)
    except SpecError as error:
        raise SpecError(_with_line(str(error), file, text)) from None
    try:
        return dataclasses.replace(profile, mode=mode) if mode else profile
    except SpecError as error:
        raise SpecError(f"--device {name}: {error}") from None


def _with_line(message: str, file: str, text: str) -> str:
    """Put the line of the field that the message is about behind the file's name."""
    path = re.match(rf"{re.escape(file)}\.([\w.\-]+)", message)
    words = path[1].rstrip(".").split(".") if path else []
    if option := re.search(r"unknown option '([^']+)'", message):
        words.append(option[1])
    elif inner := re.search(r"^[^:]+: ([\w.]+): ", message):
        words += inner[1].split(".")
    number = _line(words, text)
    return message.replace(file, f"{file}:{number}", 1) if number else message


def _line(words: list[str], text: str) -> int:
    """The line of a key by its path, the last one found along it; 0 when none is."""
    best, depth = 0, 0
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([^\]]+)\]", line):
            section = tuple(part.strip().strip('"') for part in header[1].split("."))
            here = section
        elif key := re.match(r"\s*\"?([\w\-. ]+?)\"?\s*=", line):
            here = (*section, *key[1].split("."))
        else:
            continue
        if len(here) > depth and list(here) == words[: len(here)]:
            best, depth = number, len(here)
    return best
