"""Orin's DLA: which unit runs each layer, by TensorRT's documented restrictions, and implicit INT8 scales."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgecompile.program import Program
from edgecompile.targets._onnx_graph import Graph, tidy
from edgecompile.targets._onnx_light import shapes, with_shapes
from edgecompile.targets._tensorrt_dla_rules import SUMS, why_not
from edgecompile.targets._tensorrt_onnx import origin, plain

_SAME_SCALE = {
    "MaxPool",
    "AveragePool",
    "Concat",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Identity",
}
_NOTHING = {"Constant", "Identity"}


@dataclass(frozen=True)
class Place:
    """One node with the unit that runs it, and why it is the GPU."""

    node: str
    operator: str
    layer: str
    unit: str
    why: str = ""


def prepared(
    program: Program, metadata: Mapping[str, str], notes: list[str]
) -> tuple[onnx.ModelProto, dict[str, float], list[Place]]:
    """The float model for the DLA, the scales of its activations, and where each layer runs."""
    model = plain(program, notes)
    scales = implicit(model)
    local_pools(model)
    with_shapes(model)
    tidy(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model, scales, plan(model)


def refusals(places: Sequence[Place]) -> list[str]:
    """A line for each layer that the DLA does not run."""
    gpu = [p for p in places if p.unit == "GPU"]
    return [
        f"{p.layer}: {p.operator} ({p.node}): not on the DLA: {p.why}; allow_gpu_fallback=True lets it" for p in gpu
    ]


def implicit(model: onnx.ModelProto) -> dict[str, float]:
    """Take Q/DQ out of `model`, in place, weights back to float32; the scale of each activation tensor.

    The DLA knows no explicit quantization: TensorRT rounds weights itself, and takes the scales of activations from a
    calibration cache. Values that a kernel must read at one scale get the largest of theirs.
    """
    graph = Graph(model)
    found: dict[str, float] = {}
    renamed: dict[str, str] = {}
    for node in list(graph.proto.node):
        node.input[:] = [renamed.get(i, i) for i in node.input]
        if node.op_type == "QuantizeLinear":
            scale = graph.value(node.input[1])
            assert scale is not None
            found[node.input[0]] = max(found.get(node.input[0], 0.0), float(scale.reshape(-1)[0]))
            renamed[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear":
            stored = graph.value(node.input[0])
            renamed[node.output[0]] = node.input[0] if stored is None else _restored(graph, node, stored)
    final = {
        renamed[o.name]: o.name for o in graph.proto.output if o.name in renamed and renamed[o.name] in graph.producer
    }
    final = {inner: outer for inner, outer in final.items() if inner != outer and inner not in graph.outputs}
    for node in graph.proto.node:
        node.input[:] = [final.get(i, i) for i in node.input]
        node.output[:] = [final.get(o, o) for o in node.output]
    found = {final.get(name, name): scale for name, scale in found.items()}
    for output in graph.proto.output:
        if output.name in renamed and renamed[output.name] not in final:
            inner = renamed[output.name]
            graph.proto.node.append(helper.make_node("Identity", [inner], [output.name], name=output.name))
    plain_nodes = [n for n in graph.proto.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in plain_nodes]
    del graph.proto.node[:]
    graph.proto.node.extend(kept)
    Graph(model).finish()
    return _spread(model, found)


def _restored(graph: Graph, node: onnx.NodeProto, stored: np.ndarray[Any, Any]) -> str:
    scale = graph.value(node.input[1])
    assert scale is not None
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [-1 if d == axis % stored.ndim else 1 for d in range(stored.ndim)] if scale.size > 1 else [1] * stored.ndim
    value = stored.astype(np.float32) * scale.astype(np.float32).reshape(shape)
    return graph.constant(f"{node.input[0]}_float", value)


def _spread(model: onnx.ModelProto, scales: dict[str, float]) -> dict[str, float]:
    """Scales for the values between: in front of a clamp, and one for all that a sum or a pool reads and writes."""
    graph, found = Graph(model), dict(scales)
    for _ in range(len(graph.proto.node)):
        before = dict(found)
        for node in graph.proto.node:
            values = [i for i in node.input if i not in graph.constants and i]
            if node.op_type in ("Relu", "Clip") and node.output[0] in found:
                found.setdefault(values[0], found[node.output[0]])
            elif node.op_type in SUMS:
                _equal(found, values)
            elif node.op_type in _SAME_SCALE:
                _equal(found, [*values, node.output[0]])
        if found == before:
            break
    return {name: found[name] for name in sorted(found)}


def _equal(found: dict[str, float], names: list[str]) -> None:
    known = [found[n] for n in names if n in found]
    if known:
        found.update(dict.fromkeys(names, max(known)))


def cache_lines(scales: dict[str, float]) -> str:
    """The body of a calibration cache: a float32 as eight hexadecimal digits for each tensor."""
    return "".join(f"{name}: {struct.pack('>f', scale).hex()}\n" for name, scale in scales.items())


def local_pools(model: onnx.ModelProto) -> None:
    """Global pools with a window the DLA has become plain ones: TensorRT makes reductions of the global ones."""
    shapes = _shapes(model)
    for node in model.graph.node:
        size = shapes.get(node.input[0], ()) if node.op_type in ("GlobalAveragePool", "GlobalMaxPool") else ()
        if len(size) == 4 and all(1 <= s <= 8 for s in size[2:]):
            node.op_type = node.op_type.removeprefix("Global")
            node.attribute.append(helper.make_attribute("kernel_shape", list(size[2:])))


def plan(model: onnx.ModelProto) -> list[Place]:
    """Every layer of a float model with the unit that runs it, by the limits in NvInfer.h of TensorRT 10.3."""
    shapes = _shapes(model)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    places = []
    for node in model.graph.node:
        if node.op_type in _NOTHING:
            continue
        why = why_not(node, shapes, constants)
        places.append(Place(node.name, node.op_type, origin(node), "GPU" if why else "DLA", why or ""))
    return places


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph = shapes(model)
    found = {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    return found | {t.name: tuple(t.dims) for t in graph.initializer}
