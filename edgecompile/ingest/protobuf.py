"""Walk protobuf messages in a file by position, without decoding what is not needed (raw data is skipped).

Wire format: https://protobuf.dev/programming-guides/encoding. Groups, field 0 and overlong varints are faults
here; a singular field that occurs twice is one too, where the caller says so (other parsers merge or
overwrite it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from edgecompile.ingest.rules import corrupt
from edgecompile.ingest.source import Source

_WINDOW = 1 << 16
_MAX_NUMBER = (1 << 29) - 1

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {VARINT: 0, FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True, slots=True)
class Span:
    """A message or a string: where it begins and ends in the file."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start


@dataclass(slots=True)
class Walker:
    """A file and the part of it that is in memory."""

    source: Source
    _data: bytes = b""
    _base: int = field(default=0)

    def fields(self, span: Span) -> Iterable[tuple[int, int, int, int]]:
        """Each field of the message as (number, wire type, value or start, end); end is 0 for varints."""
        if span.size <= _WINDOW:
            return self._all_fields(self.bytes(span.start, span.end), span.start)
        return self._streamed(span)

    def _all_fields(self, data: bytes, base: int) -> list[tuple[int, int, int, int]]:
        """The fields of a small message at once, which is several times faster than one by one."""
        found: list[tuple[int, int, int, int]] = []
        at, end = 0, len(data)
        while at < end:
            tag, at = self._varint(data, at)
            number, wire = tag >> 3, tag & 7
            if wire == BYTES and number:
                size, at = self._varint(data, at)
            else:
                size = _FIXED_SIZES.get(wire, -1) if 0 < number <= _MAX_NUMBER else -1
            if wire == VARINT and size == 0:
                value, at = self._varint(data, at)
                found.append((number, wire, value, 0))
                continue
            if size < 0 or number > _MAX_NUMBER:
                raise corrupt(self.source.where, "not a protobuf message")
            if at + size > end:
                raise corrupt(self.source.where, "a field is longer than its message")
            found.append((number, wire, base + at, base + at + size))
            at += size
        return found

    def _streamed(self, span: Span) -> Iterator[tuple[int, int, int, int]]:
        """The fields of a large message, of which only the heads are read."""
        at, end = span.start, span.end
        while at < end:
            head = self.bytes(at, min(at + 20, end))
            tag, length = self._varint(head, 0)
            if tag & 7 == BYTES and tag >> 3:
                size, length = self._varint(head, length)
                if tag >> 3 > _MAX_NUMBER:
                    raise corrupt(self.source.where, "not a protobuf message")
                if at + length + size > end:
                    raise corrupt(self.source.where, "a field is longer than its message")
                yield tag >> 3, BYTES, at + length, at + length + size
                at += length + size
                continue
            _, length = self._varint(head, length) if tag & 7 == VARINT else (0, length)
            length += _FIXED_SIZES.get(tag & 7, 0)
            yield from self._all_fields(head[:length], at)
            at += length

    def _varint(self, data: bytes, at: int) -> tuple[int, int]:
        """The number at `at` and the position after it."""
        if at >= len(data):
            raise corrupt(self.source.where, "a number is cut off")
        byte = data[at]
        if byte < 0x80:
            return byte, at + 1
        value, shift = byte & 0x7F, 7
        for length in range(1, 10):
            if at + length >= len(data):
                raise corrupt(self.source.where, "a number is cut off")
            byte = data[at + length]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at + length + 1
            shift += 7
        raise corrupt(self.source.where, "a number is too long")

    def bytes(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`, at most 64 kB, from memory where they are there."""
        offset = start - self._base
        if offset < 0 or end - self._base > len(self._data):
            self._data = self.source.read(start, min(_WINDOW, self.source.size - start))
            self._base, offset = start, 0
        return self._data[offset : offset + end - start]

    def numbers(self, wire: int, value: int, end: int, most: int) -> list[int]:
        """At most `most` values of one occurrence of a repeated integer field, packed or single; signed."""
        if wire == VARINT:
            return [signed(value)]
        data = self.bytes(value, min(end, value + 10 * most))
        found: list[int] = []
        at = 0
        while at < len(data) and len(found) < most:
            number, at = self._varint(data, at)
            found.append(signed(number))
        return found


def signed(value: int) -> int:
    """A varint as a signed 64-bit integer."""
    return value - (1 << 64) if value >> 63 else value
