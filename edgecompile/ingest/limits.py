"""What a foreign file may cost, and what is known of one that has been vetted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias

from edgecompile.errors import Refused
from edgecompile.ingest.rules import text_safe

Kind: TypeAlias = Literal["onnx", "pt2", "torch_weights", "safetensors", "npz", "npy"]

_MB = 1 << 20
_GB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """Bounds of vetting; pass another `Limits` to `vet` to allow more."""

    file_bytes: int = 64 * _GB
    nodes: int = 200_000
    depth: int = 24
    elements: int = 1 << 34
    """Elements that a file may declare, and that one tensor of ConstantOfShape, Expand or Tile may have."""
    loop_trips: int = 1_000_000
    name_length: int = 4096
    zip_members: int = 20_000
    zip_ratio: int = 10
    """Declared bytes over the file's own; deflated arrays are held to `array_ratio`."""
    array_ratio: int = 200
    small_bytes: int = 16 * _MB
    """Below this many declared bytes a high ratio is harmless (an array of zeros)."""
    pickle_bytes: int = 16 * _MB
    pickle_instructions: int = 1_000_000
    """About 25 a tensor."""
    json_bytes: int = 64 * _MB
    json_depth: int = 200
    header_bytes: int = 10_000
    """Of one array; numpy's own bound."""
    expression_length: int = 4000
    expression_depth: int = 40


@dataclass(frozen=True)
class ChildLimits:
    """Bounds of the child process that parses a file; `None` is derived from the size of the file.

    Importing torch alone maps several GB of address space without touching it, so `memory_bytes` is a bound
    on what a hostile file can *add*: 8 GB and eight times the file, far below what would hurt the parent's
    machine for long.
    """

    wall_s: float | None = None
    cpu_s: int | None = None
    memory_bytes: int | None = None
    written_bytes: int | None = None
    open_files: int = 256
    output_bytes: int = 64 * 1024
    """How much of the child's output is kept, from its end."""

    def for_file(self, file_bytes: int) -> ChildLimits:
        """The same limits with every `None` filled in: 60 s and a second for each 20 MB, and so on."""
        wall_s = self.wall_s if self.wall_s is not None else 60.0 + file_bytes / (20 * _MB)
        return ChildLimits(
            wall_s=wall_s,
            cpu_s=self.cpu_s if self.cpu_s is not None else int(4 * wall_s) + 1,
            memory_bytes=self.memory_bytes if self.memory_bytes is not None else 8 * _GB + 8 * file_bytes,
            written_bytes=self.written_bytes if self.written_bytes is not None else _GB + 8 * file_bytes,
            open_files=self.open_files,
            output_bytes=self.output_bytes,
        )


@dataclass(frozen=True)
class Vetted:
    """A file that may be parsed (in the child): what it is and the files that it is made of."""

    path: Path
    kind: Kind
    files: tuple[Path, ...]
    declared_bytes: int
    """Bytes of the tensors that it declares, in all its files."""
    notes: tuple[str, ...] = ()
    trusted: bool = False
    """Something was let through only because the user trusts the file; for the manifest."""


@dataclass
class Gate:
    """What one call of `vet` has found so far, and the one place that refuses."""

    path: Path
    limits: Limits
    trust: bool = False
    notes: list[str] = field(default_factory=list)
    trusted: bool = False

    @property
    def where(self) -> str:
        """The file's name for error lines."""
        return text_safe(str(self.path), 400)

    def refuse(self, rule: str, place: str, limit: str, value: str, how_to_allow: str) -> None:
        """Refuse by a rule that trust lifts: `Refused`, or a note when the user trusts the file."""
        if not self.trust:
            trusting = "if you trust its author, --trust-model allows it"
            self.forbid(rule, place, limit, value, f"{how_to_allow}; {trusting}")
        self.trusted = True
        note = f"{rule} lifted by --trust-model: {value}"
        if note not in self.notes and len(self.notes) < 100:
            self.notes.append(note)

    def forbid(self, rule: str, place: str, limit: str, value: str, how_to_allow: str) -> NoReturn:
        """Refuse by a rule that nothing but another limit lifts: raise `Refused`."""
        where = f"{self.where} ({place})" if place else self.where
        raise Refused(rule, where, limit, value, how_to_allow)

    def at_most(self, rule: str, what: str, limit_name: str, value: int, place: str = "") -> None:
        """Refuse when `value` exceeds the field `limit_name` of the limits."""
        limit = getattr(self.limits, limit_name)
        if value > limit:
            self.forbid(
                rule,
                place,
                f"at most {limit:,}",
                f"{value:,} {what}" if value < 1 << 63 else f"more than 2^63 {what}",
                f"from Python, vet(path, Limits({limit_name}=...)) allows more",
            )

    def vetted(self, kind: Kind, declared_bytes: int, files: Sequence[Path] = ()) -> Vetted:
        """The outcome, with the model file itself first."""
        return Vetted(self.path, kind, (self.path, *files), declared_bytes, tuple(self.notes), self.trusted)
