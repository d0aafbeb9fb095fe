"""Capture: a module and example inputs to a Program, with the batch dynamic wherever the model allows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgecompile.errors import InputError
from edgecompile.program.core import Program
from edgecompile.program.graph import BATCH, DynamicShapes, drop_dead, export, unlift


def capture(model: nn.Module, inputs: Sequence[Tensor] | Mapping[str, Tensor], dynamic_batch: bool) -> Program:
    """See `Program.capture`."""
    model = model.eval()
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    tensors = (*args, *kwargs.values())
    _check_inputs(tensors)
    try:
        with torch.no_grad():
            names = _output_names(model(*args, **kwargs))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the model fails on its example inputs: {_first_line(error)}") from error
    sizes = {int(t.shape[0]) for t in tensors if t.dim()}
    can_batch = dynamic_batch and len(sizes) == 1 and all(t.dim() for t in tensors) and sizes != {1}
    notes: tuple[str, ...] = ()
    if dynamic_batch and not can_batch:
        notes = ("static batch: the inputs do not share a first axis larger than 1",)
    shapes: DynamicShapes | None = tuple({0: BATCH} for _ in tensors) if can_batch else None
    try:
        exported = export(model, args, kwargs, shapes)
    except Exception as error:
        if shapes is None:
            raise _not_exportable(error) from error
        dynamic_error, shapes = error, None
        try:
            exported = export(model, args, kwargs, None)
        except Exception as second:
            raise _not_exportable(second) from second
        notes = (f"static batch: the model does not export with a dynamic one ({_first_line(dynamic_error)})",)
    graph = unlift(exported)
    for node in graph.graph.nodes:
        node.meta.setdefault("custom", {}).setdefault("origin", node.name)
    program = Program(graph, tensors, shapes, names, notes=notes)
    drop_dead(program.graph)
    return dataclasses.replace(program, origin={name: name for name in program.weights()})


def _check_inputs(tensors: Sequence[Any]) -> None:
    for index, value in enumerate(tensors):
        if not isinstance(value, Tensor):
            raise InputError(f"example input {index}: expected a tensor, got {type(value).__name__}")
    if not tensors:
        raise InputError(
            "the model has no example inputs: give them beside the module, or with --input NAME=1x3x224x224"
        )


def _output_names(outputs: Any) -> tuple[str, ...]:
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    names: list[str] = []
    for path, value in leaves:
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise InputError(f"output {pytree.keystr(path)} is a {type(value).__name__}: only tensors can be compiled")
        word = "_".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        word = "".join(c if c.isalnum() or c == "_" else "_" for c in word)
        names.append(f"output_{word}" if word.isdigit() else word or "output")
    if not names:
        raise InputError("the model returns no tensor")
    return tuple(name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names))


def _first_line(error: BaseException) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__


def _not_exportable(error: Exception) -> InputError:
    text = str(error)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        what = "its control flow depends on the data (an `if` or a loop over tensor values)"
        return InputError(
            f"the model cannot be exported: {what}; rewrite it with torch.where or torch.cond: {_first_line(error)}"
        )
    return InputError(f"the model cannot be exported by torch.export: {_first_line(error)}")
