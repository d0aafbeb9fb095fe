"""A strict reader of zip files: one that another reader cannot read differently.

Python's `zipfile` and the C library inside torch find members in different ways (duplicate names, letter
case, leading or hidden data), so what one has checked the other need not load. Here a file is refused unless
its members follow each other from the first byte to the directory, and the local headers repeat what the
directory says. Format: PKWARE APPNOTE 6.3.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from edgecompile.ingest.limits import Gate
from edgecompile.ingest.rules import corrupt, text_safe
from edgecompile.ingest.source import Source

_STORED, _DEFLATED = 0, 8
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _DESCRIPTOR, _PATCHED, _STRONG, _MASKED = 0x1, 0x8, 0x20, 0x40, 0x2000
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class Member:
    """One member: `start` is where its bytes begin in the file."""

    name: str
    method: int
    stored: int
    size: int
    crc: int
    start: int


def members(source: Source, gate: Gate, deflate: bool = False) -> Mapping[str, Member]:
    """Every member by name, after all the zip rules; raises `Refused` or `InputError`."""
    count, directory, directory_size = _directory(source, gate)
    gate.at_most("EC-IN-014", "zip members", "zip_members", count)
    if directory_size > 1024 * (count + 1):
        _ambiguous(gate, "a directory with unusually long entries")
    data = source.read(directory, directory_size)
    found: dict[str, Member] = {}
    folded: set[str] = set()
    at = expected = 0
    for _ in range(count):
        member, at, offset = _entry(source, gate, data, at, deflate)
        if offset != expected:
            _ambiguous(gate, f"member '{text_safe(member.name)}' does not follow the one before it")
        start, expected = _local(source, gate, member, offset, directory)
        # torch finds members without regard to case, so two that differ in case only are one name.
        if member.name.lower() in folded:
            gate.forbid("EC-IN-012", "", "each name once", f"zip member '{text_safe(member.name)}' twice", _RESAVE)
        folded.add(member.name.lower())
        found[member.name] = Member(member.name, member.method, member.stored, member.size, member.crc, start)
    if at != len(data):
        _ambiguous(gate, "bytes after the last directory entry")
    if expected != directory:
        _ambiguous(gate, "bytes between the last member and the directory")
    _bomb(source, gate, sum(m.size for m in found.values()), deflate)
    return found


_RESAVE = "save the file again with the library that made it"


def _ambiguous(gate: Gate, what: str) -> NoReturn:
    gate.forbid("EC-IN-016", "", "one reading only", f"zip file with {what}", _RESAVE)


def _bomb(source: Source, gate: Gate, declared: int, deflate: bool) -> None:
    ratio = gate.limits.array_ratio if deflate else gate.limits.zip_ratio
    if declared > gate.limits.small_bytes and declared > ratio * source.size:
        value = f"{declared:,} bytes in a zip file of {source.size:,}"
        name = "array_ratio" if deflate else "zip_ratio"
        how = f"from Python, vet(path, Limits({name}=...)) allows more"
        gate.forbid("EC-IN-015", "", f"at most {ratio} times its size", value, how)
    gate.at_most("EC-IN-001", "declared bytes", "file_bytes", declared)


def _directory(source: Source, gate: Gate) -> tuple[int, int, int]:
    """Number of entries, offset and size of the central directory."""
    if source.size < _END.size:
        raise corrupt(source.where, "no zip directory")
    end = source.size - _END.size
    signature, disk, first_disk, here, count, size, offset, comment = _END.unpack(source.read(end, _END.size))
    if signature != b"PK\x05\x06" or comment:
        if _has_comment(source):
            _ambiguous(gate, "a comment")
        raise corrupt(source.where, "no zip directory")
    after = end
    if end >= _LOCATOR.size and source.read(end - _LOCATOR.size, 4) == b"PK\x06\x07":
        _, _, at, disks = _LOCATOR.unpack(source.read(end - _LOCATOR.size, _LOCATOR.size))
        after = end - _LOCATOR.size - _END64.size
        if at != after or disks != 1:
            _ambiguous(gate, "a misplaced zip64 record")
        record = _END64.unpack(source.read(at, _END64.size))
        small = (disk, first_disk, here, count, size, offset)
        disk, first_disk, here, count, size, offset = record[4:]
        limits = (_MAX16, _MAX16, _MAX16, _MAX16, _MAX32, _MAX32)
        agrees = all(a in (b, most) for a, b, most in zip(small, record[4:], limits, strict=True))
        if record[0] != b"PK\x06\x06" or record[1] != _END64.size - 12 or not agrees:
            _ambiguous(gate, "two directories")
    if disk or first_disk or here != count:
        _ambiguous(gate, "several volumes")
    if offset + size != after:
        _ambiguous(gate, "bytes before its first or after its last part")
    return count, offset, size


def _has_comment(source: Source) -> bool:
    """Whether an end record lies before the end of the file, with a comment that fills the rest."""
    start = max(0, source.size - _END.size - _MAX16)
    tail = source.read(start, source.size - start)
    at = tail.rfind(b"PK\x05\x06")
    fits = 0 <= at <= len(tail) - _END.size
    return fits and at + _END.size + _END.unpack_from(tail, at)[7] == len(tail)


def _entry(source: Source, gate: Gate, data: bytes, at: int, deflate: bool) -> tuple[Member, int, int]:
    """The directory entry at `at`: the member, the position after it, and its local header's offset."""
    if at + _ENTRY.size > len(data):
        raise corrupt(source.where, "zip directory ends too early")
    fields = _ENTRY.unpack_from(data, at)
    signature, made, _, flags, method, _, _, crc, stored, size, name_size, extra_size, note_size = fields[:13]
    disk, _, mode, offset = fields[13:]
    after = at + _ENTRY.size + name_size + extra_size + note_size
    if signature != b"PK\x01\x02" or after > len(data):
        raise corrupt(source.where, "damaged zip directory")
    raw = data[at + _ENTRY.size : at + _ENTRY.size + name_size]
    extra = data[at + _ENTRY.size + name_size : after - note_size]
    size, stored, offset = _wide(source, extra, size, stored, offset)
    name = _name(gate, raw)
    shown = f"zip member '{text_safe(name)}'"
    if flags & (_ENCRYPTED | _STRONG | _MASKED | _PATCHED):
        gate.forbid("EC-IN-013", "", "plain files only", f"{shown}: encrypted", _RESAVE)
    kind = mode >> 16 if made >> 8 == 3 else 0
    if name.endswith("/") or (kind and stat.S_IFMT(kind) not in (0, stat.S_IFREG)):
        gate.forbid("EC-IN-013", "", "plain files only", f"{shown}: a link, folder or device", _RESAVE)
    if method != _STORED and not (deflate and method == _DEFLATED):
        gate.forbid("EC-IN-010", "", "stored members", f"{shown}: compressed by method {method}", _RESAVE)
    if disk or note_size or (method == _STORED and stored != size):
        _ambiguous(gate, f"an odd entry for '{text_safe(name)}'")
    return Member(name, method, stored, size, crc, 0), after, offset


def _wide(source: Source, extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int, int]:
    """Sizes and offset with those that do not fit 32 bits taken from the zip64 field."""
    values = [size, stored, offset]
    wanted = [i for i, value in enumerate(values) if value == _MAX32]
    at = 0
    while wanted and at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == 1 and length >= 8 * len(wanted) and at + 4 + length <= len(extra):
            wide = struct.unpack_from(f"<{len(wanted)}Q", extra, at + 4)
            for i, value in zip(wanted, wide, strict=True):
                values[i] = value
            wanted = []
        at += 4 + length
    if wanted:
        raise corrupt(source.where, "zip64 sizes are missing")
    return values[0], values[1], values[2]


def _name(gate: Gate, raw: bytes) -> str:
    name = raw.decode("utf-8", "replace")
    parts = name.removesuffix("/").split("/")
    bad = "\ufffd" in name or "\\" in name or ":" in name or any(ord(c) < 32 or ord(c) == 127 for c in name)
    if bad or len(name) > 1000 or any(part in ("", ".", "..") for part in parts):
        gate.forbid("EC-IN-011", "", "plain relative names", f"zip member named '{text_safe(name)}'", _RESAVE)
    return name


def _local(source: Source, gate: Gate, member: Member, offset: int, directory: int) -> tuple[int, int]:
    """Where the member's bytes begin, and where the next local header must be."""
    header = _LOCAL.unpack(source.read(offset, _LOCAL.size))
    signature, _, flags, method, _, _, crc, stored, size, name_size, extra_size = header
    name = source.read(offset + _LOCAL.size, name_size)
    start = offset + _LOCAL.size + name_size + extra_size
    end = start + member.stored
    described = bool(flags & _DESCRIPTOR)
    same = name == member.name.encode() and method == member.method and not flags & _ENCRYPTED
    sizes = (size in (member.size, _MAX32) and stored in (member.stored, _MAX32) and crc == member.crc) or (
        described and (size, stored) in ((0, 0), (_MAX32, _MAX32)) and crc in (0, member.crc)
    )
    if signature != b"PK\x03\x04" or end > directory:
        raise corrupt(source.where, f"damaged zip member '{text_safe(member.name)}'")
    if not same or not sizes:
        _ambiguous(gate, f"two descriptions of '{text_safe(member.name)}'")
    if described:
        end += _descriptor_size(source, member, end, directory)
    return start, end


def _descriptor_size(source: Source, member: Member, at: int, directory: int) -> int:
    """Length of the data descriptor at `at`: four forms exist; the one that repeats the sizes is it."""
    data = source.read(at, min(24, directory - at))
    forms = ("<L2L", "<L2Q") if max(member.stored, member.size) <= _MAX32 else ("<L2Q",)
    for mark in (b"PK\x07\x08", b""):
        for form in forms:
            expected = mark + struct.pack(form, member.crc, member.stored, member.size)
            if data.startswith(expected):
                return len(expected)
    raise corrupt(source.where, f"damaged zip member '{text_safe(member.name)}'")


def content(source: Source, member: Member, first: int | None = None) -> bytes:
    """The bytes of a member (the first `first` of them); the checksum is verified when it is read whole."""
    wanted = member.size if first is None else min(first, member.size)
    if member.method == _STORED:
        data = source.read(member.start, wanted)
    else:
        # Deflated arrays: only their header is read here, and the input needed for it is bounded too.
        raw = source.read(member.start, min(member.stored, wanted + 4096))
        try:
            data = zlib.decompressobj(-15).decompress(raw, max(wanted, 1))
        except zlib.error as error:
            raise corrupt(source.where, f"member '{text_safe(member.name)}' does not inflate") from error
        if len(data) < wanted:
            raise corrupt(source.where, f"member '{text_safe(member.name)}' is shorter than declared")
    if wanted == member.size and zlib.crc32(data) != member.crc:
        raise corrupt(source.where, f"checksum of member '{text_safe(member.name)}' is wrong")
    return data
