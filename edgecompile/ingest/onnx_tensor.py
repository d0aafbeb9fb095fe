"""Read the description of one ONNX TensorProto: name, shape, and whether its data has the declared size."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from edgecompile.errors import InputError
from edgecompile.ingest.external_data import ExternalFiles
from edgecompile.ingest.limits import Gate
from edgecompile.ingest.protobuf import BYTES, Span, Walker
from edgecompile.ingest.rules import corrupt, text_safe

_BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
"""TensorProto.DataType to bits of an element; 8 is text."""

_INT64, _TEXT = 7, 8
_SMALL = 64


@dataclass(frozen=True)
class Tensor:
    """A tensor in the file; `values` are those of a small integer tensor (shapes, repeats, trip counts)."""

    name: str
    elements: int
    size_bytes: int
    values: tuple[int, ...] | None


@dataclass
class _Parts:
    name: str = ""
    dtype: int = 0
    dims: list[int] = field(default_factory=list)
    raw: Span | None = None
    typed_bytes: int = 0
    numbers: list[int] = field(default_factory=list)
    entries: list[Span] = field(default_factory=list)
    external: bool = False


def read_tensor(walker: Walker, span: Span, gate: Gate, external: ExternalFiles) -> Tensor:
    """Read and check one tensor; raises `InputError` or `Refused`."""
    parts = _parts(walker, span, gate)
    where = f"{gate.where} (tensor '{text_safe(parts.name)}')"
    if parts.dtype not in _BITS and parts.dtype != _TEXT:
        raise InputError(f"{where}: unknown data type {parts.dtype}; export the model again")
    if any(size < 0 for size in parts.dims) or len(parts.dims) > _SMALL:
        raise corrupt(where, "bad dimensions")
    elements = 1
    for size in parts.dims:
        elements *= size
    gate.at_most("EC-IN-007", f"elements in tensor '{text_safe(parts.name)}'", "elements", elements)
    needed = (elements * _BITS.get(parts.dtype, 0) + 7) // 8
    if parts.external or parts.entries:
        if parts.raw is not None or parts.typed_bytes or parts.dtype == _TEXT:
            raise corrupt(where, "data both inside and outside the file")
        external.use(parts.name, _entries(walker, parts.entries, where, gate), needed)
        return Tensor(parts.name, elements, needed, None)
    return Tensor(parts.name, elements, needed, _inside(walker, parts, where, elements, needed))


def _parts(walker: Walker, span: Span, gate: Gate) -> _Parts:
    parts = _Parts()
    seen: set[int] = set()
    for number, wire, value, end in walker.fields(span):
        if number in (2, 8, 9, 14):
            if number in seen:
                raise corrupt(gate.where, "a tensor field occurs twice")
            seen.add(number)
        match number, wire:
            case 1, 0 | 2 if len(parts.dims) <= _SMALL:
                parts.dims += walker.numbers(wire, value, end, _SMALL + 1)
            case 2, 0:
                parts.dtype = value
            case 8, 2:
                gate.at_most("EC-IN-009", "bytes of a name", "name_length", end - value)
                parts.name = walker.bytes(value, end).decode("utf-8", "replace")
            case 9, 2:
                parts.raw = Span(value, end)
            case 13, 2:
                parts.entries.append(Span(value, end))
            case 14, 0:
                parts.external = value != 0
            case 7, 0 | 2:
                parts.typed_bytes += end - value if wire == BYTES else 1
                if len(parts.numbers) <= _SMALL and (wire != BYTES or end - value <= 10 * _SMALL):
                    parts.numbers += walker.numbers(wire, value, end, _SMALL + 1)
            case 4 | 5 | 6 | 10 | 11, _:
                parts.typed_bytes += end - value if wire == BYTES else max(1, end - value)
            case 1 | 2 | 8 | 9 | 13 | 14, _:
                raise corrupt(gate.where, "not an ONNX tensor")
    return parts


def _entries(walker: Walker, spans: list[Span], where: str, gate: Gate) -> dict[str, str]:
    found: dict[str, str] = {}
    for span in spans:
        pair = {1: "", 2: ""}
        for number, wire, value, end in walker.fields(span):
            if number in pair and wire == BYTES:
                gate.at_most("EC-IN-009", "bytes of external data entry", "name_length", end - value)
                pair[number] = walker.bytes(value, end).decode("utf-8", "replace")
        if pair[1] in found:
            raise corrupt(where, f"external data key '{text_safe(pair[1])}' occurs twice")
        found[pair[1]] = pair[2]
    return found


def _inside(walker: Walker, parts: _Parts, where: str, elements: int, needed: int) -> tuple[int, ...] | None:
    """Check data inside the file; the values of a small int64 tensor."""
    if parts.dtype == _TEXT:
        return None
    if parts.raw is not None:
        if parts.typed_bytes or parts.raw.size != needed:
            raise corrupt(where, f"it declares {needed:,} bytes and holds {parts.raw.size:,}")
        if parts.dtype == _INT64 and elements <= _SMALL:
            return struct.unpack(f"<{elements}q", walker.bytes(parts.raw.start, parts.raw.end))
        return None
    # In the typed fields every element takes a byte at least, except that 4- and 2-bit ones are packed.
    packing = max(1, 8 // _BITS[parts.dtype])
    if elements > packing * parts.typed_bytes:
        raise corrupt(where, f"it declares {elements:,} elements and holds {parts.typed_bytes:,} bytes")
    return tuple(parts.numbers) if parts.dtype == _INT64 and len(parts.numbers) == elements else None
