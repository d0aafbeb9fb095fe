"""Vet a safetensors file: header, dtypes, and offsets that tile the data without holes or overlaps."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from edgecompile.errors import InputError
from edgecompile.ingest.limits import Gate, Vetted
from edgecompile.ingest.rules import corrupt, text_safe
from edgecompile.ingest.source import Source

_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
}


def vet_safetensors(source: Source, gate: Gate) -> Vetted:
    """Vet a file that starts like safetensors; names are checked for length only and never used as paths."""
    length = int.from_bytes(source.read(0, 8), "little")
    gate.at_most("EC-IN-041", "bytes of header", "json_bytes", length)
    try:
        header = json.loads(source.read(8, length), object_pairs_hook=lambda pairs: _unique(source.where, pairs))
    except RecursionError:
        gate.forbid("EC-IN-006", "header", "flat JSON", "deeply nested JSON", "save it again with safetensors")
    except ValueError as error:
        raise corrupt(source.where, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise corrupt(source.where, "its header is not an object")
    _metadata(source.where, header.pop("__metadata__", {}))
    spans = sorted(_span(source.where, gate, name, entry) for name, entry in header.items())
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise corrupt(source.where, f"tensor '{text_safe(name)}' leaves a hole or overlaps another")
        end = stop
    if 8 + length + end != source.size:
        raise corrupt(source.where, f"it declares {8 + length + end:,} bytes and has {source.size:,}")
    return gate.vetted("safetensors", end)


def _unique(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InputError(f"{where}: key '{text_safe(twice)}' occurs twice in the header; save the file again")
    return found


def _metadata(where: str, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise corrupt(where, "its metadata is not text")


def _span(where: str, gate: Gate, name: str, entry: object) -> tuple[int, int, str]:
    """First byte, end and name of one tensor's data."""
    gate.at_most("EC-IN-009", "characters of a name", "name_length", len(name))
    shown = text_safe(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise corrupt(where, f"tensor '{shown}' is not described as safetensors does")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise InputError(f"{where}: tensor '{shown}' has unknown dtype '{text_safe(str(dtype))}'; convert it to F32")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise corrupt(where, f"tensor '{shown}' has a bad shape or bad offsets")
    elements = 1
    for size in shape:
        elements *= size
    gate.at_most("EC-IN-007", f"elements in '{shown}'", "elements", elements)
    if elements * _BITS[dtype] != 8 * (offsets[1] - offsets[0]):
        raise corrupt(where, f"tensor '{shown}' is declared larger or smaller than its data")
    return offsets[0], offsets[1], name


def _sizes(value: object) -> bool:
    """Whether `value` is a list of at most 64 integers that are not negative."""
    return isinstance(value, list) and len(value) <= 64 and all(type(size) is int and size >= 0 for size in value)
