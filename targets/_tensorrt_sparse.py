"""2:4 sparsity: which layers have weights that an Ampere GPU's sparse tensor cores can take."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from edgecompile.targets._onnx_graph import Graph
from edgecompile.targets._tensorrt_onnx import origin

FIRST_SM = 80
"""The first compute capability with sparse tensor cores."""


def fits(weight: np.ndarray[Any, Any], axis: int) -> bool:
    """Whether every four consecutive numbers along `axis`, the input channels, hold at least two zeros.

    A number of input channels that is no multiple of four never does: TensorRT asks for that too.
    """
    channels = weight.shape[axis]
    if weight.size == 0 or channels % 4:
        return False
    filled = np.moveaxis(weight != 0, axis, -1).reshape(-1, 4)
    return bool((filled.sum(1) <= 2).all())


def layers(model: onnx.ModelProto) -> tuple[list[str], int]:
    """Layers of convolutions and matrix products whose constant weight is 2:4 sparse, and how many have a weight."""
    graph = Graph(model)
    found: list[str] = []
    count = 0
    for node in graph.proto.node:
        axis = _input_axis(node)
        stored = None if axis is None else _stored(graph, node.input[1])
        if axis is None or stored is None or stored.ndim < 2:
            continue
        count += 1
        if fits(stored, axis):
            found.append(origin(node))
    return found, count


def _input_axis(node: onnx.NodeProto) -> int | None:
    """The axis of the second operand that is summed over; None for what has no weight."""
    if node.op_type == "Conv":
        return 1
    if node.op_type == "MatMul":
        return -2
    if node.op_type == "Gemm":
        return 1 if any(a.name == "transB" and a.i for a in node.attribute) else 0
    return None


def _stored(graph: Graph, name: str) -> np.ndarray[Any, Any] | None:
    """The constant of that name, or the integers of one that is dequantized (zero stays zero: no zero points)."""
    node = graph.producer.get(name)
    if node is not None and node.op_type == "DequantizeLinear":
        name = node.input[0]
    return graph.value(name)
