"""Explicit types for a strongly typed network: half precision, with float32 where its range or sums are needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecompile.errors import TargetError
from edgecompile.targets._onnx_graph import Graph
from edgecompile.targets._onnx_light import keep_constants

_WIDE = {
    *("Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    *("BatchNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN"),
    *("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
    *("ReduceProd", "Pow", "Exp", "Log", "CumSum", "Range", "Softplus", "Reciprocal", "Sqrt", "NonMaxSuppression"),
    *("QuantizeLinear", "DequantizeLinear", "Cosh", "Sinh", "GridSample", "RoiAlign", "Einsum"),
}
"""What sums or grows beyond half precision, has float32 parameters only, or is the border of the integers."""
_NO_BF16 = {"HardSwish", "GRU", "ConvTranspose"}  # TensorRT-RTX 1.7 refuses these in bfloat16
_BEHIND_INTEGERS = {"Relu", "Clip", "LeakyRelu", "Add", "Identity"}
_MOVES = {"Slice", "Split", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Expand", "Pad"}
_FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
_LARGEST, _SMALLEST = 65504.0, 6.1e-5  # of float16, below the latter with fewer bits


@dataclass
class _Typing:
    """One model on its way: the type of each float tensor, and the casts made so far."""

    graph: Graph
    half: int
    native: dict[str, int] = field(default_factory=dict)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    halves: dict[str, str] = field(default_factory=dict)

    def read(self, name: str, wanted: int) -> str:
        """`name` in the wanted type: itself, a constant rewritten, or behind a Cast."""
        if name in self.graph.constants:
            return self._constant(name) if wanted == self.half else name
        if self.native[name] == wanted:
            return name
        if (name, wanted) not in self.casts:
            output = f"{name}_{'fp32' if wanted == TensorProto.FLOAT else 'half'}"
            while output in self.graph.producer or output in self.graph.constants or output in self.native:
                output += "_"
            self.casts[name, wanted] = output
            self.native[output] = wanted
            self.nodes.append(helper.make_node("Cast", [name], [output], name=f"{output}_cast", to=wanted))
        return self.casts[name, wanted]

    def _constant(self, name: str) -> str:
        if name not in self.halves:
            value = self.graph.value(name)
            assert value is not None
            self.halves[name] = self.graph.constant(f"{name}_half", _narrow(value, self.half))
        return self.halves[name]


def assign(model: onnx.ModelProto, dtype: Literal["fp16", "bf16"]) -> int:
    """Give every float tensor inside `model` its type, inputs and outputs stay float32; returns how many casts.

    `model` is in float32 throughout, shapes inferred. Scales of Q/DQ stay float32, and so does what lies between
    DequantizeLinear and QuantizeLinear: TensorRT runs that part in integers, whatever the type that it would have.
    """
    graph = Graph(model)
    floats = _float_tensors(model)
    typing = _Typing(graph, TensorProto.FLOAT16 if dtype == "fp16" else TensorProto.BFLOAT16)
    typing.native = {i.name: TensorProto.FLOAT for i in model.graph.input if i.name in floats}
    integer: set[str] = set()
    divided = _normalised(graph)
    for node in list(graph.proto.node):
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise TargetError(
                f"tensorrt: {node.name} ({node.op_type}) has a graph of its own; only dtype=fp32 takes it"
            )
        wide = (
            node.op_type in _WIDE
            or (dtype == "bf16" and node.op_type in _NO_BF16)
            or _in_integers(graph, node, integer)
            or _delicate(graph, node)
            or not divided.isdisjoint(node.output)
        )
        if wide and node.op_type not in ("QuantizeLinear", "DequantizeLinear") and _in_integers(graph, node, integer):
            integer.update(node.output)
        wanted = TensorProto.FLOAT if wide else typing.half
        _retype(typing, node, wanted, floats)
    _restore_outputs(typing, floats)
    _replace_nodes(graph, typing.nodes)
    return len(typing.casts)


def _retype(typing: _Typing, node: onnx.NodeProto, wanted: int, floats: set[str]) -> None:
    fixed = _FLOAT32_INPUTS.get(node.op_type, ())
    for index, name in enumerate(node.input):
        if name in floats and index not in fixed:
            node.input[index] = typing.read(name, wanted)
    for attribute in node.attribute:
        if (
            node.op_type in ("Cast", "EyeLike")
            and attribute.name in ("to", "dtype")
            and attribute.i == TensorProto.FLOAT
        ):
            attribute.i = wanted
        elif node.op_type in ("ConstantOfShape", "Constant") and attribute.t.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(attribute.t)
            if wanted != TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(_narrow(value, wanted)))
    typing.native.update({name: wanted for name in node.output if name in floats})
    typing.nodes.append(node)


def _in_integers(graph: Graph, node: onnx.NodeProto, integer: set[str]) -> bool:
    """Whether TensorRT runs a node in integers: it reads DequantizeLinear, or is folded into one that does."""
    moving = [i for i in node.input if i not in graph.constants and i in graph.producer]
    if any(graph.producer[i].op_type == "DequantizeLinear" for i in moving):
        return True
    folded = node.op_type in _BEHIND_INTEGERS and bool(moving) and all(i in integer for i in moving)
    return folded and all(_ends(graph, o) for o in node.output)


def _ends(graph: Graph, name: str) -> bool:
    """Whether a value is quantized at once, or behind a clamp that the kernel takes too."""
    users = graph.consumers[name]
    return bool(users) and all(
        u.op_type == "QuantizeLinear" or (u.op_type in ("Relu", "Clip") and _ends(graph, u.output[0])) for u in users
    )


def _delicate(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether half precision would spoil a division, a sum under a root, or a constant such as an epsilon of 1e-12."""
    users = graph.consumers[node.output[0]] if node.output else []
    if node.op_type == "Div":
        return node.input[1] not in graph.constants or _lost(graph, node)
    if node.op_type in ("Add", "Sub", "Mul", "Clip", "Max"):
        return _lost(graph, node) or (bool(users) and all(u.op_type in ("Sqrt", "Pow") for u in users))
    return False


def _normalised(graph: Graph) -> set[str]:
    """Products that are divided by products, and what they are made of: linear attention, whose sums may vanish."""
    found: set[str] = set()
    for node in graph.proto.node:
        if node.op_type != "Div" or node.input[1] in graph.constants:
            continue
        below = _products(graph, node.input[1])
        if any(graph.producer[name].op_type == "MatMul" for name in below):
            found |= below | _products(graph, node.input[0])
    return found


def _products(graph: Graph, start: str) -> set[str]:
    """Matrix products that a value is made of, through one another and through what only moves values."""
    found: set[str] = set()
    names, products = [start], 0
    while names and products <= 4:
        node = graph.producer.get(names.pop())
        if node is None or not found.isdisjoint(node.output):
            continue
        added = node.op_type == "Add" and any(i in graph.constants for i in node.input)
        if node.op_type != "MatMul" and node.op_type not in _MOVES and not added:
            continue
        products += node.op_type == "MatMul"
        found.update(node.output)
        names += node.input[:1] if node.op_type in _MOVES else node.input
    return found


def _lost(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether one of its scalar constants is too small for half precision."""
    for name in node.input:
        value = graph.value(name) if name in graph.constants else None
        if value is not None and value.size == 1 and value.dtype == np.float32:
            size = abs(float(value.reshape(-1)[0]))
            if 0 < size < _SMALLEST:
                return True
    return False


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors; refuses where inference has not found a tensor's type."""
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {t.name: t.data_type for t in graph.initializer}
    unknown = [o for n in graph.node for o in n.output if o and types.get(o, 0) == 0]
    if unknown:
        raise TargetError(f"tensorrt: ONNX's inference finds no type for {', '.join(unknown[:5])}")
    return {name for name, kind in types.items() if kind == TensorProto.FLOAT}


def _narrow(value: np.ndarray[Any, Any], kind: int) -> np.ndarray[Any, Any]:
    """A constant in half precision; finite numbers stay finite (a mask's -3e38 becomes -65504)."""
    if kind == TensorProto.FLOAT16:
        finite = np.isfinite(value)
        return np.where(finite, np.clip(value, -_LARGEST, _LARGEST), value).astype(np.float16)
    return value.astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))


def _restore_outputs(typing: _Typing, floats: set[str]) -> None:
    """Outputs in float32 under their own names."""
    renamed: dict[str, str] = {}
    for output in typing.graph.proto.output:
        name = output.name
        if name not in floats or typing.native[name] == TensorProto.FLOAT:
            continue
        inner = f"{name}_inner"
        while inner in typing.native or inner in typing.graph.constants:
            inner += "_"
        renamed[name] = inner
    for node in typing.nodes:
        node.input[:] = [renamed.get(i, i) for i in node.input]
        node.output[:] = [renamed.get(o, o) for o in node.output]
    for name, inner in renamed.items():
        typing.casts[inner, TensorProto.FLOAT] = name
        cast = helper.make_node("Cast", [inner], [name], name=f"{name}_cast", to=TensorProto.FLOAT)
        typing.nodes.append(cast)


def _replace_nodes(graph: Graph, nodes: list[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.proto.node[:], graph.proto.value_info[:]
    graph.proto.node.extend(kept)
    read = {i for n in kept for i in n.input} | {o.name for o in graph.proto.output}
    keep_constants(graph.proto, read)
