"""Tiny constants that the exporter would lose."""

from __future__ import annotations

import torch
from torch import fx

from edgecompile.program import Program
from edgecompile.rewrite import add_weight, aten, nodes

_TAKEN_FOR_ZERO = 2e-8


def guarded(program: Program) -> Program:
    """Tiny numbers that are added, as tensors of one element: onnxscript takes a scalar up to 1e-8 for a zero."""

    def tiny(node: fx.Node) -> bool:
        return isinstance(node.args[1], float) and 0 < abs(node.args[1]) <= _TAKEN_FOR_ZERO

    if not any(map(tiny, nodes(program, aten.add.Tensor, aten.sub.Tensor))):
        return program
    own = program.clone()
    for node in filter(tiny, nodes(own, aten.add.Tensor, aten.sub.Tensor)):
        dtype = node.meta["val"].dtype
        node.update_arg(1, add_weight(own, f"{node.name}_constant", torch.tensor([node.args[1]], dtype=dtype), node))
    return own.retraced()
