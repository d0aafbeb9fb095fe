"""Cells: which models on which targets in which mode, each with a key of everything that goes into it."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgecompile import __version__
from edgecompile.errors import SpecError, near
from edgecompile.matrix.sources import sources_hash
from edgecompile.reference import is_function, load_function
from edgecompile.target import Target

Mode = Literal["float", "int8"]
MODES: tuple[Mode, ...] = get_args(Mode)
PIPELINE: dict[str, str] = {"float": "", "int8": "quantize(samples=32)"}
"""Mode -> the passes behind the exact ones."""
_OWN = (
    "edgecompile.matrix.child",
    "edgecompile.matrix.compare",
    "edgecompile.matrix.cells",
    "edgecompile.building.fixed",
)


@dataclass(frozen=True)
class Cell:
    """One model on one `artifact@device` in one mode; cells of one key give the same result on this machine."""

    model: str
    target: str
    mode: Mode
    key: str


def known_models() -> dict[str, str]:
    """Name -> `module:function` of what ships: trained teachers, then architectures with seeded weights."""
    from edgecompile.models import MODELS
    from edgecompile.models.configs import CONFIGS

    return {**MODELS, **CONFIGS}


def known_targets() -> list[str]:
    """Every artifact of a deployment as `artifact@device`, and the targets that stand in none."""
    from edgecompile.targets import DEPLOYMENTS, TARGETS

    found = list(dict.fromkeys(one for entries in DEPLOYMENTS.values() for entry in entries for one in _split(entry)))
    placed = {re.split(r"[(@]", entry)[0] for entry in found}
    return found + [f"{name}@host" for name in TARGETS if name not in placed]


def _split(entry: str) -> list[str]:
    """`onnx|tvm@host`, of which a build takes the faster, as both."""
    joined, at, device = entry.rpartition("@")
    return [f"{one}@{device}" for one in joined.split("|")] if at else [entry]


def read_target(text: str) -> tuple[Target, str]:
    """`onnx(opset=18)@host`, or a class of your own as `file.py:Class@host`: the target and its device's name."""
    from edgecompile.device import DeviceProfile
    from edgecompile.pass_manager import parse_one
    from edgecompile.spec import parse_calls
    from edgecompile.targets import DEPLOYMENTS, TARGETS

    own, _, device = text.rpartition("@")
    if is_function(own):
        cls: Any = load_function(own)
        if not (isinstance(cls, type) and issubclass(cls, Target)):
            raise SpecError(
                f"--targets {text}: {own} is no class of targets: derive one from edgecompile.target.Target"
            )
        target: Target = cls()
    else:
        calls = parse_calls(own, "--targets")
        if len(calls) != 1:
            form = "artifact@device, such as onnx@host, or a deployment"
            raise SpecError(f"--targets {text!r}: expected {form}{near(text, DEPLOYMENTS)}")
        target = parse_one(calls[0], TARGETS, "--targets")
    try:
        DeviceProfile.load(device)
    except SpecError as error:
        raise SpecError(f"--targets {text}: {error}") from None
    return target, device


def plan(models: Sequence[str] = (), targets: Sequence[str] = ()) -> list[Cell]:
    """The cells of these models (all that ship, by default) on these targets, model by model.

    A model is a name or a `module:function`; a target `artifact@device` or the name of a deployment. Raises `SpecError`
    with near spellings for anything else.
    """
    from edgecompile.passes import PASSES
    from edgecompile.targets import DEPLOYMENTS

    known = known_models()
    for name in models:
        if name not in known and not is_function(name):
            raise SpecError(f"--only: unknown model {name!r}{near(name, known)}")
    texts = [one for text in targets for entry in DEPLOYMENTS.get(text, (text,)) for one in _split(entry)]
    chosen = list(dict.fromkeys(text.replace(" ", "") for text in texts or known_targets()))
    classes = {text: type(read_target(text)[0]).__module__ for text in chosen}
    passes = [entry.partition(":")[0] for entry in PASSES.values()]
    facts = _versions(), _flags()
    cells = []
    for name in dict.fromkeys(models or known):
        place = known.get(name, name).rpartition(":")[0]
        for text in chosen:
            own = text.rpartition("@")[0]
            target = own.rpartition(":")[0] if is_function(own) else classes[text]
            code = sources_hash([place, target, *passes], _OWN)
            cells += [Cell(name, text, mode, _key(name, text, mode, code, *facts)) for mode in MODES]
    return cells


def host_keys(cells: Sequence[Cell]) -> dict[tuple[str, str], str]:
    """Model and mode to the key of their cell on this host, by the deployment's primary artifact."""
    from edgecompile.targets import DEPLOYMENTS

    hosts = plan([cell.model for cell in cells], _split(DEPLOYMENTS["host"][0])[:1])
    return {(cell.model, cell.mode): cell.key for cell in hosts}


def shard(cells: Sequence[Cell], text: str) -> list[Cell]:
    """The cells of every n-th model from the i-th on, for `i/n`: a model's cells share work and stay together."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise SpecError(f"--shard {text!r}: expected i/n with i from 1 to n, such as 1/4")
    names = list(dict.fromkeys(cell.model for cell in cells))
    mine = set(names[int(match[1]) - 1 :: int(match[2])])
    return [cell for cell in cells if cell.model in mine]


def _key(name: str, text: str, mode: str, code: str, versions: dict[str, str], flags: list[str]) -> str:
    from edgecompile.store import key

    return key("matrix", name, text, PIPELINE[mode], code, versions, flags)


def _versions() -> dict[str, str]:
    """Every package that edgecompile says it needs or can use, the ones for its developers left out."""
    found = {"edgecompile": __version__}
    for line in importlib.metadata.requires("edgecompile") or ():
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        if name == "edgecompile" or re.search(r"extra == ['\"]dev['\"]", line):
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _flags() -> list[str]:
    from edgecompile.measure import machine

    flags = machine()["flags"]
    assert isinstance(flags, list)
    return [str(flag) for flag in flags]
