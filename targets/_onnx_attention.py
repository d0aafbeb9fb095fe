"""Transformer blocks in ONNX: an edit that gives the same numbers faster, and what differs from torch."""

from __future__ import annotations

import onnx
import torch

from edgecompile.program import Program
from edgecompile.rewrite import argument, aten, call, nodes, replace, shape, weight
from edgecompile.targets._onnx_graph import Graph


def sum_before_norm(model: onnx.ModelProto) -> int:
    """Add in front of LayerNormalization becomes Sum, which is the same; returns how many.

    ONNX Runtime fuses Add and LayerNormalization into SkipLayerNormalization, whose CPU kernel is the slower way
    (`python -m tests.bench.int8 minilm` with and without this edit).
    """
    graph = Graph(model)
    count = 0
    for node in graph.proto.node:
        source = graph.producer.get(node.input[0]) if node.op_type == "LayerNormalization" else None
        if source is not None and source.op_type == "Add" and not any(i in graph.constants for i in source.input):
            source.op_type = "Sum"
            count += 1
    return count


def four_axes(program: Program) -> Program:
    """Attention over three axes (one head) with the fourth that the exporter insists on; a copy where there is any."""
    attention = aten.scaled_dot_product_attention.default
    if all(len(shape(n) or ()) == 4 for n in nodes(program, attention)):
        return program
    own = program.clone()
    for node in nodes(own, attention):
        if len(shape(node) or ()) != 3:
            continue
        args = list(node.args)
        for index, value in enumerate(args[:4]):
            if isinstance(value, torch.fx.Node) and len(shape(value) or ()) == 3:
                args[index] = call(own, aten.unsqueeze.default, (value, 1), node)
        wide = call(own, attention, tuple(args), node, dict(node.kwargs))
        replace(own, node, call(own, aten.squeeze.dim, (wide, 1), node))
    return own.retraced()


def blind_rows(program: Program) -> list[str]:
    """A note where rows of an attention may see nothing at all: torch gives zeros for them, the file their mean."""
    for node in nodes(program, aten.scaled_dot_product_attention.default):
        mask = argument(node, "attn_mask")
        value = mask.meta.get("val") if isinstance(mask, torch.fx.Node) else None
        if value is None or value.dtype != torch.bool:
            continue
        known = weight(program, mask)
        if known is None or not bool(known.any(-1).all()):
            return ["where an attention mask hides everything, torch gives zeros and this file the mean of all values"]
    return []
