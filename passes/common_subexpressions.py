"""common_subexpressions: what is computed twice is computed once."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from edgecompile.functional import first_write
from edgecompile.pass_manager import Context, Pass
from edgecompile.program import Program
from edgecompile.rewrite import argument, replace, weight

aten = torch.ops.aten

SMALL_ELEMENTS = 4096
ARITHMETIC = (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod)
RANDOM_UNLESS_OFF = {
    aten.dropout.default: ("train", False),
    aten.scaled_dot_product_attention.default: ("dropout_p", 0.0),
}
UNINITIALISED = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Merge operators that have the same arguments.

    before:
        %relu = relu(%x)
        %relu_1 = relu(%x)
        %add = add.Tensor(%relu, %relu_1)
    after:
        %relu = relu(%x)
        %add = add.Tensor(%relu, %relu)

    Weights are the same when they are tied; constants that are not trainable also when they are equal and
    have at most 4096 elements. Numbers are the same when their types are too.

    Kept: a program with operators in place, with a note; random operators; uninitialised memory. Two
    trainable weights that happen to be equal are two.
    """

    name: ClassVar[str] = "common_subexpressions"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        if (write := first_write(program.graph.graph)) is not None:
            ctx.note(f"program left alone: {write.name} writes in place")
            return program
        first: dict[Hashable, fx.Node] = {}
        numbers: dict[fx.Node, Hashable] = {}
        for node in list(program.graph.graph.nodes):
            if node.op == "get_attr":
                numbers[node] = _weight_key(program, node)
            elif node.op != "call_function" or not _repeatable(node):
                numbers[node] = node.name
            else:
                key = (node.target, _key(node.args, numbers), _key(node.kwargs, numbers))
                if key in first:
                    replace(program, node, first[key])
                    ctx.count("merged")
                else:
                    first[key] = node
                    numbers[node] = node.name
        return program


def _repeatable(node: fx.Node) -> bool:
    if node.target in ARITHMETIC:
        return True
    if not isinstance(node.target, OpOverload) or node.target._schema.is_mutable or node.meta.get("val") is None:
        return False
    if node.target in RANDOM_UNLESS_OFF:
        name, off = RANDOM_UNLESS_OFF[node.target]
        return bool(argument(node, name) == off)
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return not random and node.target._schema.name.split("::")[1] not in UNINITIALISED


def _weight_key(program: Program, node: fx.Node) -> Hashable:
    value = weight(program, node)
    if value is None or isinstance(value, nn.Parameter) or value.numel() > SMALL_ELEMENTS:
        return str(node.target)
    return (str(value.dtype), tuple(value.shape), _bytes(value))


def _bytes(value: Tensor) -> bytes:
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def _key(value: Any, numbers: dict[fx.Node, Hashable]) -> Hashable:
    """A value as something to compare: nodes by what they compute, numbers with their types."""
    match value:
        case fx.Node():
            return ("node", numbers[value])
        case list() | tuple():
            return tuple(_key(v, numbers) for v in value)
        case dict():
            return tuple((k, _key(v, numbers)) for k, v in sorted(value.items()))
        case _:
            return (type(value).__name__, repr(value))
