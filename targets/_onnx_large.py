"""Models that pass 2 GB, where protobuf ends: large weights stay outside while the graph is edited.

A weight that was set aside is a tensor of external data in the graph, with a shape and no numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from edgecompile.program import Program

DATA = "model.onnx.data"
_LIMIT = 1_900_000_000
_ASIDE = 1 << 20
_ALIGNED = 4096
"""Bytes: a file can be mapped into memory at such a place."""


def too_large(program: Program) -> bool:
    """Whether the weights of a program do not fit one protobuf file."""
    return sum(w.numel() * w.element_size() for w in program.weights().values()) > _LIMIT


def set_aside(model: Any) -> dict[str, Any]:
    """Take the weights from a megabyte on out of an `onnx_ir` model; what was taken, by name."""
    import onnx_ir as ir

    taken: dict[str, Any] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _ASIDE:
            continue
        taken[name] = tensor
        value.const_value = ir.ExternalTensor(DATA, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name)
    return taken


def write(model: onnx.ModelProto, taken: dict[str, Any], folder: Path) -> None:
    """Write `model.onnx`, and the weights that were set aside and are still read into one file beside it."""
    with (folder / DATA).open("wb") as file:
        for stored in model.graph.initializer:
            if stored.data_location != onnx.TensorProto.EXTERNAL:
                continue
            file.write(b"\0" * (-file.tell() % _ALIGNED))
            offset = file.tell()
            taken[stored.name].tofile(file)
            del stored.external_data[:]
            for key, value in (("location", DATA), ("offset", offset), ("length", file.tell() - offset)):
                stored.external_data.add(key=key, value=str(value))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))
