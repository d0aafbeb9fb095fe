"""An edit of transformer blocks in the exported ONNX graph: the same numbers from an operator that runs fast."""

from __future__ import annotations

import onnx

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
