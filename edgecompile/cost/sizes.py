"""Sizes of the tensors and products of a program at a batch of one, without touching its symbols."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx

from edgecompile.cost import operators as ops
from edgecompile.rewrite import argument

aten = torch.ops.aten


@dataclass(frozen=True)
class Sizes:
    """`example`: the batch that a dynamic program was captured with, 1 for a fixed one, whose sizes stay whole."""

    example: int

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The sizes of a node's tensor, a dynamic batch as 1; empty for anything else."""
        value = node.meta.get("val")
        return tuple(self._int(s) for s in value.shape) if isinstance(value, Tensor) else ()

    def elements(self, node: fx.Node) -> int:
        """Elements of a node's tensors."""
        total = 0
        for value in tensors(node):
            many, symbolic = 1, False
            for size in value.shape:
                symbolic |= not isinstance(size, int)
                many *= size if isinstance(size, int) else int(size.node.hint)
            total += many // self.example if symbolic else many
        return total

    def _int(self, size: Any) -> int:
        return size if isinstance(size, int) else int(size.node.hint) // self.example

    def product(self, node: fx.Node, constant: Container[fx.Node]) -> tuple[int, int, int, int] | None:
        """Rows, outputs, inner size and groups of the matrix product that a call is; None where it is none."""
        target = node.target
        if target in ops.CONV or target in ops.TRANSPOSED:
            groups = int(argument(node, "groups"))
            weight = self.shape(cast(fx.Node, argument(node, "weight")))
            if target in ops.TRANSPOSED:
                places = self.elements(node.all_input_nodes[0]) // weight[0]
                return places, weight[1] * prod(weight[2:]), weight[0] // groups, groups
            return self.elements(node) // weight[0], weight[0] // groups, prod(weight[1:]), groups
        if target is aten.linear.default:
            weight = self.shape(cast(fx.Node, node.args[1]))
            return self.elements(node) // weight[0], weight[0], weight[1], 1
        if target is ops.ATTENTION:
            q, k = (self.shape(cast(fx.Node, n)) for n in node.args[:2])
            return q[-2], 2 * k[-2], q[-1], prod(q[:-2])
        if target in ops.MATMUL:
            first, second = [n for n in node.args if isinstance(n, fx.Node)][-2:]
            a, b, out = self.shape(first), self.shape(second), self.shape(node)
            n = b[-1] if len(b) > 1 else 1
            if second in constant and len(b) == 2:
                return prod(out) // n, n, a[-1], 1
            m = a[-2] if len(a) > 1 else 1
            return m, n, a[-1], max(1, prod(out) // (m * n))
        if ops.kind(node) == "recurrent":
            return self._recurrent(node, constant)
        return None

    def _recurrent(self, node: fx.Node, constant: Container[fx.Node]) -> tuple[int, int, int, int]:
        """All products of a recurrent operator as one group a step: rows of a step by all its weights."""
        weights = [n for n in node.all_input_nodes if n in constant and len(self.shape(n)) == 2]
        x = self.shape(node.all_input_nodes[0])
        steps = x[1 if argument(node, "batch_first") else 0] if len(x) == 3 else x[0]
        return prod(x[:-1]) // steps, sum(prod(self.shape(n)) for n in weights), 1, steps


def tensors(node: fx.Node) -> list[Tensor]:
    """The tensors that a node gives."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return [value]
    return [v for v in value if isinstance(v, Tensor)] if isinstance(value, list | tuple) else []
