"""FP8 (E4M3) for TensorRT: taken through the exporter as eight-bit integers, whose Q/DQ has the same form.

The program's roundings become `quantize_per_tensor` and `dequantize_per_channel` of int8 with a zero point of 0,
weights bit by bit; in the finished file the types are put right. No step between looks at what the bits mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from edgecompile.program import Program, op_name
from edgecompile.rewrite import add_weight, aten, call, layer, nodes, replace, weight
from edgecompile.targets._onnx_graph import Graph

SMS = (89, 90, 120)
"""Compute capabilities of this target whose tensor cores take FP8."""
OPSET = 19
"""The first operator set with FP8 in QuantizeLinear."""
_IR = 9
_LARGEST = 448.0
Q = torch.ops.quantized_decomposed
_INT8 = (-128, 127, torch.int8)


@dataclass(frozen=True)
class _Rounding:
    """`last` is what layers read: `source` at a scale, or a stored weight with its scales."""

    last: fx.Node
    source: fx.Node
    scale: float | Tensor


def nodes_of(program: Program) -> list[fx.Node]:
    """The nodes that make or hold FP8 numbers."""
    return [
        n
        for n in program.graph.graph.nodes
        if isinstance(v := n.meta.get("val"), Tensor) and v.dtype == torch.float8_e4m3fn
    ]


def refusals(program: Program, sm: int, dla: bool) -> list[str]:
    """Why a program with FP8 cannot go there, a reason for each layer; none for a program without."""
    found = nodes_of(program)
    if not found:
        return []
    computed = [n for n in found if n.op == "call_function"] or found
    why = ""
    if dla:
        why = "which the DLA does not have: leave dla out, with sm=89, 90 or 120"
    elif sm not in SMS:
        why = f"which TensorRT has from SM89 on, not for sm={sm}: sm=89, 90 or 120, or quantize(weights=int8)"
    elif any("quantize_per" in str(n.target) for n in program.graph.graph.nodes):
        why = "beside integers: quantize all layers alike"
    else:
        known = {n for r in _roundings(program) for n in (r.last.args[0], r.source)}
        computed = [n for n in found if not known.intersection({n, *n.users})]
        why = "in a form that is not quantize's"
    return [f"{layer(n)}: {op_name(n)} ({n.name}) is in FP8, {why}" for n in computed]


def as_integers(program: Program) -> Program:
    """The program with int8 in the place of FP8; itself when it has none. The numbers that it computes mean nothing."""
    if not nodes_of(program):
        return program
    own = program.clone()
    for check in list(nodes(own, aten._assert_tensor_metadata.default)):
        own.graph.graph.erase_node(check)
    for found in _roundings(own):
        if isinstance(found.scale, Tensor):
            _weight(own, found)
            continue
        parts = (found.scale, 0, *_INT8)
        rounded = call(own, Q.quantize_per_tensor.default, (found.source, *parts), found.last)
        replace(own, found.last, call(own, Q.dequantize_per_tensor.default, (rounded, *parts), found.last))
    return own.retraced()


def _weight(program: Program, found: _Rounding) -> None:
    stored, scale = weight(program, found.source), found.scale
    assert stored is not None
    assert isinstance(scale, Tensor)
    name = str(found.source.target)
    bits = add_weight(program, f"{name}_bits", stored.detach().view(torch.int8), found.last)
    if scale.numel() == 1:
        one = (bits, float(scale), 0, *_INT8)
        new = call(program, Q.dequantize_per_tensor.default, one, found.last)
    else:
        axis = next(d for d, n in enumerate(scale.shape) if n != 1)
        flat = add_weight(program, f"{name}_flat_scale", scale.detach().flatten(), found.last)
        zero = add_weight(program, f"{name}_zero", torch.zeros(scale.numel(), dtype=torch.int8), found.last)
        new = call(program, Q.dequantize_per_channel.default, (bits, flat, zero, axis, *_INT8), found.last)
    replace(program, found.last, new)


def _roundings(program: Program) -> list[_Rounding]:
    """Every `to(x, float32) * scale` of FP8 numbers that are stored, or made by dividing, clamping and converting."""
    found = []
    for last in nodes(program, aten.mul.Tensor):
        wide, scale = last.args[:2]
        if not isinstance(wide, fx.Node) or not _converts(wide, torch.float32):
            continue
        small = wide.args[0]
        if not isinstance(small, fx.Node):
            continue
        scales = weight(program, scale)
        if small.op == "get_attr" and scales is not None and sum(n != 1 for n in scales.shape) <= 1:
            found.append(_Rounding(last, small, scales))
        elif isinstance(scale, float) and _converts(small, torch.float8_e4m3fn):
            clamped = small.args[0]
            if not isinstance(clamped, fx.Node) or clamped.target is not aten.clamp.default:
                continue
            divided = clamped.args[0]
            if isinstance(divided, fx.Node) and clamped.args[1:] == (-_LARGEST, _LARGEST) and _divides(divided, scale):
                source = divided.args[0]
                assert isinstance(source, fx.Node)
                found.append(_Rounding(last, source, scale))
    return found


def _converts(node: fx.Node, dtype: torch.dtype) -> bool:
    return node.target in (aten.to.dtype, aten._to_copy.default) and node.meta["val"].dtype is dtype


def _divides(node: fx.Node, scale: float) -> bool:
    source, divisor = node.args[:2] if node.target is aten.div.Tensor else (None, None)
    return isinstance(source, fx.Node) and isinstance(divisor, float) and divisor == scale


def newer(model: onnx.ModelProto) -> None:
    """Raise operator set 18 to 19 in place: each operator of this model means the same there."""
    for domain in model.opset_import:
        if domain.domain in ("", "ai.onnx"):
            domain.version = OPSET
    model.ir_version = max(model.ir_version, _IR)


def retype(model: onnx.ModelProto) -> None:
    """Make FP8 of all int8 Q/DQ in place: zero points, and stored weights with the bits that they have."""
    graph = Graph(model)
    names: set[str] = set()
    for node in graph.proto.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            names.update(name for name in (node.input[0], *node.input[2:]) if name in graph.constants)
    for name in names:
        stored = graph.constants[name]
        if stored.data_type == TensorProto.INT8:
            value = numpy_helper.to_array(stored)
            kind = TensorProto.FLOAT8E4M3FN
            stored.CopyFrom(helper.make_tensor(name, kind, value.shape, value.tobytes(), raw=True))
    for value in graph.proto.value_info:
        if value.type.tensor_type.elem_type == TensorProto.INT8:
            value.type.tensor_type.elem_type = TensorProto.FLOAT8E4M3FN
