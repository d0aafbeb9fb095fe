"""Quantized ONNX models: integers stay integers, as quantized_decomposed operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgecompile.models._onnx_graph import OnnxModule
from tests.models.onnx_runtime import data, error


def quantized(op: str, per_channel: bool) -> onnx.ModelProto:
    """x -> QuantizeLinear -> DequantizeLinear -> MatMul/Conv by a stored, dequantized int8 weight."""
    rng = np.random.default_rng(0)
    conv = op == "Conv"
    shape = (6, 4, 3, 3) if conv else (4, 6)
    channels = 6 if per_channel else ()
    stored = {
        "xs": np.float32(0.03),
        "xz": np.uint8(120),
        "w": rng.integers(-127, 127, shape).astype(np.int8),
        "ws": np.asarray(np.full(channels, 0.01) if per_channel else 0.01, np.float32),
        "wz": np.zeros(channels, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0 if conv else 1),
        helper.make_node(op, ["d", "dw"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 8, 8] if conv else [2, 4])
    graph = helper.make_graph(
        nodes,
        "q",
        [x],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("op", ["Conv", "MatMul"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized_models_keep_their_integers(op: str, per_channel: bool) -> None:
    model = quantized(op, per_channel)
    x = data(2, 4, 8, 8) if op == "Conv" else data(2, 4)
    found = error(model, {"x": x})
    assert isinstance(found, float), found
    assert found < 1e-4
    module = OnnxModule(model.graph, 13, {})
    module.prepare({"x": torch.from_numpy(x)})
    graph = torch.export.export(module, (torch.from_numpy(x),)).graph
    names = [str(node.target) for node in graph.nodes]
    kind = "channel" if per_channel else "tensor"
    assert f"quantized_decomposed.dequantize_per_{kind}.default" in names
    assert "quantized_decomposed.quantize_per_tensor.default" in names
    assert {b.dtype for b in module.buffers()} >= {torch.int8}
