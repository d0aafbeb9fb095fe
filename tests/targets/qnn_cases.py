"""Graphs of one node for the rules of the QNN execution provider: each rule kept, and broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F32 = TensorProto.FLOAT


def graph(
    kind: str,
    shapes: Sequence[Sequence[int | str]],
    out: Sequence[int | str],
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """`y = kind(x0, x1, ..., constants)` in floats."""
    names = [f"x{i}" for i in range(len(shapes))]
    kinds = attributes.pop("types", [F32] * len(shapes))
    made = attributes.pop("made", F32)
    inputs = [helper.make_tensor_value_info(n, t, s) for n, t, s in zip(names, kinds, shapes, strict=True)]
    output = helper.make_tensor_value_info("y", made, out)
    stored = [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()]
    node = helper.make_node(kind, [*names, *(constants or {})], ["y"], name="node", **attributes)
    return whole([node], inputs, [output], stored)


def whole(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    stored: list[onnx.TensorProto],
) -> onnx.ModelProto:
    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, stored), opset_imports=[helper.make_opsetid("", 20)]
    )
    made.ir_version = 10
    made = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(made, full_check=True)
    return made


def integers(behind: bool = True, axis: int = 0, kind: str = "Conv") -> onnx.ModelProto:
    """DQ -> Conv or Gemm -> Q -> DQ, weights per channel; without the Q where `behind` is False."""
    shape = [1, 4, 8, 8] if kind == "Conv" else [1, 4]
    weight = np.ones((4, 4, 1, 1) if kind == "Conv" else (4, 4), np.int8)
    stored = {
        "s": np.float32(0.1),
        "z": np.uint8(128),
        "w": weight,
        "ws": np.linspace(0.01, 0.02, 4, dtype=np.float32),
        "wz": np.zeros(4, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="first"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dx"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="dw", axis=axis),
        helper.make_node(kind, ["d", "wd"], ["y" if not behind else "c"], name="node"),
    ]
    if behind:
        nodes += [
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["qc"], name="after"),
            helper.make_node("DequantizeLinear", ["qc", "s", "z"], ["y"], name="last"),
        ]
    info = [helper.make_tensor_value_info(n, F32, shape) for n in ("x", "y")]
    return whole(nodes, info[:1], info[1:], [numpy_helper.from_array(np.asarray(v), n) for n, v in stored.items()])


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


ONES = np.ones((4, 4), np.float32)
TAKEN: dict[str, Callable[[], onnx.ModelProto]] = {
    "relu": lambda: graph("Relu", [[1, 4, 8, 8]], [1, 4, 8, 8]),
    "conv": lambda: graph("Conv", [[1, 4, 8, 8]], [1, 4, 8, 8], {"w": np.ones((4, 4, 1, 1), np.float32)}),
    "conv int8": integers,
    "gemm int8": lambda: integers(kind="Gemm", axis=1),
    "matmul int8": lambda: integers(kind="MatMul", axis=1),
    "gemm": lambda: graph("Gemm", [[1, 4]], [1, 4], {"w": ONES}),
    "pool": lambda: graph("MaxPool", [[1, 4, 8, 8]], [1, 4, 4, 4], kernel_shape=[2, 2], strides=[2, 2]),
    "layer norm": lambda: graph("LayerNormalization", [[1, 4, 4]], [1, 4, 4], {"w": np.ones(4, np.float32)}, axis=-1),
    "max of three": lambda: graph("Max", [[1, 4]] * 3, [1, 4]),
    "transpose of 5": lambda: graph("Transpose", [[1, 2, 3, 4, 5]], [1, 3, 2, 5, 4], perm=[0, 2, 1, 4, 3]),
    "reduce": lambda: graph("ReduceMean", [[1, 4, 8]], [1, 4, 1], {"a": i64(-1)}),
    "pad": lambda: graph("Pad", [[1, 4, 8]], [1, 4, 10], {"p": i64(0, 0, 1, 0, 0, 1)}),
    "resize": lambda: graph(
        "Resize",
        [[1, 4, 4, 4]],
        [1, 4, 8, 8],
        {"roi": np.zeros(0, np.float32), "s": np.float32([1, 1, 2, 2])},
        mode="linear",
    ),
    "below 0": lambda: graph("Gather", [[1, 4]], [1, 2], {"i": i64(0, -1)}, axis=1),
    "gather": lambda: graph("Gather", [[1, 4]], [1, 2], {"i": i64(0, 2)}, axis=1),
}
LEFT: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no builder": (lambda: graph("Erf", [[1, 4]], [1, 4]), "has no builder"),
    "dynamic": (lambda: graph("Relu", [["n", 4]], ["n", 4]), "shape is not fixed"),
    "float64": (
        lambda: graph("Relu", [[1, 4]], [1, 4], types=[TensorProto.DOUBLE], made=TensorProto.DOUBLE),
        "float64",
    ),
    "no node unit": (lambda: integers(behind=False), "no QuantizeLinear behind"),
    "gemm no node unit": (lambda: integers(behind=False, kind="Gemm", axis=1), "no QuantizeLinear behind"),
    "matmul no node unit": (lambda: integers(behind=False, kind="MatMul", axis=1), "no QuantizeLinear behind"),
    "conv axis": (lambda: integers(axis=1), "axis 0"),
    "alpha": (lambda: graph("Gemm", [[1, 4]], [1, 4], {"w": ONES}, alpha=0.5), "alpha"),
    "transpose of 6": (
        lambda: graph("Transpose", [[1, 2, 3, 4, 5, 2]], [1, 3, 2, 5, 4, 2], perm=[0, 2, 1, 4, 3, 5]),
        "axes",
    ),
    "dilated pool": (
        lambda: graph("MaxPool", [[1, 4, 8, 8]], [1, 4, 6, 6], kernel_shape=[2, 2], dilations=[2, 2]),
        "dilation",
    ),
    "pool in 3d": (lambda: graph("MaxPool", [[1, 4, 4, 4, 4]], [1, 4, 3, 3, 3], kernel_shape=[2, 2, 2]), "rank"),
    "norm of two axes": (
        lambda: graph("LayerNormalization", [[1, 4, 4]], [1, 4, 4], {"w": ONES}, axis=1),
        "last axis",
    ),
    "product": (lambda: graph("ReduceProd", [[1, 4, 8]], [1, 4, 1], {"a": i64(-1)}), "has no builder"),
    "computed axes": (
        lambda: graph("ReduceMean", [[1, 4, 8], [1]], [1, 4, 1], types=[F32, TensorProto.INT64]),
        "is computed",
    ),
    "computed pads": (
        lambda: graph("Pad", [[1, 4], [4]], [1, 4], types=[F32, TensorProto.INT64]),
        "is computed",
    ),
    "antialias": (
        lambda: graph(
            "Resize",
            [[1, 4, 4, 4]],
            [1, 4, 2, 2],
            {"roi": np.zeros(0, np.float32), "s": np.float32([1, 1, 0.5, 0.5])},
            mode="linear",
            antialias=1,
        ),
        "antialias",
    ),
}
