"""Models of one node, and their import against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from hypothesis import assume
from onnx import helper, numpy_helper

from edgecompile.models._onnx_graph import OnnxModule


def one_node(
    op: str,
    inputs: Mapping[str, np.ndarray],
    stored: Mapping[str, np.ndarray],
    opset: int,
    outputs: Sequence[str] = ("y",),
    operands: Sequence[str] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of a single node; output types are left for ONNX Runtime to infer."""
    node = helper.make_node(op, operands or [*inputs, *stored], list(outputs), name="it", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs if name],
        [numpy_helper.from_array(v, n) for n, v in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def error(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> float | str:
    """The largest difference to ONNX Runtime, or why the model is refused; skips what the runtime cannot do."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        wanted = session.run(None, dict(inputs))
    except Exception:
        assume(False)
        raise
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    module = OnnxModule(model.graph, model.opset_import[0].version, {})
    if reasons := module.prepare(given):
        return reasons[0]
    found = list(module.run(given).values())
    shapes = [tuple(v.shape) for v in found]
    assert shapes == [w.shape for w in wanted]
    return max(float(np.abs(f.detach().numpy() - w).max(initial=0.0)) for f, w in zip(found, wanted, strict=True))


def data(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
