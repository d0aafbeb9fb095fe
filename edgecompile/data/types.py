"""Batch and Dataset: what calibration, evaluation and training read, chunk by chunk, as often as wanted."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from edgecompile.errors import InputError

BATCH_SIZE = 32


class Batch(NamedTuple):
    """One chunk of samples: the model's inputs in order, batch axis first, and targets when there are any."""

    inputs: tuple[Tensor, ...]
    targets: Tensor | None = None

    @property
    def size(self) -> int:
        """The number of samples: the first axis of the first input, 1 when that is a scalar."""
        return int(self.inputs[0].shape[0]) if self.inputs[0].dim() else 1


class Dataset(ABC):
    """Samples that can be read again and again, in the same order, in chunks of at most `batch_size`.

    `name` is what a report calls it; `independent` is empty when the samples are independent of each other,
    else the sentence that says why they are not ("crops of one photograph are not independent").
    """

    name: str
    batch_size: int
    independent: str
    notes: tuple[str, ...]

    @property
    @abstractmethod
    def digest(self) -> str:
        """A sha256 over the content and over everything that changes how it is read."""

    @property
    @abstractmethod
    def samples(self) -> int | None:
        """How many samples one pass yields; None when only a pass can tell."""

    @property
    @abstractmethod
    def labelled(self) -> bool:
        """Whether every batch has targets."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """One pass; all chunks but the last hold `batch_size` samples, unless a function made them."""

    def take(self, count: int) -> Dataset:
        """The first `count` samples."""
        if count < 1:
            raise InputError(f"{self.name}: {count} samples asked for, 1 is the least")
        return First(self, count)


@dataclass(frozen=True, eq=False)
class Arrays(Dataset):
    """Samples held in memory: one tensor an input, all of the same length, and the targets."""

    name: str
    inputs: tuple[Tensor, ...]
    targets: Tensor | None = None
    batch_size: int = BATCH_SIZE
    independent: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lengths = [len(t) for t in (*self.inputs, *(() if self.targets is None else (self.targets,)))]
        if not lengths or min(lengths) != max(lengths) or not lengths[0]:
            raise InputError(f"{self.name}: arrays of {lengths} samples; they must be of one length, and not empty")

    @property
    def samples(self) -> int:
        return len(self.inputs[0])

    @property
    def labelled(self) -> bool:
        return self.targets is not None

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(f"arrays {self.batch_size}".encode())
        for tensor in (*self.inputs, *(() if self.targets is None else (self.targets,))):
            add_tensor(digest, tensor)
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, self.batch_size):
            part = slice(start, start + self.batch_size)
            targets = None if self.targets is None else self.targets[part]
            yield Batch(tuple(t[part] for t in self.inputs), targets)


@dataclass(frozen=True, eq=False)
class First(Dataset):
    """The first `count` samples of another dataset."""

    whole: Dataset
    count: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.whole.name

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        return self.whole.batch_size

    @property
    def independent(self) -> str:  # type: ignore[override]
        return self.whole.independent

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.whole.notes

    @property
    def samples(self) -> int | None:
        return None if self.whole.samples is None else min(self.count, self.whole.samples)

    @property
    def labelled(self) -> bool:
        return self.whole.labelled

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(f"first {self.count} {self.whole.digest}".encode()).hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        left = self.count
        for batch in self.whole:
            if batch.size > left:
                targets = None if batch.targets is None else batch.targets[:left]
                yield Batch(tuple(t[:left] for t in batch.inputs), targets)
                return
            yield batch
            left -= batch.size
            if not left:
                return


def add_tensor(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Feed dtype, shape and bytes of a tensor to a hash."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
