"""Training samples that can be read in any order, and what may be done to pictures before they are seen again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgecompile.data import Dataset
from edgecompile.errors import InputError, PassError, SpecError, near
from edgecompile.reference import is_function, load_function
from edgecompile.store import writing

Augment = Callable[[Tensor, torch.Generator], Tensor]
_MEMORY = 1e9
"""Bytes of samples that are kept in memory; more are kept in files."""


@dataclass(frozen=True)
class Samples:
    """All samples, one tensor an input (in memory or mapped from a file), and their targets."""

    inputs: tuple[Tensor, ...]
    targets: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def at(self, index: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """These samples."""
        return [t[index] for t in self.inputs], None if self.targets is None else self.targets[index]

    def part(self, start: int, end: int) -> Samples:
        """The samples from `start` up to `end`."""
        targets = None if self.targets is None else self.targets[start:end]
        return Samples(tuple(t[start:end] for t in self.inputs), targets)

    def batches(self, size: int) -> Iterator[tuple[list[Tensor], Tensor | None]]:
        """One pass in order."""
        for start in range(0, len(self), size):
            yield self.at(torch.arange(start, min(start + size, len(self))))


def gather(data: Dataset, folder: Path) -> Samples:
    """A dataset read once; what memory should not hold is written into the folder and mapped."""
    inputs: list[_Column] = []
    targets: list[Tensor] = []
    count = 0
    for batch in data:
        inputs = inputs or [_Column(folder / f"input{i}.bin") for i in range(len(batch.inputs))]
        if len(batch.inputs) != len(inputs):
            raise InputError(f"{data.name}: batches of {len(inputs)} and of {len(batch.inputs)} inputs")
        for column, tensor in zip(inputs, batch.inputs, strict=True):
            column.add(tensor)
        if batch.targets is not None:
            targets.append(batch.targets)
        count += batch.size
    if not count:
        raise InputError(f"{data.name}: no samples")
    if targets and sum(map(len, targets)) != count:
        raise InputError(f"{data.name}: {sum(map(len, targets))} targets for {count} samples: give all or none")
    return Samples(tuple(c.tensor() for c in inputs), torch.cat(targets) if targets else None)


class _Column:
    """One input of all samples: in memory while it is small, then at the end of a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.parts, self.bytes = path, list[Tensor](), 0
        self.shape: tuple[int, ...] = ()
        self.rows = 0

    def add(self, tensor: Tensor) -> None:
        if self.rows and tuple(tensor.shape[1:]) != self.shape:
            raise InputError(f"samples of {list(self.shape)} and of {list(tensor.shape[1:])}: train on one size")
        self.shape = tuple(tensor.shape[1:])
        self.parts.append(tensor)
        self.rows += len(tensor)
        self.bytes += tensor.element_size() * tensor.numel()
        if self.bytes > _MEMORY:
            self._write()

    def _write(self) -> None:
        """Parts to the end of the file."""
        with writing(self.path), self.path.open("ab") as file:
            for tensor in self.parts:
                file.write(tensor.contiguous().numpy().tobytes())
        self.parts, self.bytes, self.dtype = [], 0, self.parts[0].dtype

    def tensor(self) -> Tensor:
        """All of them."""
        if not self.path.exists():
            return torch.cat(self.parts)
        if self.parts:
            self._write()
        count = math.prod((self.rows, *self.shape))
        return torch.from_file(str(self.path), True, count, dtype=self.dtype).view(self.rows, *self.shape)


def augmentation(text: str) -> Augment | None:
    """`flip,shift=4`, or a function of the user's own of (pictures, generator); None for an empty text."""
    if not text.strip():
        return None
    if is_function(text):
        own: Augment = load_function(text)
        return own
    steps: list[Augment] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(flip|shift)\s*(?:=\s*(\d{1,4}))?\s*", word)
        if match is None or (match[1] == "shift") != (match[2] is not None):
            name = word.partition("=")[0].strip()
            hint = near(name, ("flip", "shift"))
            raise SpecError(f"augment={text!r}: expected flip, shift=4 or module:function{hint}")
        steps.append(_flip if match[1] == "flip" else _shift(int(match[2])))

    def apply(pictures: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            pictures = step(pictures, generator)
        return pictures

    return apply


def _flip(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Every second picture, by chance, mirrored."""
    chosen = torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5
    return torch.where(chosen, pictures.flip(3), pictures)


def _shift(most: int) -> Augment:
    """Each picture shifted by up to so many pixels either way; its edge goes on."""

    def shift(pictures: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = pictures.shape
        down, right = torch.randint(-most, most + 1, (2, count), generator=generator)
        rows = (torch.arange(height)[None] + down[:, None]).clamp(0, height - 1)
        columns = (torch.arange(width)[None] + right[:, None]).clamp(0, width - 1)
        each = torch.arange(count)[:, None, None]
        return pictures.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    return shift


def augmented(augment: Augment, inputs: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """The batch with its first input, pictures [batch, channels, height, width], changed."""
    if inputs[0].dim() != 4:
        shape = list(inputs[0].shape)
        raise PassError(f"augment: pictures are [batch, channels, height, width], and the input is {shape}")
    made = augment(inputs[0], generator)
    if made.shape != inputs[0].shape or made.dtype != inputs[0].dtype:
        raise PassError(f"augment: gave {list(made.shape)} {made.dtype} of {list(inputs[0].shape)} {inputs[0].dtype}")
    return [made, *inputs[1:]]
