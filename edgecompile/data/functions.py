"""`pkg.module:function` and `path/file.py:function`: the user's own code, as data, models and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from edgecompile.data.interface import Interface, as_tensor
from edgecompile.data.types import BATCH_SIZE, Batch, Dataset, add_tensor
from edgecompile.errors import InputError


@dataclass(frozen=True, eq=False)
class Function(Dataset):
    """Batches of the user's code: a function that returns an iterable (called for each pass), or an iterable.

    Each item is `(inputs, targets)`, a `Batch`, or inputs alone; inputs are a tensor, an array, a tuple of
    them in the order of the model's inputs, or a mapping by name.
    """

    name: str
    source: Any
    interface: Interface
    batch_size: int = BATCH_SIZE
    independent: str = ""
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> None:
        return None

    @cached_property
    def labelled(self) -> bool:
        return next(iter(self)).targets is not None

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(self.name.encode())
        for batch in self:
            for tensor in (*batch.inputs, *(() if batch.targets is None else (batch.targets,))):
                add_tensor(digest, tensor)
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        made = self.source() if callable(self.source) else self.source
        if not isinstance(made, Iterable):
            raise InputError(f"{self.name}: returned a {type(made).__name__}, not an iterable of (inputs, targets)")
        if not callable(self.source) and iter(made) is made:
            raise InputError(f"{self.name}: is a generator that can be read once: name the function that makes it")
        index = -1
        for index, item in enumerate(made):
            yield self._batch(item, f"{self.name}: batch {index}")
        if index < 0:
            raise InputError(f"{self.name}: yielded nothing: give at least one batch")

    def _batch(self, item: Any, where: str) -> Batch:
        inputs, targets = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
        if isinstance(inputs, Mapping):
            inputs = self.interface.select(inputs, where)
        parts = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        tensors = tuple(as_tensor(part, where) for part in parts)
        self.interface.check(tensors, where)
        if targets is None:
            return Batch(tensors)
        labels: Tensor = as_tensor(targets, f"{where}: targets")
        if not labels.is_floating_point():
            count = int(tensors[0].shape[0]) if self.interface.batched else len(labels) if labels.dim() else 1
            labels = self.interface.check_labels(labels, count, f"{where}: targets")
        return Batch(tensors, labels)
