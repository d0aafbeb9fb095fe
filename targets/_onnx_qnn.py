"""ONNX for ONNX Runtime's QNN execution provider: what Snapdragon's NPU (HTP) takes, and which nodes it would leave.

The rules are those of the provider's operator builders (onnxruntime-qnn 2.7, ONNX Runtime 1.24 and later): an operator
is taken when there is a builder for it, its shapes are fixed and its tensors have at most five axes. Integers are taken
by node units, Q/DQ on every side: DequantizeLinear -> operator -> QuantizeLinear. Floats run in half precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
import torch
from onnx import TensorProto, helper
from torch._ops import OpOverload

from edgecompile.target import QuantRule
from edgecompile.targets._onnx_graph import Graph
from edgecompile.targets.runners import text

aten = torch.ops.aten
_CLAMPS = (aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default)
_AXES = 5
_RULES: Mapping[OpOverload, QuantRule] = {
    **{op: QuantRule(("input",), "weight", fuses=_CLAMPS) for op in (aten.conv1d.default, aten.conv2d.default)},
    aten.linear.default: QuantRule(("input",), "weight", fuses=_CLAMPS),
    aten.add.Tensor: QuantRule(("self", "other"), fuses=_CLAMPS),
    aten.mul.Tensor: QuantRule(("self", "other")),
    aten.matmul.default: QuantRule(("self", "other")),
    aten.cat.default: QuantRule(("tensors",)),
    **{
        op: QuantRule(("self",))
        for op in (
            *(aten.softmax.int, aten.gelu.default, aten.sigmoid.default, aten.tanh.default),
            *(aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
        )
    },
    **{
        op: QuantRule(("self",), output="shared")
        for op in (
            *(aten.max_pool2d.default, aten.flatten.using_ints, aten.reshape.default, aten.view.default),
            *(aten.permute.default, aten.transpose.int, aten.pad.default, aten.constant_pad_nd.default),
        )
    },
}
TABLE: dict[OpOverload, QuantRule] = {op: QuantRule(**{**vars(rule), "axes": _AXES}) for op, rule in _RULES.items()}
"""What is one QNN operator behind the exporter, so that Q/DQ can stand on every side of it."""

_BUILDERS = frozenset(
    word
    for line in (
        "Abs Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast Ceil Clip Concat Conv ConvTranspose",
        "Cos CumSum DepthToSpace DequantizeLinear Div Einsum Elu Equal Exp Expand Flatten Floor GRU Gather",
        "GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample",
        "GroupNormalization HardSigmoid HardSwish InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization",
        "LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul Max MaxPool Mean Min Mod Mul Neg Not",
        "Or PRelu Pad Pow QuantizeLinear RMSNormalization RandomUniformLike Reciprocal ReduceL2 ReduceMax ReduceMean",
        "ReduceMin ReduceSum Relu Reshape Resize RoiAlign Round STFT ScatterElements ScatterND Selu Sigmoid Sign Sin",
        "Slice Softmax SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze",
        "Upsample Where Xor",
    )
    for word in line.split()
)
"""Operators that have a builder for the HTP."""
_NOT_RUN = "QNN, which needs a Snapdragon; selftest.py, run.py and this machine use ONNX Runtime's CPU provider"
_ON_DEVICE = (
    "In an Android app: ONNX Runtime with QNN (Maven `com.microsoft.onnxruntime:onnxruntime-android-qnn`), the file as",
    "an asset, and the provider `QNN` with `backend_path=libQnnHtp.so` and `htp_performance_mode=burst`. The session",
    "entry `session.disable_cpu_ep_fallback=1` fails where nodes would go to the CPU. The outputs of `golden.npz` are",
    "the CPU's: integers may fall one step apart on the NPU, and what is float runs in half precision there.",
)
_CONSTANT = {
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL2", "Pad", "Expand", "Tile"), (1,)),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Split", "CumSum"), (1,)),
    "Clip": (1, 2),
    "Slice": (1, 2, 3, 4),
    "Resize": (1, 2, 3),
}
"""Inputs that QNN takes as parameters of the operator."""
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TYPES = {TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.STRING}


def ledger(model: onnx.ModelProto) -> dict[str, str]:
    """Node -> why QNN would leave it to the CPU. `model` has its shapes inferred and its nodes named.

    The QuantizeLinear of an input and the DequantizeLinear of an output are not counted: those stand on the CPU by the
    provider's default. Rules that only the HTP's own compiler knows (memory, odd types) are not among these.
    """
    graph = Graph(model)
    values = {v.name: v for v in (*graph.proto.input, *graph.proto.output, *graph.proto.value_info)}
    shapes = {t.name: list(t.dims) for t in graph.proto.initializer}
    shapes |= {name: _dims(value) for name, value in values.items() if value.type.tensor_type.HasField("shape")}
    types = {name: v.type.tensor_type.elem_type for name, v in values.items()}
    types |= {t.name: t.data_type for t in graph.proto.initializer}
    found: dict[str, str] = {}
    for node in graph.proto.node:
        why = _outside(node, shapes, types) or _computed(node, graph) or _own_rules(node, graph, shapes)
        if why := why or _no_unit(node, graph):
            found[node.name or node.output[0]] = f"{node.op_type}: {why}"
    return found


def told(model: onnx.ModelProto, said: list[str]) -> dict[str, object]:
    """What the manifest and the page beside the file say of it; the report's notes are added to `said`."""
    left, count, floats = ledger(model), len(model.graph.node), in_floats(model)
    said.append(f"QNN not run here; by its rules it takes {count - len(left)} of {count} nodes")
    said += [f"left to the CPU by QNN: {name}: {why}" for name, why in list(left.items())[:20]]
    if len(left) > 20:
        said.append(f"left to the CPU by QNN: {len(left) - 20} more")
    if floats:
        said.append("in half precision on the NPU: " + ", ".join(f"{n} {kind}" for kind, n in floats.items()))
    facts: dict[str, object] = {"npu": "qnn", "left_to_cpu": left, "in_floats": floats}
    return facts | {"not_run_here": _NOT_RUN, "on_device": list(_ON_DEVICE)}


def run_py() -> bytes:
    """The script beside the file, without the CPU's integer kernels: those of x86 before VNNI saturate, an NPU not."""
    level = b"    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC\n"
    place = b"    path = os.path.join"
    return text("onnx_run.py").replace(place, level + place)


def in_floats(model: onnx.ModelProto) -> dict[str, int]:
    """Operators that read floats which no DequantizeLinear made, and how many there are of each."""
    graph = Graph(model)
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.proto.input, *graph.proto.value_info)}
    found: Counter[str] = Counter()
    for node in graph.proto.node:
        read = [name for name in node.input if types.get(name) == TensorProto.FLOAT]
        makers = [graph.producer.get(name) for name in read]
        if node.op_type != "QuantizeLinear" and any(
            m is None or (m.op_type != "DequantizeLinear" and not _quantized(graph, m)) for m in makers
        ):
            found[node.op_type] += 1
    return dict(sorted(found.items()))


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    """The lengths of the axes, -1 for one that is not fixed."""
    return [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]


def _outside(node: onnx.NodeProto, shapes: Mapping[str, list[int]], types: Mapping[str, int]) -> str:
    """The rules for every operator: its builder, its shapes, its types."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _BUILDERS:
        return "QNN has no builder for it"
    for name in filter(None, (*node.input, *node.output)):
        if -1 in shapes.get(name, [-1]):
            return f"{name}: its shape is not fixed"
        if len(shapes[name]) > _AXES:
            return f"{name}: has {len(shapes[name])} axes, over {_AXES}"
        if types.get(name) in _TYPES:
            return f"{name}: is {helper.tensor_dtype_to_np_dtype(types[name])}"
    return ""


def _computed(node: onnx.NodeProto, graph: Graph) -> str:
    """An input that must be a constant, and is not."""
    for index in _CONSTANT.get(node.op_type, ()):
        name = node.input[index] if index < len(node.input) else ""
        if name and name not in graph.constants and not _constant_node(graph.producer.get(name)):
            return f"{name}: is computed, and must be a constant"
    return ""


def _constant_node(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "Constant"


def _own_rules(node: onnx.NodeProto, graph: Graph, shapes: Mapping[str, list[int]]) -> str:
    """The rules of single operators."""
    said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    kind, first = node.op_type, shapes.get(node.input[0], []) if node.input else []
    if kind == "Gemm" and (said.get("alpha", 1.0) != 1.0 or said.get("beta", 1.0) != 1.0):
        return "alpha and beta must be 1"
    if kind in ("MaxPool", "AveragePool"):
        if set(said.get("dilations", [1])) != {1}:
            return "dilation must be 1"
        if not 3 <= len(first) <= (4 if kind == "MaxPool" else 5):
            return f"rank {len(first)}: the NPU pools along one axis or two"
        if len(node.output) > 1:
            return "has a second output"
    if kind == "LayerNormalization" and said.get("axis", -1) not in (-1, len(first) - 1):
        return "it must be over the last axis alone"
    if kind == "Resize" and said.get("antialias", 0):
        return "antialias is not taken"
    if kind in ("Conv", "ConvTranspose"):
        scales = _scales(graph, node.input[1])
        axis = _axis(graph, node.input[1])
        if scales > 1 and axis != (0 if kind == "Conv" else 1):
            return f"scales of its weight along axis {axis}: QNN takes axis {0 if kind == 'Conv' else 1}"
    return ""


def _scales(graph: Graph, name: str) -> int:
    """How many scales the DequantizeLinear has that makes a tensor, 0 where there is none."""
    node = graph.producer.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return 0
    scale = graph.value(node.input[1])
    return 1 if scale is None else scale.size


def _axis(graph: Graph, name: str) -> int:
    node = graph.producer.get(name)
    return 0 if node is None else next((a.i for a in node.attribute if a.name == "axis"), 1)


def _no_unit(node: onnx.NodeProto, graph: Graph) -> str:
    """Integers per channel without Q/DQ on every side: the DequantizeLinear, and a Gemm, whose weight is a constant."""
    if node.op_type == "Gemm" or _biased(graph, node):
        inside = _scales(graph, node.input[1]) > 1 and not _quantized(graph, node)
        return "reads integers, and no QuantizeLinear behind it" if inside else ""
    if node.op_type != "DequantizeLinear" or _scales(graph, node.output[0]) <= 1:
        return ""
    readers = graph.consumers[node.output[0]]
    alone = next((r for r in readers if not _takes(graph, r) or not _quantized(graph, r)), None)
    where = f"behind {alone.name}" if alone is not None else "behind it"
    return "" if readers and alone is None else f"scales per channel, and no QuantizeLinear {where}"


def _biased(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a product and the sum behind it become a Gemm in ONNX Runtime."""
    readers = graph.consumers[node.output[0]] if node.op_type == "MatMul" else []
    return len(readers) == 1 and readers[0].op_type == "Add"


def _takes(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node has a constant of integers per channel as its parameter: a product, or the sum of its bias."""
    before = (graph.producer.get(name) for name in node.input)
    return node.op_type in _PRODUCTS or (
        node.op_type == "Add" and any(b is not None and b.op_type == "MatMul" for b in before)
    )


def _quantized(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether the result is read in integers alone, behind its bias and the activation if there are any."""
    readers = graph.consumers[node.output[0]]
    if len(readers) == 1 and node.output[0] not in graph.outputs:
        bias = readers[0].op_type == "Add" and node.op_type == "MatMul"
        if bias or readers[0].op_type in ("Relu", "Clip"):
            return _quantized(graph, readers[0])
    return bool(readers) and all(r.op_type == "QuantizeLinear" for r in readers)
