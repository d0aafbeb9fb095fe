"""Weight-only compression in ONNX: scales of groups as scales of rows, and four bits where four are enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import helper

from edgecompile.program import Program
from edgecompile.rewrite import add_weight, aten, call, nodes, replace, weight
from edgecompile.targets._compressed import Palette, Q, compressed
from edgecompile.targets._onnx_graph import Graph

_INT4_OPSET = 21


def by_rows(program: Program) -> Program:
    """Weights with scales for groups along a row, as more and shorter rows with a scale each; itself without any.

    The exporter has a form for `dequantize_per_channel` alone.
    """
    if not any(True for _ in nodes(program, Q.dequantize_per_channel_group.default)):
        return program
    own = program.clone()
    for node in nodes(own, Q.dequantize_per_channel_group.default):
        data, scale, zero = (weight(own, a) for a in node.args[:3])
        if data is None or scale is None:
            continue
        low, high, dtype, size = node.args[3:7]
        whole = torch.zeros(scale.numel(), dtype=torch.int32) if zero is None else zero.reshape(-1)
        parts = {"rows": data.reshape(-1, size), "scale": scale.reshape(-1), "zero": whole}  # type: ignore[arg-type]
        made = [add_weight(own, f"{node.name}_{k}", v.contiguous(), node) for k, v in parts.items()]
        flat = call(own, Q.dequantize_per_channel.default, (*made, 0, low, high, dtype), node)
        replace(own, node, call(own, aten.reshape.default, (flat, list(data.shape)), node))
    return own.retraced()


def notes(program: Program) -> Sequence[str]:
    """What the file does not hold as small as the program does."""
    if any(isinstance(one, Palette) for one in compressed(program)):
        return ["palettes are stored as whole numbers here: ONNX has no weights by table that a runtime keeps small"]
    return []


def four_bits(model: onnx.ModelProto) -> int:
    """Store dequantized constants between -8 and 7 as INT4, from operator set 21 on; returns how many."""
    if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < _INT4_OPSET:
        return 0
    graph = Graph(model)
    count = 0
    for node in graph.proto.node:
        data = graph.value(node.input[0]) if node.op_type == "DequantizeLinear" else None
        zero = graph.value(node.input[2]) if data is not None and len(node.input) > 2 else None
        if data is None or data.dtype != np.int8 or data.ndim < 2 or not _fits(data):
            continue
        if zero is not None and not _fits(zero):
            continue
        for position, value in ((0, data), (2, zero)):
            if value is not None:
                name = f"{node.input[position]}_int4"
                if name not in graph.constants:
                    graph.constants[name] = _int4(name, value)
                    graph.proto.initializer.append(graph.constants[name])
                node.input[position] = name
        count += 1
    if count:
        graph.finish()
    return count


def _fits(value: np.ndarray) -> bool:
    return bool(value.min(initial=0) >= -8 and value.max(initial=0) <= 7)


def _int4(name: str, value: np.ndarray) -> onnx.TensorProto:
    """Two numbers a byte, the first in the low bits."""
    low = value.astype(np.uint8).reshape(-1) & 15
    low = np.append(low, np.zeros(low.size % 2, np.uint8))
    packed = low[::2] | (low[1::2] << 4)
    return helper.make_tensor(name, onnx.TensorProto.INT4, value.shape, packed.tobytes(), raw=True)
