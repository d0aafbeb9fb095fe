"""Vet numpy files: no Python objects, bounded headers, and as many bytes as the shape says."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from edgecompile.errors import InputError
from edgecompile.ingest.limits import Gate, Vetted
from edgecompile.ingest.rules import corrupt, text_safe
from edgecompile.ingest.source import Source
from edgecompile.ingest.vet_zip import Member, content

MAGIC = b"\x93NUMPY"
_DTYPE = re.compile(r"[<>|=]?([?bBiufcSUV])(\d{0,6})")
_PLAIN = {"?": 1, "b": 1, "B": 1}


def vet_npy(source: Source, gate: Gate) -> Vetted:
    """Vet one array."""
    head = source.read(0, min(source.size, gate.limits.header_bytes + 12))
    declared, start = _header(head, source.where, gate)
    if start + declared != source.size:
        raise corrupt(source.where, f"it declares {declared:,} bytes of data and has {source.size - start:,}")
    return gate.vetted("npy", declared)


def vet_npz(source: Source, members: Mapping[str, Member], gate: Gate) -> Vetted:
    """Vet a zip file of arrays, stored or deflated; only headers are read."""
    total = 0
    for name, member in members.items():
        where = f"{source.where} ({text_safe(name)})"
        declared, start = _header(content(source, member, gate.limits.header_bytes + 12), where, gate)
        if start + declared != member.size:
            raise corrupt(where, f"it declares {declared:,} bytes of data and has {member.size - start:,}")
        total += declared
    return gate.vetted("npz", total)


def _header(head: bytes, where: str, gate: Gate) -> tuple[int, int]:
    """Bytes of data that the header at the start of `head` declares, and where they begin."""
    if head[:6] != MAGIC or len(head) < 12 or head[6] not in (1, 2, 3):
        raise corrupt(where, "not a numpy array")
    width = 2 if head[6] == 1 else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    gate.at_most("EC-IN-041", "bytes of array header", "header_bytes", length)
    start = 8 + width + length
    if len(head) < start:
        raise corrupt(where, "its header ends too early")
    try:
        # literal_eval builds constants only; the text is short, which bounds its nesting too.
        header = ast.literal_eval(head[8 + width : start].decode("latin-1" if width == 2 else "utf-8").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise corrupt(where, "its header is not a numpy header") from error
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise corrupt(where, "its header is not a numpy header")
    itemsize = _itemsize(header["descr"], where, gate)
    shape = header["shape"]
    good = isinstance(shape, tuple) and len(shape) <= 64 and all(type(n) is int and n >= 0 for n in shape)
    if not good or not isinstance(header["fortran_order"], bool):
        raise corrupt(where, "its header is not a numpy header")
    elements = 1
    for size in shape:
        elements *= size
    gate.at_most("EC-IN-007", "elements", "elements", elements, where if where != gate.where else "")
    return elements * itemsize, start


def _itemsize(descr: object, where: str, gate: Gate) -> int:
    text = str(descr)
    if (isinstance(descr, str) and "O" in descr) or (not isinstance(descr, str) and "O'" in text):
        place = where.removeprefix(gate.where).strip(" ()")
        how = "save plain arrays: numpy.savez(path, x=numpy.asarray(data, 'float32'))"
        gate.forbid("EC-IN-040", place, "plain numbers", "an array of Python objects", how)
    found = _DTYPE.fullmatch(descr) if isinstance(descr, str) else None
    if not found:
        raise InputError(f"{where}: dtype {text_safe(text)} is not supported; save plain numbers, e.g. float32")
    code, digits = found.groups()
    size = int(digits or 0) or _PLAIN.get(code, 0)
    return size * 4 if code == "U" else size
