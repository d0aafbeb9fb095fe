"""What an ONNX graph takes: element types, sizes that the file leaves open, the batch, random examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor

from edgecompile.errors import InputError, Unsupported, near
from edgecompile.ingest.rules import text_safe
from edgecompile.models._onnx_values import DTYPES


@dataclass(frozen=True)
class Input:
    """One graph input: its ONNX element type and its sizes, open ones by their symbol (`""` when unnamed)."""

    name: str
    element: int
    sizes: tuple[int | str, ...]

    @property
    def open(self) -> bool:
        """True when the first axis may take any size."""
        return bool(self.sizes) and isinstance(self.sizes[0], str)

    def __str__(self) -> str:
        sizes = ", ".join(text_safe(str(size)) if size != "" else "?" for size in self.sizes)
        return f"'{text_safe(self.name)}' [{sizes}]"


def graph_inputs(path: str, model: ModelProto) -> list[Input]:
    """The inputs that a caller gives; `Unsupported` lists those that are no tensors of a known type."""
    stored = {i.name for i in model.graph.initializer}
    found, reasons = [], []
    for value in model.graph.input:
        if value.name in stored:
            continue
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or tensor.elem_type not in DTYPES:
            reasons.append(f"input '{text_safe(value.name)}': not a tensor of a supported element type")
        elif not tensor.HasField("shape"):
            reasons.append(f"input '{text_safe(value.name)}': the file does not say how many axes it has")
        else:
            sizes = tuple(d.dim_value if d.dim_value > 0 else d.dim_param for d in tensor.shape.dim)
            found.append(Input(value.name, tensor.elem_type, sizes))
    if reasons:
        raise Unsupported(path, reasons)
    return found


def held_constant(path: str, inputs: Sequence[Input], fixed: Mapping[str, float]) -> dict[str, Tensor]:
    by_name = {i.name: i for i in inputs}
    held = {}
    for name, value in fixed.items():
        if name not in by_name:
            raise InputError(f"{path}: no input '{text_safe(name)}' to fix{near(name, by_name)}")
        if any(isinstance(s, str) for s in by_name[name].sizes):
            raise InputError(f"{path}: input {by_name[name]} cannot be fixed: its sizes are open")
        shape = [int(size) for size in by_name[name].sizes]
        held[name] = torch.full(shape, value, dtype=DTYPES[by_name[name].element])
    return held


def check_given(path: str, inputs: Sequence[Input], given: Mapping[str, Sequence[int] | None]) -> None:
    by_name = {i.name: i for i in inputs}
    for name, sizes in given.items():
        if name not in by_name:
            raise InputError(f"{path}: no input '{text_safe(name)}'{near(name, by_name)}")
        own = by_name[name]
        if sizes is None:
            continue
        shown = "x".join(map(str, sizes))
        fits = len(sizes) == len(own.sizes) and all(
            isinstance(o, str) or o == s for o, s in zip(own.sizes, sizes, strict=True)
        )
        if not fits or any(s < 1 for s in sizes):
            raise InputError(f"{path}: input {own} cannot have the sizes {shown}")


def shapes_for(
    path: str, inputs: Sequence[Input], given: Mapping[str, Sequence[int] | None], batch: int | None
) -> dict[str, list[int]]:
    """Sizes for every input; `batch`, when given, for open first axes and all axes of the same symbol."""
    batches = _batches(inputs)
    shapes, missing = {}, []
    for own in inputs:
        sizes = given.get(own.name) or own.sizes
        shape: list[Any] = []
        for axis, (size, declared) in enumerate(zip(sizes, own.sizes, strict=True)):
            if _is_batch(axis, declared, batches) and (batch is not None or isinstance(size, str)):
                shape.append(batch or 1)
            else:
                shape.append(size)
        if any(isinstance(s, str) for s in shape):
            words = ["1" if _is_batch(a, d, batches) else str(d or "N") for a, d in enumerate(own.sizes)]
            missing.append((own, "x".join(w if w.isdigit() else "N" for w in words)))
        shapes[own.name] = shape
    if missing:
        what = "; ".join(str(own) for own, _ in missing)
        flags = " ".join(f"--input {text_safe(own.name)}={shape}" for own, shape in missing)
        raise InputError(f"{path}: sizes that the file leaves open: {what}; give numbers for N: {flags}")
    return shapes


def batch_is_first(inputs: Sequence[Input]) -> bool:
    """Whether the batch is the first axis of every input and no other axis of any."""
    batches = _batches(inputs)
    later = [(a, size) for i in inputs for a, size in enumerate(i.sizes) if a > 0]
    return all(i.open for i in inputs) and not any(_is_batch(a, size, batches) for a, size in later)


def _batches(inputs: Sequence[Input]) -> set[int | str]:
    return {i.sizes[0] for i in inputs if i.open} - {""}


def _is_batch(axis: int, declared: int | str, batches: set[int | str]) -> bool:
    return isinstance(declared, str) and (axis == 0 or declared in batches or declared.lower() in _BATCHES)


_BATCHES = ("batch", "batch_size", "batchsize", "n", "b", "none")
"""Symbols that mean a batch on whichever axis they stand."""


def random_tensor(element: int, shape: Sequence[int], seed: int, kind: str = "normal") -> Tensor:
    """A random input: normal or uniform floats, small integers, fair bits."""
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[element]
    if dtype.is_floating_point:
        make = torch.randn if kind == "normal" else torch.rand
        return make(list(shape), generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 4, list(shape), generator=generator).to(dtype)
