"""What of an artifact goes to the device: the model, weights beside it, golden inputs, and what its manifest says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompile.errors import InputError


@dataclass(frozen=True)
class Parcel:
    """A model and what belongs to it; `files` are what is sent, by their names on the device.

    `inputs` are the manifest's (name, shape, dtype), none where there is no manifest.
    """

    model: Path
    files: dict[str, Path]
    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    quantized: bool

    @property
    def size_bytes(self) -> int:
        """What the files take together."""
        return sum(path.stat().st_size for path in self.files.values())


def parcel(artifact: Path, suffix: str = ".onnx") -> Parcel:
    """The model in a file or in a folder that `edgecompile build` left; raises `InputError`."""
    model = _model(artifact, suffix)
    with_weights = model.with_name(model.name + ".data")
    files = {f"model{suffix}": model}
    if with_weights.is_file():
        files[with_weights.name] = with_weights  # the model names this file
    golden = model.with_name("golden.npz")
    if golden.is_file():
        files["golden.npz"] = golden
    return Parcel(model, files, _inputs(model.with_name("manifest.json"), model.name), _mentions_quantize(model))


def _model(artifact: Path, suffix: str) -> Path:
    if artifact.is_file():
        if artifact.suffix != suffix:
            raise InputError(f"{artifact}: this device runs {suffix} files, or a folder with one")
        return artifact
    if not artifact.is_dir():
        raise InputError(f"{artifact}: no such file or folder; give an artifact that `edgecompile build` left")
    found = sorted(p for p in artifact.glob(f"*{suffix}") if p.is_file())
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise InputError(f"{artifact}: expected one {suffix} file in the folder, found {names}; name the file itself")
    return found[0]


def _inputs(manifest: Path, name: str) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """The inputs that the manifest lists for this model; none where it is missing or of another file."""
    try:
        table: Any = json.loads(manifest.read_text(encoding="utf-8"))
        if table["artifact"] != name:
            return ()
        return tuple((str(i["name"]), tuple(int(n) for n in i["shape"]), str(i["dtype"])) for i in table["inputs"])
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{manifest}: not a manifest that `edgecompile build` wrote; build again") from None


def _mentions_quantize(model: Path) -> bool:
    """Whether the operator's name stands in the file: enough to know which flags a builder needs."""
    tail = b""
    with model.open("rb") as file:
        while block := file.read(1 << 20):
            if b"QuantizeLinear" in tail + block:
                return True
            tail = block[-20:]
    return False
