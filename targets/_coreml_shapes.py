"""Several shapes of the input in one package: the program with the axes free in which they differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from edgecompile.errors import EdgeCompileError
from edgecompile.program import Program, quiet_export
from edgecompile.silence import silenced

Shapes = Sequence[Sequence[int]]


def reasons(program: Program, shapes: Shapes) -> list[str]:
    """Why the program cannot take one of the shapes; empty when it takes them all."""
    if len(program.inputs) != 1:
        return [f"shapes: the program has {len(program.inputs)} inputs; several shapes are for programs with one"]
    own = [int(n) for n in program.inputs[0].shape]
    if any(len(shape) != len(own) or min(shape, default=0) < 1 for shape in shapes):
        return [f"shapes: each has {len(own)} axes of 1 or more, as {_times(own)}"]
    if own not in [list(shape) for shape in shapes]:
        return [f"shapes: {_times(own)}, which the build has, must be among them"]
    found = []
    for shape in shapes:
        try:
            with torch.no_grad(), silenced(stderr=True):
                program(_resized(program.inputs[0], shape))
        except Exception as error:
            axes = [i for i, (a, b) in enumerate(zip(own, shape, strict=True)) if a != b]
            which = ", ".join(f"axis {i} at {own[i]}" for i in axes)
            found.append(f"shapes: the program does not take {_times(shape)}: it fixes {which} ({_first_line(error)})")
    if not found:
        try:
            free(program, shapes)
        except EdgeCompileError as error:
            found.append(str(error))
    return found


def free(program: Program, shapes: Shapes) -> ExportedProgram:
    """The program exported with those axes free in which the shapes differ; an error names one that it fixes."""
    axes = [i for i in range(len(shapes[0])) if len({shape[i] for shape in shapes}) > 1]
    largest = max(shapes, key=lambda shape: [shape[i] for i in axes])
    example = _resized(program.inputs[0], largest)
    try:
        return _export(program, example, axes)
    except Exception as error:
        fixed = [i for i in axes if not _frees(program, example, i)]
        which = ", ".join(f"axis {i} at {int(program.inputs[0].shape[i])}" for i in fixed) or "a relation of its axes"
        raise EdgeCompileError(f"shapes: the program fixes {which}") from error


def _export(program: Program, example: Tensor, axes: Sequence[int]) -> ExportedProgram:
    free_axes = dict.fromkeys(axes, Dim.DYNAMIC)
    with quiet_export(), torch.no_grad():
        return torch.export.export(program.graph, (example,), dynamic_shapes=(free_axes,), strict=False)


def _frees(program: Program, example: Tensor, axis: int) -> bool:
    try:
        _export(program, example, [axis])
    except Exception:
        return False
    return True


def _resized(example: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, size in enumerate(shape):
        example = example.index_select(axis, torch.arange(size) % example.shape[axis])
    return example


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _first_line(error: BaseException) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160]
