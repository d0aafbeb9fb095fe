"""`pkg.module:function` and `path/file.py:function`: the user's own code, as data, models and scores."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from edgecompile.data.interface import Interface, as_tensor
from edgecompile.data.types import BATCH_SIZE, Batch, Dataset, add_tensor
from edgecompile.errors import InputError, near

_REF = re.compile(r"(?P<file>.+\.py):(?P<a>[A-Za-z_]\w*)|(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<b>[A-Za-z_]\w*)")


def is_function(ref: str) -> bool:
    """Whether `ref` has the form `module:function` or `file.py:function`."""
    return _REF.fullmatch(ref) is not None


def load_function(ref: str) -> Any:
    """Import what `ref` names; raises `InputError` for a missing module, file or name."""
    match = _REF.fullmatch(ref)
    if match is None:
        raise InputError(f"{ref}: expected pkg.module:function or path/file.py:function")
    name = match["a"] or match["b"]
    module = _from_file(Path(match["file"]), ref) if match["file"] else _from_name(match["module"], ref)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(f"{ref}: the module has no {name!r}{near(name, public)}") from None


def _from_name(name: str, ref: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{ref}: no module named {error.name!r}: is it installed, or on PYTHONPATH?") from error


def _from_file(path: Path, ref: str) -> Any:
    if not path.is_file():
        raise InputError(f"{ref}: {path} does not exist")
    name = f"edgecompile_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ModuleNotFoundError):
            raise InputError(f"{ref}: it imports {error.name!r}, which is not installed") from error
        if isinstance(error, SyntaxError):
            raise InputError(f"{ref}: line {error.lineno}: {error.msg}") from error
        raise
    return module


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
