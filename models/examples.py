"""Example inputs of a model: from `NAME=1x3x224x224:float32`, and capturing with a dynamic batch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgecompile.errors import EdgeCompileError, SpecError, near
from edgecompile.program import Program

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
_MAX_ELEMENTS = 1 << 30


def parse_inputs(texts: Sequence[str]) -> dict[str, Tensor]:
    """`NAME=1x3x224x224:float32` (float32 when no dtype is said) to example tensors; raises `SpecError`.

    Floats are drawn from a fixed seed; integers are 0, which every table of embeddings has; booleans are
    true.
    """
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for text in texts:
        match = re.fullmatch(r"([A-Za-z_][\w.]*)=(\d+(?:x\d+)*|scalar)(?::(\w+))?", text.strip())
        if match is None:
            raise SpecError(f"--input {text!r} is not NAME=1x3x224x224:float32 (sizes joined by x; dtype optional)")
        name, sizes, kind = match[1], match[2], match[3] or "float32"
        if kind not in _DTYPES:
            raise SpecError(f"--input {name}: unknown dtype {kind!r}{near(kind, _DTYPES)}")
        if name in found:
            raise SpecError(f"--input {name} is given twice")
        shape = () if sizes == "scalar" else tuple(int(size) for size in sizes.split("x"))
        elements = 1
        for size in shape:
            elements *= size
        if not 0 < elements <= _MAX_ELEMENTS:
            raise SpecError(f"--input {name}: {sizes} has {elements} elements; 1 to {_MAX_ELEMENTS} are taken")
        dtype = _DTYPES[kind]
        if dtype.is_floating_point:
            found[name] = torch.rand(shape, generator=generator).to(dtype)
        else:
            found[name] = torch.ones(shape, dtype=dtype) if dtype == torch.bool else torch.zeros(shape, dtype=dtype)
    return found


def capture(model: nn.Module, inputs: Sequence[Any] | Mapping[str, Any]) -> Program:
    """`Program.capture`, with examples of batch 1 doubled, so that the batch stays dynamic where it can."""
    values = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    single = bool(values) and all(isinstance(v, Tensor) and v.dim() and v.shape[0] == 1 for v in values)
    if not single:
        return Program.capture(model, inputs)
    doubled = [torch.cat((v, v)) for v in values]
    wide: Any = dict(zip(inputs, doubled, strict=True)) if isinstance(inputs, Mapping) else doubled
    try:
        program = Program.capture(model, wide)
        reason = next(iter(program.notes), "")
    except EdgeCompileError as error:
        program, reason = None, f"static batch: the model does not run at batch 2 ({error})"
    if program is not None and program.batch is None:
        return program
    fixed = Program.capture(model, inputs, dynamic_batch=False)
    return dataclasses.replace(fixed, notes=(*fixed.notes, reason))
