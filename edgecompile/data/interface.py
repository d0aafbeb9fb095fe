"""What a program takes, and whether data fits it: number, names, shapes, dtypes, NaN, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgecompile.errors import InputError, near
from edgecompile.program import Program


@dataclass(frozen=True)
class Interface:
    """Names, shapes (None: any size) and dtypes of a program's inputs, and how many classes it tells apart.

    `batched` is true when all inputs share their first axis: only then can samples be stacked. `classes` is
    None where the first output is not a table of floats, one row a sample.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    batched: bool
    classes: int | None

    @staticmethod
    def of(program: Program) -> Interface:
        """Read it from the program's example inputs and its first output."""
        dynamic: Sequence[Mapping[int, str]] = program.dynamic_shapes or tuple({} for _ in program.inputs)
        batched = bool(program.inputs) and all(t.dim() for t in program.inputs)
        batched = batched and len({int(t.shape[0]) for t in program.inputs}) == 1
        shapes = tuple(
            tuple(None if axis in axes or (axis == 0 and batched) else int(n) for axis, n in enumerate(t.shape))
            for t, axes in zip(program.inputs, dynamic, strict=True)
        )
        first: Any = program.outputs()[0].meta.get("val")
        table = isinstance(first, Tensor) and first.dim() == 2 and first.is_floating_point() and batched
        columns = first.shape[1] if table else None
        classes = columns if isinstance(columns, int) and columns > 1 else None
        return Interface(program.input_names, shapes, tuple(t.dtype for t in program.inputs), batched, classes)

    def show(self, index: int) -> str:
        """`float32 [n, 3, 224, 224]`."""
        sizes = [
            "n" if axis == 0 and self.batched else "?" if s is None else str(s)
            for axis, s in enumerate(self.shapes[index])
        ]
        return f"{str(self.dtypes[index]).removeprefix('torch.')} [{', '.join(sizes)}]"

    def select(self, arrays: Mapping[str, Any], where: str) -> tuple[Any, ...]:
        """The arrays in the order of the inputs; raises `InputError` for missing and surplus names."""
        if len(self.names) == 1 and set(arrays) == {"x"}:
            return (arrays["x"],)
        missing = [name for name in self.names if name not in arrays]
        surplus = [name for name in arrays if name not in self.names]
        if missing or surplus:
            takes = "x or " + self.names[0] if len(self.names) == 1 else ", ".join(self.names)
            found = ", ".join(arrays) or "nothing"
            hint = near(surplus[0], self.names) if surplus else ""
            raise InputError(f"{where}: found {found}; the model takes {takes}: rename the arrays{hint}")
        return tuple(arrays[name] for name in self.names)

    def check(self, tensors: Sequence[Tensor], where: str) -> None:
        """Raise `InputError` unless these are a batch for the program: count, dtype, shape, length, NaN."""
        if len(tensors) != len(self.names):
            raise InputError(
                f"{where}: {len(tensors)} inputs; the model takes {len(self.names)}: {', '.join(self.names)}"
            )
        for index, (name, tensor) in enumerate(zip(self.names, tensors, strict=True)):
            place = f"{where}: {name}"
            wanted = self.shapes[index]
            if tensor.dtype != self.dtypes[index]:
                kind = str(self.dtypes[index]).removeprefix("torch.")
                found = str(tensor.dtype).removeprefix("torch.")
                raise InputError(
                    f"{place}: is {found}; the model takes {kind}: convert it, e.g. with .astype('{kind}')"
                )
            fits = tensor.dim() == len(wanted) and all(
                w is None or w == n for w, n in zip(wanted, tensor.shape, strict=True)
            )
            if not fits:
                raise InputError(
                    f"{place}: is {list(tensor.shape)}; the model takes {self.show(index)}: reshape the data"
                )
            if tensor.numel() == 0:
                raise InputError(f"{place}: is empty {list(tensor.shape)}: give at least one sample")
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                bad = ~torch.isfinite(tensor.reshape(tensor.shape[0] if tensor.dim() else 1, -1)).all(1)
                first = int(bad.nonzero()[0])
                raise InputError(
                    f"{place}: NaN or infinite values in {int(bad.sum())} samples, first in {first}: leave them out"
                )
        lengths = {name: int(t.shape[0]) for name, t in zip(self.names, tensors, strict=True) if t.dim()}
        if self.batched and len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"{where}: inputs of different lengths ({listed}): give one of each a sample")

    def check_labels(self, labels: Tensor, samples: int, where: str) -> Tensor:
        """Integer labels as int64; raises `InputError` for other dtypes, lengths, unknown classes."""
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            kind = str(labels.dtype).removeprefix("torch.")
            raise InputError(
                f"{where}: labels are {kind}; integers are expected: convert them, or give other"
                " targets with module:function"
            )
        if labels.dim() == 0 or labels.shape[0] != samples:
            raise InputError(f"{where}: {list(labels.shape)} labels for {samples} samples: give one label a sample")
        labels = labels.long()
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (self.classes is not None and high >= self.classes):
            most = "" if self.classes is None else f"..{self.classes - 1}"
            bad = int(((labels < 0) | (labels >= (self.classes or high + 1))).reshape(samples, -1).any(1).nonzero()[0])
            found = low if low < 0 else high
            raise InputError(
                f"{where}: label {found} is out of range 0{most}, first at sample {bad}: number classes from 0"
            )
        return labels


def as_tensor(value: object, where: str) -> Tensor:
    """A tensor from a tensor, an array or a number; raises `InputError` for anything else."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        array = np.asarray(value)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        try:
            return torch.from_numpy(np.array(array) if not array.flags.writeable else np.ascontiguousarray(array))
        except TypeError as error:
            raise InputError(f"{where}: {array.dtype} has no counterpart in torch: convert it") from error
    found = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise InputError(f"{where}: {found} where a tensor or a numeric array is expected")
