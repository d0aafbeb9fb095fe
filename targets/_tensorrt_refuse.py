"""Why a program cannot go to TensorRT: the parser's own reasons, each with its layer, or the list of its operators."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgecompile.errors import TargetError
from edgecompile.program import Program
from edgecompile.targets._tensorrt_rtx import Fault

if TYPE_CHECKING:
    import onnx

    from edgecompile.targets._tensorrt_onnx import Dtype

_PLAIN = {
    *("add.Tensor", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "addmm", "amax", "avg_pool2d", "batch_norm", "bmm"),
    *("cat", "chunk", "clamp", "conv1d", "conv2d", "div.Tensor", "embedding", "expand", "flatten.using_ints", "gelu"),
    *("group_norm", "hardsigmoid", "hardswish", "hardtanh", "layer_norm", "leaky_relu", "linear", "matmul"),
    *(
        "max_pool2d",
        "mean.dim",
        "mm",
        "mul.Tensor",
        "permute",
        "relu",
        "relu6",
        "reshape",
        "scaled_dot_product_attention",
    ),
    *(
        "select.int",
        "sigmoid",
        "silu",
        "slice.Tensor",
        "softmax.int",
        "split.Tensor",
        "split_with_sizes",
        "squeeze.dim",
    ),
    *(
        "squeeze.dims",
        "sub.Tensor",
        "tanh",
        "transpose.int",
        "unbind.int",
        "unsqueeze",
        "view",
        "dropout",
        "contiguous",
        "sym_size.int",
        "linalg_vector_norm",
        "expand_as",
        "dropout_",
        "max.dim",
        "unflatten.int",
        "reshape_as",
    ),
    *(
        "eq.Scalar",
        "eq.Tensor",
        "ne.Scalar",
        "lt.Tensor",
        "lt.Scalar",
        "le.Tensor",
        "gt.Scalar",
        "gt.Tensor",
        "ge.Tensor",
    ),
    *("where.self", "where.ScalarSelf", "masked_fill.Scalar", "arange", "arange.start", "arange.start_step", "full"),
    *(
        "ones",
        "zeros",
        "ones_like",
        "zeros_like",
        "to.dtype",
        "_to_copy",
        "logical_and",
        "logical_not",
        "__and__.Tensor",
        "rsub.Scalar",
    ),
    *(
        "index.Tensor",
        "add.Scalar",
        "mul.Scalar",
        "sub.Scalar",
        "div.Scalar",
        "exp",
        "sqrt",
        "rsqrt",
        "pow.Tensor_Scalar",
    ),
    *(
        "upsample_nearest2d.vec",
        "upsample_bilinear2d.vec",
        "cumsum",
        "bitwise_not",
        "clamp_min",
        "type_as",
        "clone",
        "neg",
    ),
    *(
        "logical_or",
        "new_zeros",
        "new_ones",
        "roll",
        "repeat",
        "stack",
        "sum.dim_IntList",
        "var.correction",
        "gather",
        "abs",
    ),
    *("quantized_decomposed.quantize_per_tensor", "quantized_decomposed.dequantize_per_tensor"),
    *("quantized_decomposed.dequantize_per_channel", "flatten", "_assert_tensor_metadata", "pad", "constant_pad_nd"),
}
"""Operators that parse but for rare arguments, which `emit` would hear of: no need to export here too, and ask."""
_KNOWN = {
    *("Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool"),
    *(
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "ConvTranspose",
    ),
    *(
        "Cos",
        "Cosh",
        "CumSum",
        "DepthToSpace",
        "DequantizeLinear",
        "Div",
        "Dropout",
        "Einsum",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
    ),
    *("Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm"),
    *(
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "Greater",
        "GreaterOrEqual",
        "GridSample",
        "GroupNormalization",
    ),
    *(
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "IsInf",
        "IsNaN",
        "LRN",
        "LSTM",
        "LayerNormalization",
    ),
    *("LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool"),
    *(
        "Mean",
        "MeanVarianceNormalization",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "NonMaxSuppression",
        "Not",
        "OneHot",
        "Or",
        "PRelu",
    ),
    *("Pad", "Pow", "QuantizeLinear", "RNN", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum"),
    *("ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu"),
    *("Reshape", "Resize", "ReverseSequence", "RoiAlign", "Round", "ScatterElements", "ScatterND", "Selu", "Shape"),
    *("Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth"),
    *("Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu"),
    *("Unsqueeze", "Upsample", "Where", "Xor"),
}
"""ONNX operators of TensorRT's parser, for machines without TensorRT-RTX to ask."""
_AXES = 8
_DTYPES = (torch.float32, torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)


def reasons(program: Program, dtype: Dtype, dla: bool, fallback: bool, limit_s: float) -> list[str]:
    """Everything that stands against a program, none when it can be emitted.

    Raises `TargetError` where the exporter itself fails: that says nothing of the program.
    """
    from edgecompile.targets import _tensorrt_fp8
    from edgecompile.targets.onnx import Onnx

    float8 = bool(_tensorrt_fp8.nodes_of(program))
    program = _tensorrt_fp8.as_integers(program)
    found = Onnx(opset=18).refuse(program)
    if found or (not dla and _plain(program)):
        return found
    from edgecompile.targets import _tensorrt_dla, _tensorrt_onnx, _tensorrt_quant

    notes: list[str] = []
    try:
        fixed, _ = _tensorrt_quant.symmetric(program.specialised(program.batch or 1))
        if dla:
            return [] if fallback else _tensorrt_dla.refusals(_tensorrt_dla.prepared(fixed, {}, notes)[2])
        model = _tensorrt_onnx.build(fixed, dtype, {}, notes, float8)
    except TargetError as error:
        if error.rule == "toolchain":
            raise TargetError(f"tensorrt: {error}", rule="toolchain") from error
        return [str(error).removeprefix("tensorrt: ")]
    return explained(_faults(model, limit_s), model)


def explained(faults: Sequence[Fault], model: onnx.ModelProto) -> list[str]:
    """A line for each refused node: layer, operator, node and the parser's reason."""
    from edgecompile.targets._tensorrt_onnx import origin

    nodes = {n.name: n for n in model.graph.node}
    lines = []
    for fault in faults:
        where = f"{origin(nodes[fault.node])}: " if fault.node in nodes else ""
        what = f"{fault.operator} ({fault.node}): " if fault.operator else ""
        lines.append(f"{where}{what}{fault.why}")
    return list(dict.fromkeys(lines))


def _faults(model: onnx.ModelProto, limit_s: float) -> Sequence[Fault]:
    from edgecompile.targets import _tensorrt_rtx

    if not _tensorrt_rtx.available():
        unknown = [n for n in model.graph.node if n.op_type not in _KNOWN]
        return [Fault(n.name, n.op_type, "TensorRT's parser has no such operator") for n in unknown]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return _tensorrt_rtx.check(path, limit_s).faults


def _plain(program: Program) -> bool:
    """Whether the program is made of nothing that TensorRT could refuse."""
    from edgecompile.program import op_name

    for node in program.graph.graph.nodes:
        value = node.meta.get("val")
        values = value if isinstance(value, (list, tuple)) else [value]
        for one in values:
            if not isinstance(one, torch.Tensor):
                continue
            if one.dim() > _AXES or one.dtype not in _DTYPES:
                return False
        plain = op_name(node) in _PLAIN if isinstance(node.target, torch._ops.OpOverload) else _on_sizes(node.target)
        if node.op == "call_function" and not plain:
            return False
    return True


def _on_sizes(target: object) -> bool:
    """Whether a call is Python's own: an item of a tuple, arithmetic on sizes."""
    return getattr(target, "__module__", "") == operator.getitem.__module__
