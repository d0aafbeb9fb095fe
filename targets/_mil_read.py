"""Read an ML Program package: operations in order, with every constant decoded from the package's own weight file."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgecompile.errors import TargetError
from edgecompile.silence import silenced

_SENTINEL = 0xDEADBEEF
_UNUSED = ("executorch", "sklearn", "xgboost", "torchao", "tensorflow", "transformers")
_MODEL = "com.apple.CoreML/model.mlmodel"
_BITS = MappingProxyType({"INT4": 4, "UINT4": 4, "UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT6": 6})
_NUMPY = MappingProxyType(
    {
        "BOOL": np.dtype(bool),
        "FLOAT16": np.dtype("<f2"),
        "FLOAT32": np.dtype("<f4"),
        "FLOAT64": np.dtype("<f8"),
        "INT8": np.dtype("i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "UINT8": np.dtype("u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
    }
)


@dataclass(frozen=True)
class Const:
    """A constant as it is stored: `dtype` is MIL's name, integers of fewer than eight bits are unpacked."""

    value: Any
    dtype: str


@dataclass(frozen=True)
class Name:
    """What another operation made."""

    name: str


@dataclass(frozen=True)
class MilOp:
    """One operation; an input is a constant, a name, or a tuple of these."""

    kind: str
    name: str
    inputs: Mapping[str, Any]
    outputs: tuple[tuple[str, str], ...]
    """Names and MIL dtypes."""
    rank: int = 0
    """The most axes that one of the outputs has."""


@dataclass(frozen=True)
class MilProgram:
    """The main function of a package: inputs and outputs with MIL dtypes and shapes, and its operations in order."""

    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...]
    ops: tuple[MilOp, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_package(package: Path) -> MilProgram:
    """The program of an .mlpackage; `TargetError` when it is damaged or no ML Program with one function."""
    where = package.name
    try:
        folder = package / "Data"
        manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        spec = parse_spec((folder / root).read_bytes())
        reader = _Reader(folder / Path(root).parent)
        kind = spec.WhichOneof("Type")
        if kind != "mlProgram":
            raise TargetError(f"{where}: {kind or 'nothing'} where an ML Program was expected; it is not read here")
        return _program(spec, reader)
    except TargetError:
        raise
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        raise TargetError(f"{where}: damaged or no Core ML package: {_one_line(error)}") from error
    except Exception as error:
        if type(error).__name__ != "DecodeError":
            raise
        raise TargetError(f"{where}: damaged: its {Path(_MODEL).name} is no model specification") from error


def parse_spec(data: bytes) -> Any:
    """A model specification as coremltools' protobuf message; `TargetError` that names the extra when it is absent."""
    spec = coremltools().proto.Model_pb2.Model()
    spec.ParseFromString(data)
    return spec


def coremltools() -> Any:
    """The module, imported without its remarks about versions and macOS; `TargetError` when it is not installed."""
    import warnings

    try:
        with warnings.catch_warnings(), silenced("coremltools", "torch.utils._pytree", "torchao", stderr=True):
            warnings.simplefilter("ignore")
            with _absent():
                import coremltools as module
    except ImportError as error:
        raise TargetError("coreml: needs coremltools: pip install 'edgecompile[coreml]'", rule="toolchain") from error
    return module


@contextmanager
def _absent() -> Iterator[None]:
    """Hide what coremltools imports where it finds it and nothing here uses: together it takes seconds."""
    hidden = [name for name in _UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _program(spec: Any, reader: _Reader) -> MilProgram:
    functions = spec.mlProgram.functions
    if "main" not in functions:
        raise TargetError(f"the package has no function main, only {', '.join(sorted(functions)) or 'none'}")
    main = functions["main"]
    block = main.block_specializations[main.opset]
    inputs = tuple((i.name, *_type(i.type)) for i in main.inputs)
    ops = tuple(_operation(op, reader) for op in block.operations)
    return MilProgram(inputs, tuple(block.outputs), ops, dict(spec.description.metadata.userDefined))


def _operation(op: Any, reader: _Reader) -> MilOp:
    name = op.outputs[0].name if op.outputs else op.type
    if op.blocks:
        raise TargetError(f"{name}: MIL operation {op.type} has inner blocks, which are not interpreted here")
    inputs: dict[str, Any] = {k: reader.value(v) for k, v in op.attributes.items() if k != "name"}
    for key, argument in op.inputs.items():
        bound = tuple(
            Name(b.name) if b.WhichOneof("binding") == "name" else reader.value(b.value) for b in argument.arguments
        )
        inputs[key] = bound[0] if len(bound) == 1 else bound
    rank = max((len(_type(o.type)[1]) for o in op.outputs), default=0)
    return MilOp(op.type, name, inputs, tuple((o.name, _type(o.type)[0]) for o in op.outputs), rank)


def _type(value: Any) -> tuple[str, tuple[int, ...]]:
    kind = value.WhichOneof("type")
    if kind != "tensorType":
        return str(kind), ()
    tensor = value.tensorType
    dtype = str(type(value).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[tensor.dataType].name)
    sizes = tuple(int(d.constant.size) if d.WhichOneof("dimension") == "constant" else -1 for d in tensor.dimensions)
    return dtype, sizes


class _Reader:
    """Constants of one package; each weight file is mapped once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Any] = {}

    def value(self, value: Any) -> Any:
        """A constant, or a tuple of them for a list."""
        which = value.WhichOneof("value")
        if which == "blobFileValue":
            return self._stored(value)
        immediate = value.immediateValue
        kind = immediate.WhichOneof("value")
        if kind in ("list", "tuple"):
            return tuple(self.value(v) for v in getattr(immediate, kind).values)
        if kind == "dictionary":
            raise TargetError("the package has a dictionary as a constant, which is not interpreted here")
        dtype, shape = _type(value.type)
        tensor = immediate.tensor
        form = tensor.WhichOneof("value")
        values: Any = getattr(tensor, form).values if form else ()
        if dtype == "STRING":
            return Const(str(values[0]) if not shape else tuple(map(str, values)), dtype)
        if form == "bytes":
            return Const(decode(values, dtype, shape), dtype)
        return Const(np.array(values, dtype=_numpy(dtype)).reshape(shape), dtype)

    def _stored(self, value: Any) -> Const:
        blob = value.blobFileValue
        parts = blob.fileName.split("/")
        if parts[0] != "@model_path" or ".." in parts:
            raise ValueError(f"weights are named {blob.fileName!r}, outside the package")
        if blob.fileName not in self.files:
            self.files[blob.fileName] = np.memmap(self.folder.joinpath(*parts[1:]), dtype="u1", mode="r")
        data = self.files[blob.fileName]
        head = bytes(data[blob.offset : blob.offset + 24])
        sentinel, _, size, offset = struct.unpack("<IIQQ", head)
        if sentinel != _SENTINEL or offset + size > data.size:
            raise ValueError(f"no weights at {blob.offset} of {parts[-1]}")
        dtype, shape = _type(value.type)
        return Const(decode(data[offset : offset + size], dtype, shape), dtype)


def decode(data: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Little-endian bytes as an array; integers of fewer than eight bits stand packed, the lowest bits first."""
    raw = np.frombuffer(data, dtype="u1")
    count = math.prod(shape)
    if dtype not in _BITS:
        kind = _numpy(dtype)
        if raw.size < count * kind.itemsize:
            raise ValueError(f"{raw.size} bytes where {count} numbers of {dtype} should be")
        whole: np.ndarray[Any, Any] = raw[: count * kind.itemsize].view(kind).reshape(shape)
        return whole
    width = _BITS[dtype]
    if raw.size * 8 < count * width:
        raise ValueError(f"{raw.size} bytes where {count} numbers of {dtype} should be")
    bits = np.unpackbits(raw, bitorder="little")[: count * width].reshape(count, width)
    numbers = (bits.astype(np.int16) << np.arange(width, dtype=np.int16)).sum(1)
    if dtype == "INT4":
        numbers = np.where(numbers >= 8, numbers - 16, numbers)
    result: np.ndarray[Any, Any] = numbers.astype("i1" if dtype == "INT4" else "u1").reshape(shape)
    return result


def _numpy(dtype: str) -> np.dtype[Any]:
    if dtype not in _NUMPY:
        raise TargetError(f"the package has constants of {dtype}, which are not interpreted here")
    return _NUMPY[dtype]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
