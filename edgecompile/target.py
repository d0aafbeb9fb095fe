"""Target and Artifact: what a target promises, and what it leaves in a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from edgecompile.errors import TargetError
from edgecompile.program import Program

if TYPE_CHECKING:
    from torch import Tensor
    from torch._ops import OpOverload

Run = Callable[["tuple[Tensor, ...]"], "tuple[Tensor, ...]"]
"""An artifact loaded in its runtime: inputs to outputs."""


@dataclass(frozen=True)
class QuantRule:
    """How a target's runtime takes one operator in integers.

    `operands` are the activation arguments, by schema name (a list argument counts with each of its items). `weight`
    is the constant argument and `axis` its output-channel axis. `output` says what becomes of the result:
    `quantized` (the kernel writes integers: the result must be quantized too), `float` (it writes floats), or
    `shared` (integers pass through: the result has the scale of the first operand). `fuses` are the activations that
    the runtime folds into the kernel when they follow it directly. `axes` is the most axes that the integers may
    have, None for any number.
    """

    operands: tuple[str, ...]
    weight: str | None = None
    axis: int = 0
    output: Literal["quantized", "float", "shared"] = "quantized"
    fuses: tuple[OpOverload, ...] = ()
    axes: int | None = None


@dataclass(frozen=True)
class Artifact:
    """What `emit` left: the main file, relative to its folder, and what else there is to say of it."""

    kind: str
    folder: Path
    main: str
    notes: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The main file."""
        return self.folder / self.main


@dataclass(frozen=True)
class Target(ABC):
    """Where a program goes. Subclasses are frozen dataclasses with options, written `onnx(opset=20)`."""

    name: ClassVar[str]
    legalize: ClassVar[str] = ""
    """Pipeline text that is appended to every pipeline for this target."""
    runtime: ClassVar[str] = ""
    """The word in a device's `runtime` whose published latencies are this target's; empty where any are."""
    activations: ClassVar[Literal["u8", "s8"]] = "u8"
    """The integers that its runtime wants activations in: `s8` is symmetric, with no zero point."""

    saturates: ClassVar[bool] = False
    """Whether its kernels add products of integers in saturating sums of 16 bits on x86 without VNNI."""

    everywhere: ClassVar[bool] = False
    """Whether `load` runs artifacts for other devices here too: `reference` then says what those compute."""

    @property
    def dtypes(self) -> frozenset[str]:
        """The small numbers that its runtime multiplies, with these options: `int8`, `fp8`."""
        return frozenset({"int8"})

    def quantizable(self) -> Mapping[OpOverload, QuantRule]:
        """What the runtime really runs in integers; empty when nothing."""
        return {}

    def refuse(self, program: Program) -> list[str]:
        """Every reason why this program cannot be emitted, each with node, layer and operator; none when it can."""
        return []

    def tuning(self, text: str) -> Target:
        """The target that measures kernels for so long (`20m`) while it emits, where it can on this machine."""
        return self

    def reads(self) -> tuple[Path, ...]:
        """Files, named in the options, whose content goes into what is emitted."""
        return ()

    @abstractmethod
    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        """Write the artifact into an existing, empty folder, `metadata` inside where the format has a place for it.

        Raises `TargetError` that says what to install or mend. The same program and metadata give the same bytes.
        """

    def load(self, artifact: Artifact, threads: int = 1) -> Run | None:
        """The artifact in its runtime on this machine, None when there is no such runtime here."""
        return None

    def reference(self, artifact: Artifact, threads: int = 1) -> Run | None:
        """What another device computes with the artifact, by something that reads it here; None when nothing does."""
        return None


def loaded(target: Target, artifact: Artifact, threads: int, here: bool) -> tuple[Run | None, bool]:
    """The artifact as it runs, and whether something only stands in for its own runtime or device.

    `here`: it is for this machine. The kernels of a runtime that is on every CPU are not those of the device there:
    ONNX Runtime's sums of integers saturate on x86 without VNNI.
    """
    run = target.load(artifact, threads) if here or not target.everywhere else None
    if run is None:
        with suppress(TargetError):  # of a dtype that no runtime here has
            run = target.reference(artifact, threads)
            return run, run is not None
    return run, False
