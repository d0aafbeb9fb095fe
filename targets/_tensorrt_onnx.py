"""ONNX for TensorRT: symmetric Q/DQ, opset 17 where the operators allow it, explicit types."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import helper

from edgecompile.program import Program
from edgecompile.rewrite import layer
from edgecompile.targets import _onnx_attention, _onnx_graph, _onnx_light, _onnx_pads, _tensorrt_fp8, _tensorrt_types
from edgecompile.targets._onnx_graph import Graph
from edgecompile.targets.onnx import Onnx

Dtype = Literal["fp16", "bf16", "fp32"]
Sizes = Mapping[str, tuple[int, ...]]
_SCOPES = "pkg.torch.onnx.name_scopes"
_EXPORTED_OPSET = 18  # torch's own operator set; later ones are converted from it
_READ_BY_8_6 = 17
_REDUCTIONS = {
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
}
KEPT_IN_FP32 = {
    "Softmax",
    "LogSoftmax",
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
}
"""What must be named to TensorRT 8.6, which may choose narrower types than the file has."""
_NEW_IN_18 = {
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "CenterCropPad",
    "Col2Im",
    "Mish",
    "OptionalGetElement",
}


def build(
    program: Program, dtype: Dtype, metadata: Mapping[str, str], notes: list[str], float8: bool = False
) -> onnx.ModelProto:
    """The model that TensorRT parses; `program` has a fixed batch and symmetric Q/DQ already.

    With `float8` its int8 numbers are FP8 ones in disguise.
    """
    model = plain(program, notes, float8)
    count = _tensorrt_types.assign(model, dtype) if dtype != "fp32" else 0
    if count:
        small = "FP8" if float8 else "integers"
        notes.append(f"{dtype} with {count} explicit casts: softmax, norms, reductions and what {small} feed are fp32")
    if float8:
        _tensorrt_fp8.retype(model)
    _onnx_graph.tidy(model, metadata)
    onnx.checker.check_model(model, full_check=dtype != "bf16")  # bfloat16 is wider in TensorRT than in opset 17
    return model


def plain(program: Program, notes: list[str], float8: bool = False) -> onnx.ModelProto:
    """The same in float32, shapes inferred: what the typed file, and DLA's without Q/DQ, are made of."""
    model = Onnx(opset=_EXPORTED_OPSET)._exported(program)
    notes += _onnx_attention.blind_rows(program)
    _onnx_graph.name_outputs(model, program.output_names)
    _onnx_light.simplify(model, notes)
    _onnx_graph.pool_globally(model)
    _whole_windows(model)
    _onnx_pads.fold_pads(model)
    _onnx_graph.merge_quantization(model)
    _onnx_graph.transpose_weights(model)
    if float8:
        _tensorrt_fp8.newer(model)
    elif (why := older(model)) is not None:
        notes.append(f"opset {_EXPORTED_OPSET}, which TensorRT 8.6 does not read: {why}")
    _remember(model, program)
    return _onnx_light.with_shapes(model, strict_mode=True, data_prop=True)


def _whole_windows(model: onnx.ModelProto) -> None:
    """A pool whose window covers its whole input is a global one; TensorRT limits the size of windows."""
    sizes = _sizes(model)
    for node in model.graph.node:
        if node.op_type not in ("AveragePool", "MaxPool") or len(node.output) > 1 or node.input[0] not in sizes:
            continue
        given = {a.name: list(a.ints) for a in node.attribute}
        plain = not any(given.get("pads", ())) and all(d == 1 for d in given.get("dilations", ()))
        extent = sizes[node.input[0]][2:]
        if plain and extent and all(0 < n <= k for n, k in zip(extent, given["kernel_shape"], strict=True)):
            node.op_type = f"Global{node.op_type}"
            del node.attribute[:]


def older(model: onnx.ModelProto) -> str | None:
    """Rewrite the model to opset 17, in place; why not, where one operator keeps it at 18.

    TensorRT 8.6's parser takes the axes of a reduction from the attribute alone: given as an input, which is the form
    of opset 18, it ignores them and reduces over every axis.
    """
    sizes = _sizes(model)
    graph = Graph(model)
    edits: list[Callable[[], None]] = []
    for node in graph.proto.node:
        why = _edit(graph, node, edits, sizes)
        if why is not None:
            return f"{node.name} ({node.op_type}) {why}"
    for edit in edits:
        edit()
    for domain in model.opset_import:
        if domain.domain in ("", "ai.onnx"):
            domain.version = _READ_BY_8_6
    model.ir_version = min(model.ir_version, 8)
    graph.finish()
    return None


def _edit(graph: Graph, node: onnx.NodeProto, edits: list[Callable[[], None]], sizes: Sizes) -> str | None:
    """Add what makes one node older to `edits`; or say why it cannot be."""
    if node.op_type in _NEW_IN_18:
        return "is new in opset 18"
    if node.op_type in _REDUCTIONS and len(node.input) > 1:
        axes = graph.value(node.input[1])
        if axes is None:
            return "has computed axes"
        edits.append(lambda: _axes_as_attribute(node, axes))
    elif node.op_type == "Split" and len(node.input) < 2:
        edits.append(lambda: _split_sizes(graph, node, sizes))
    elif node.op_type == "Pad" and len(node.input) > 3 and node.input[3]:
        return "names its axes"
    elif node.op_type == "Resize":
        extra = {a.name: a for a in node.attribute if a.name in ("antialias", "axes", "keep_aspect_ratio_policy")}
        if "axes" in extra or ("antialias" in extra and extra["antialias"].i):
            return "names its axes or antialiases"
        edits.append(lambda: _drop(node, *extra))
    elif node.op_type in ("ScatterElements", "ScatterND"):
        mode = next((a.s for a in node.attribute if a.name == "reduction"), b"none")
        if mode in (b"max", b"min"):
            return "keeps a maximum or minimum"
    return None


def _axes_as_attribute(node: onnx.NodeProto, axes: np.ndarray) -> None:
    empty = next((a.i for a in node.attribute if a.name == "noop_with_empty_axes"), 0)
    _drop(node, "noop_with_empty_axes")
    if axes.size:
        node.attribute.append(helper.make_attribute("axes", [int(a) for a in axes.ravel()]))
        del node.input[1:]
    elif empty:
        node.op_type = "Identity"
        del node.input[1:], node.attribute[:]
    else:
        del node.input[1:]


def _sizes(model: onnx.ModelProto) -> Sizes:
    graph = _onnx_light.shapes(model)
    return {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in (*graph.input, *graph.value_info, *graph.output)
    }


def _split_sizes(graph: Graph, node: onnx.NodeProto, sizes: Sizes) -> None:
    """The parts' sizes as an input: their number alone may leave a smaller last part, in opset 18 only."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    parts = [sizes[o][axis] for o in node.output]
    _drop(node, "num_outputs")
    node.input.append(graph.constant(f"{node.name}_sizes", np.asarray(parts, np.int64)))


def _drop(node: onnx.NodeProto, *names: str) -> None:
    kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in node.attribute if a.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def operators(model: onnx.ModelProto) -> list[dict[str, str]]:
    """Each node that computes, with its layer, and the type that it computes in: int8 between DQ and Q, or FP8."""
    graph = Graph(model)
    types = {v.name: v.type.tensor_type.elem_type for v in _onnx_light.shapes(model).value_info}
    types |= {o.name: o.type.tensor_type.elem_type for o in model.graph.output}
    rows = []
    for node in model.graph.node:
        if node.op_type in ("Cast", "QuantizeLinear", "DequantizeLinear", "Identity"):
            continue
        restored = [p for i in node.input if (p := graph.producer.get(i)) and p.op_type == "DequantizeLinear"]
        made = onnx.TensorProto.DataType.Name(types.get(node.output[0], 0)).lower()
        dtype = _small(graph, restored[0]) if restored else made
        rows.append({"name": node.name, "op": node.op_type, "layer": origin(node), "unit": "GPU", "dtype": dtype})
    return rows


def _small(graph: Graph, node: onnx.NodeProto) -> str:
    """The numbers that a DequantizeLinear reads."""
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    return "fp8" if zero is not None and zero.data_type == onnx.TensorProto.FLOAT8E4M3FN else "int8"


def _remember(model: onnx.ModelProto, program: Program) -> None:
    """Write the layer paths again that simplification has dropped, by the names of nodes and values."""
    known = {n.name: layer(n) for n in program.graph.graph.nodes if n.op == "call_function"}
    for node in model.graph.node:
        names = [*node.output, node.name.removeprefix("node_")]
        path = next((known[n] for n in names if n in known), None)
        if path is not None and not any(p.key == _SCOPES for p in node.metadata_props):
            node.metadata_props.add(key=_SCOPES, value=repr(["", path, node.name]))


def origin(node: onnx.NodeProto) -> str:
    """The layer path that was written for a node, else the node's own name."""
    text = next((p.value for p in node.metadata_props if p.key == _SCOPES), "")
    try:
        scopes = [s for s in ast.literal_eval(text) if s] if text else []
    except (ValueError, SyntaxError):
        scopes = []
    return str(scopes[-2]) if len(scopes) > 1 else node.name
