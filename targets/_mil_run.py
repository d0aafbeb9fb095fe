"""Interpret an ML Program op by op in torch: the stored numbers, and half precision wherever the package says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from edgecompile.errors import TargetError
from edgecompile.targets._mil_constexpr import COMPRESSED, decompressed
from edgecompile.targets._mil_elementwise import ELEMENTWISE
from edgecompile.targets._mil_nn import LAYERS
from edgecompile.targets._mil_read import Const, MilOp, MilProgram, Name, read_package
from edgecompile.targets._mil_resize import RESIZES
from edgecompile.targets._mil_shape import SHAPES
from edgecompile.targets._mil_values import Args, Handler, stored, tensor

HANDLERS: Mapping[str, Handler] = MappingProxyType({**ELEMENTWISE, **LAYERS, **SHAPES, **RESIZES})
"""Every MIL operation on tensors that is interpreted, besides constants."""


def _classify(a: Args) -> Any:
    """The label of the largest probability, and the probabilities in the order of the labels."""
    probabilities = a["probabilities"]
    return a.values["classes"][int(probabilities.reshape(-1).argmax())], probabilities


_ALL: Mapping[str, Handler] = MappingProxyType({**HANDLERS, "classify": _classify})


class Interpreter:
    """A package ready to run: compressed constants are decoded once, sums are float32, results as declared."""

    def __init__(self, package: Path | MilProgram) -> None:
        program = package if isinstance(package, MilProgram) else read_package(package)
        self.program = program
        self.where = package.name if isinstance(package, Path) else "the package"
        unknown = sorted({op.kind for op in program.ops} - set(_ALL) - COMPRESSED - {"const"})
        if unknown:
            raise TargetError(f"{self.where}: MIL operations that are not interpreted here: {', '.join(unknown)}")
        self.constants: dict[str, Any] = {}
        raw: dict[str, Any] = {}
        self.steps: list[MilOp] = []
        for op in program.ops:
            if op.kind == "const":
                raw[op.name] = _plain(op.inputs["val"])
            elif op.kind in COMPRESSED:
                given = {k: _stored_value(v, raw) for k, v in op.inputs.items()}
                raw |= dict(zip((n for n, _ in op.outputs), self._decoded(op, given), strict=True))
            else:
                self.steps.append(op)
        for name, value in raw.items():
            self.constants[name] = value if isinstance(value, (str, tuple)) else tensor(value)
        self.last_use = _last_use(self.steps, program.outputs)

    def _decoded(self, op: MilOp, given: Mapping[str, Any]) -> tuple[Any, ...]:
        try:
            return decompressed(op.kind, given)
        except (TargetError, ValueError, IndexError, KeyError) as error:
            raise TargetError(f"{self.where}: {op.name} ({op.kind}): {_one_line(error)}") from error

    def run(self, inputs: Mapping[str, Tensor], tap: frozenset[str] = frozenset()) -> dict[str, Tensor]:
        """The outputs by name, and every value named in `tap` that the program makes."""
        values = dict(self.constants)
        for name, dtype, shape in self.program.inputs:
            given = inputs[name]
            sizes = tuple(given.shape)
            if len(sizes) != len(shape) or any(b not in (-1, a) for a, b in zip(sizes, shape, strict=True)):
                raise TargetError(f"{self.where}: input {name} has shape {list(given.shape)}, not {list(shape)}")
            values[name] = stored(given.detach(), dtype)
        wanted = {*self.program.outputs, *(tap & set(values))}
        found = {name: values[name] for name in wanted if name in values}
        with torch.no_grad():
            for index, op in enumerate(self.steps):
                made = self._result(op, values)
                for (name, dtype), value in zip(op.outputs, made, strict=False):
                    values[name] = value if op.kind == "classify" else stored(value, dtype)
                    if name in self.program.outputs or name in tap:
                        found[name] = values[name]
                for name in self.last_use.get(index, ()):
                    values.pop(name, None)
        return found

    def _result(self, op: MilOp, values: Mapping[str, Any]) -> tuple[Tensor, ...]:
        try:
            given = {key: _bound(value, values) for key, value in op.inputs.items()}
            made = _ALL[op.kind](Args(given, op.outputs[0][1]))
        except TargetError as error:
            raise TargetError(f"{self.where}: {op.name} ({op.kind}): {error}") from error
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            raise TargetError(
                f"{self.where}: {op.name} ({op.kind}) does not hold together: {_one_line(error)}"
            ) from error
        return made if isinstance(made, tuple) else (made,)


def _plain(value: Any) -> Any:
    """A constant's value; a list of constants is a tuple of values."""
    return tuple(_plain(v) for v in value) if isinstance(value, tuple) else value.value


def _bound(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Name):
        return values[value.name]
    if isinstance(value, Const):
        return value.value if isinstance(value.value, (str, tuple)) else tensor(value.value)
    return tuple(_bound(v, values) for v in value)


def _stored_value(value: Any, raw: Mapping[str, Any]) -> Any:
    return raw[value.name] if isinstance(value, Name) else value.value


def _last_use(steps: list[MilOp], outputs: tuple[str, ...]) -> dict[int, list[str]]:
    """Which values nobody reads after each step, so that large ones are let go."""
    last: dict[str, int] = {}
    for index, op in enumerate(steps):
        for name, _ in op.outputs:
            last[name] = index
        for value in op.inputs.values():
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, Name) and one.name in last:
                    last[one.name] = index
    found: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in outputs:
            found.setdefault(index, []).append(name)
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
