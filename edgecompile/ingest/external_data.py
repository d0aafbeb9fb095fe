"""The rule for external data of an ONNX file: which other files it may make us read.

Both onnx and ONNX Runtime have let names through that leave the model's folder (CVE-2022-25882, 2024-27318,
2026-27489; ONNX Runtime follows hard links, both cut names at a NUL byte and read the model itself), so
neither is the gate.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgecompile.errors import InputError
from edgecompile.ingest.limits import Gate
from edgecompile.ingest.rules import text_safe
from edgecompile.ingest.source import Source

_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}", re.ASCII)
_KEYS = frozenset({"location", "offset", "length", "checksum"})
_PLACE = "save the model again with onnx.save(model, path, save_as_external_data=True) into one folder"


@dataclass
class ExternalFiles:
    """The external files of one model: their sizes, and which ranges its tensors use."""

    gate: Gate
    source: Source
    sizes: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, set[tuple[int, int]]] = field(default_factory=dict)

    def use(self, tensor: str, entries: Mapping[str, str], needed: int) -> None:
        """Check one tensor of `needed` bytes with its external_data entries."""
        where = f"{self.gate.where} (tensor '{text_safe(tensor)}')"
        if unknown := sorted(set(entries) - _KEYS):
            raise InputError(
                f"{where}: unknown external data key '{text_safe(unknown[0])}'; {_PLACE}"
                f" (known: {', '.join(sorted(_KEYS))})"
            )
        location = entries.get("location", "")
        if not _NAME.fullmatch(location) or location in (".", ".."):
            value = f"external data in '{text_safe(location)}'"
            self.gate.forbid("EC-IN-002", f"tensor '{text_safe(tensor)}'", "a plain name in its folder", value, _PLACE)
        size = self._size(location, where, tensor)
        offset = self._number(entries, "offset", 0, where)
        length = self._number(entries, "length", needed, where)
        if offset < 0 or length < needed or offset + length > size:
            span = f"{needed:,} bytes at {offset:,}+{length:,}"
            value = f"external data of {span} in '{location}' of {size:,} bytes"
            self.gate.forbid("EC-IN-004", f"tensor '{text_safe(tensor)}'", "data within its file", value, _PLACE)
        if length:
            self.ranges.setdefault(location, set()).add((offset, offset + length))

    def _number(self, entries: Mapping[str, str], key: str, default: int, where: str) -> int:
        text = entries.get(key)
        if text is None:
            return default
        if not re.fullmatch(r"-?\d{1,20}", text, re.ASCII):
            raise InputError(f"{where}: external data {key} '{text_safe(text)}' is not a number; {_PLACE}")
        return int(text)

    def _size(self, location: str, where: str, tensor: str) -> int:
        if location in self.sizes:
            return self.sizes[location]
        try:
            # The model itself was opened, so the one question is what stands beside it under that name.
            status = os.lstat(self.gate.path.parent / location)
        except OSError as error:
            raise InputError(f"{where}: external data file '{location}' is missing; put it beside the model") from error
        what = ""
        if not stat.S_ISREG(status.st_mode):
            what = "is a link, folder, pipe or device"
        elif (status.st_dev, status.st_ino) == (self.source.device, self.source.inode):
            what = "is the model file itself"
        elif status.st_nlink != 1:
            what = "has a second name (hard link)"
        if what:
            how = "copy the folder with its links resolved (cp -rL)"
            place = f"tensor '{text_safe(tensor)}'"
            self.gate.forbid(
                "EC-IN-003",
                place,
                "a regular file of its own",
                f"external data '{location}' that {what}",
                how,
            )
        self.sizes[location] = status.st_size
        self.gate.at_most("EC-IN-001", "bytes in all files", "file_bytes", self.source.size + sum(self.sizes.values()))
        return status.st_size

    def finish(self) -> tuple[Path, ...]:
        """Refuse ranges that overlap in part (equal ranges are shared weights); the files, by name."""
        for location, ranges in self.ranges.items():
            end = 0
            for start, stop in sorted(ranges):
                if start < end:
                    value = f"tensors that overlap in part in '{location}'"
                    self.gate.forbid("EC-IN-004", "", "separate or equal ranges", value, _PLACE)
                end = stop
        return tuple(self.gate.path.parent / name for name in sorted(self.sizes))
