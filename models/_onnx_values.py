"""Values of an ONNX graph while it is walked: traced tensors, known tensors, sizes with symbols."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_KNOWN = 1 << 28  # elements; a folded constant beyond this is a bomb, not a weight

DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BFLOAT16: torch.bfloat16,
}
"""ONNX element types that are computed with; strings, complex, 8-bit and 4-bit floats are not."""


class Refusal(Exception):
    """Why one node cannot be imported; the walker collects these and lists them all at once."""


@contextmanager
def outside() -> Iterator[None]:
    """Compute on real tensors, unseen by a trace that may be running."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor whose value is known at import: stored, or computed from what is stored alone.

    `weight` is true for floats that the file stores with at least one axis: they stay trainable parameters.
    """

    tensor: Tensor
    name: str = ""
    weight: bool = False

    def numbers(self) -> list[Any]:
        """Its elements as Python numbers."""
        with outside():
            return list(self.tensor.flatten().tolist())


@dataclass(frozen=True, eq=False)
class Sizes:
    """An int64 scalar (`vector` false) or vector with a dynamic size in it, as Python ints and `SymInt`s."""

    items: tuple[Any, ...]
    vector: bool = True


Value = Tensor | Known | Sizes | None


class Keeper(Protocol):
    """What a node may ask of the walker."""

    def folded(self, name: str, make: Callable[..., Tensor], values: Sequence[Value], buffer: bool) -> Tensor:
        """`make` applied now when every value is known (and kept as the weight `name`), else in the graph."""
        ...

    def tensor(self, value: Value, buffer: bool = False) -> Tensor:
        """A value as a tensor of the graph; known ones become weights."""
        ...


@dataclass(frozen=True)
class Node:
    """One ONNX node: `version` is the opset of its file, `outputs` the names of its values."""

    name: str
    op: str
    domain: str
    version: int
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    keeper: Keeper = field(repr=False)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's value, strings decoded, or `default`."""
        return self.attributes.get(name, default)

    def wants(self, index: int) -> bool:
        """True when output `index` has a name, so somebody may read it."""
        return index < len(self.outputs) and bool(self.outputs[index])

    def folded(
        self, value: Value, make: Callable[..., Tensor], *more: Value, suffix: str = "", buffer: bool = False
    ) -> Tensor:
        """A weight made from stored ones, named after the first; computed at import when all are known."""
        name = value.name if isinstance(value, Known) and value.name else self.name
        return self.keeper.folded(name + suffix, make, (value, *more), buffer)

    def stored(self, suffix: str, make: Callable[[], Tensor]) -> Tensor:
        """A constant of this node's own, kept as a buffer."""
        return self.keeper.folded(self.name + suffix, make, (), True)

    def tensor(self, value: Value, buffer: bool = False) -> Tensor:
        """A value as a tensor of the graph."""
        return self.keeper.tensor(value, buffer)


def to_tensor(proto: TensorProto) -> Tensor:
    """An ONNX tensor as a torch tensor that owns its memory; 4-bit integers come as 8-bit ones."""
    if proto.data_type in (TensorProto.INT4, TensorProto.UINT4):
        array = onnx.numpy_helper.to_array(proto)
        return torch.from_numpy(array.astype(np.int8 if proto.data_type == TensorProto.INT4 else np.uint8))
    if proto.data_type not in DTYPES:
        raise Refusal(f"element type {TensorProto.DataType.Name(proto.data_type)} of '{proto.name}' is not supported")
    array = onnx.numpy_helper.to_array(proto)
    return from_array(array)


def from_array(array: NDArray[Any]) -> Tensor:
    """A numpy array (bfloat16 by its bits) as a tensor that owns its memory."""
    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def dtype_of(code: int) -> torch.dtype:
    """torch's dtype for an ONNX element type; refuses those that are not computed with."""
    if code not in DTYPES:
        raise Refusal(f"element type {TensorProto.DataType.Name(code)} is not supported")
    return DTYPES[code]


def ints(value: Value, what: str) -> list[Any]:
    """The Python ints (or `SymInt`s) of a known operand; refuses one that depends on the data."""
    match value:
        case Known():
            return [int(v) for v in value.numbers()]
        case Sizes(items):
            return list(items)
        case _:
            raise Refusal(f"its {what} is computed from the data")


def numbers(value: Value, what: str) -> list[Any]:
    """The Python numbers of a known operand; refuses one that depends on the data."""
    if isinstance(value, Known):
        return value.numbers()
    raise Refusal(f"its {what} is computed from the data")


def sizes(items: Sequence[Any], vector: bool = True) -> Known | Sizes:
    """A shape value: known when every size is a plain int."""
    if all(isinstance(i, int) for i in items):
        return from_numbers(list(items) if vector else items[0], torch.int64)
    return Sizes(tuple(items), vector)


def from_numbers(items: Any, dtype: torch.dtype) -> Known:
    """A known tensor of Python numbers."""
    with outside():
        return Known(torch.tensor(items, dtype=dtype))


def rank(value: Known | Sizes | Tensor) -> int:
    """How many axes a value has."""
    match value:
        case Known(tensor):
            return tensor.dim()
        case Sizes():
            return int(value.vector)
        case _:
            return value.dim()
