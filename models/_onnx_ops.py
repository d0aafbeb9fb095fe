"""The table of ONNX operators: which function computes each, and which of its operands stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch

from edgecompile.models import _onnx_index as i
from edgecompile.models import _onnx_math as m
from edgecompile.models import _onnx_nn as nn
from edgecompile.models import _onnx_quant as q
from edgecompile.models import _onnx_reduce as r
from edgecompile.models import _onnx_rnn as rnn
from edgecompile.models import _onnx_shape as s
from edgecompile.models._onnx_resize import resize

OLDEST, NEWEST = 7, 28
"""Opsets of ai.onnx whose operators are known here."""

ALL = tuple(range(16))


@dataclass(frozen=True)
class Op:
    """How one operator is computed.

    Operands in `raw` reach the function as they are (known, sizes or tensor), all others as tensors; known
    operands in `buffers` become buffers rather than parameters. `literal`: a known operand of one element is
    a Python number. `when`: operands must all be known, or (`traced`) the result is never folded.
    """

    run: Callable[..., Any]
    raw: tuple[int, ...] = ()
    buffers: tuple[int, ...] = ()
    literal: bool = False
    when: Literal["any", "known", "traced"] = "any"


CONTROL = ("If", "Loop", "Scan")
"""Operators with subgraphs, which the walker itself runs."""

_RANDOM = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)

OPS: Mapping[str, Op] = MappingProxyType(
    {
        **{name: Op(run) for name, run in m.UNARY.items()},
        **{name: Op(run, literal=True) for name, run in m.BINARY.items()},
        **{name: Op(run, raw=(1,)) for name, run in r.REDUCTIONS.items()},
        **{name: Op(m.random_refused, raw=ALL) for name in _RANDOM},
        "ArgMax": Op(r.arg(largest=True)),
        "ArgMin": Op(r.arg(largest=False)),
        "AveragePool": Op(nn.average_pool),
        "BatchNormalization": Op(nn.batch_norm, buffers=(3, 4)),
        "BitShift": Op(m.shift),
        "CastLike": Op(m.cast_like),
        "Clip": Op(m.clip, raw=(1, 2)),
        "Compress": Op(i.compress, raw=(1,)),
        "Concat": Op(lambda n, *xs: torch.cat(xs, n.get("axis", 1))),
        "Constant": Op(s.constant),
        "ConstantOfShape": Op(s.constant_of_shape, raw=(0,)),
        "Conv": Op(nn.conv),
        "ConvInteger": Op(q.conv_integer),
        "ConvTranspose": Op(nn.conv_transpose),
        "CumSum": Op(r.cumsum, raw=(1,)),
        "DepthToSpace": Op(s.depth_to_space),
        "DequantizeLinear": Op(q.dequantize, raw=(0, 1, 2), when="traced"),
        "Dropout": Op(s.dropout, raw=(1, 2)),
        "DynamicQuantizeLinear": Op(q.dynamic_quantize),
        "Einsum": Op(m.einsum),
        "Expand": Op(s.expand, raw=(1,)),
        "EyeLike": Op(s.eye_like),
        "Flatten": Op(s.flatten),
        "GRU": Op(rnn.recurrent, raw=(1, 2, 3, 4)),
        "Gather": Op(i.gather, raw=(0, 1)),
        "GatherElements": Op(i.gather_elements),
        "GatherND": Op(i.gather_nd),
        "Gemm": Op(m.gemm, raw=(1, 2)),
        "GlobalAveragePool": Op(nn.global_average_pool),
        "GlobalLpPool": Op(nn.global_lp_pool),
        "GlobalMaxPool": Op(nn.global_max_pool),
        "GroupNormalization": Op(nn.group_norm),
        "Identity": Op(s.identity, raw=(0,)),
        "InstanceNormalization": Op(nn.instance_norm),
        "LRN": Op(nn.lrn),
        "LSTM": Op(rnn.recurrent, raw=(1, 2, 3, 4, 7)),
        "LayerNormalization": Op(nn.layer_norm),
        "LpNormalization": Op(nn.lp_normalization),
        "LpPool": Op(nn.lp_pool),
        "MatMul": Op(m.matmul, raw=(0, 1)),
        "MatMulInteger": Op(q.matmul_integer),
        "Max": Op(m.variadic(torch.maximum)),
        "MaxPool": Op(nn.max_pool),
        "Mean": Op(lambda n, *xs: m.variadic(torch.add)(n, *xs) / len(xs)),
        "MeanVarianceNormalization": Op(nn.mean_variance),
        "Min": Op(m.variadic(torch.minimum)),
        "NonZero": Op(i.non_zero, when="known"),
        "OneHot": Op(i.one_hot, raw=(1,), buffers=(2,)),
        "PRelu": Op(m.prelu, raw=(1,)),
        "Pad": Op(s.pad, raw=(1, 2, 3)),
        "QLinearConv": Op(q.qlinear_conv, buffers=ALL),
        "QLinearMatMul": Op(q.qlinear_matmul, buffers=ALL),
        "QuantizeLinear": Op(q.quantize, raw=(1, 2)),
        "RMSNormalization": Op(nn.rms_norm),
        "RNN": Op(rnn.recurrent, raw=(1, 2, 3, 4)),
        "Range": Op(s.range_, raw=(0, 1, 2)),
        "Reshape": Op(s.reshape, raw=(1,)),
        "Resize": Op(resize, raw=(1, 2, 3)),
        "Scatter": Op(i.scatter_elements, buffers=(1,)),
        "ScatterElements": Op(i.scatter_elements, buffers=(1,)),
        "ScatterND": Op(i.scatter_nd, buffers=(1,)),
        "Shape": Op(s.shape_of, raw=(0,)),
        "Size": Op(s.size_of, raw=(0,)),
        "Slice": Op(i.slice_, raw=(1, 2, 3, 4)),
        "SpaceToDepth": Op(s.space_to_depth),
        "Split": Op(s.split, raw=(1,)),
        "Squeeze": Op(s.squeeze, raw=(1,)),
        "Sum": Op(m.variadic(torch.add)),
        "Tile": Op(s.tile, raw=(1,)),
        "TopK": Op(r.topk, raw=(1,)),
        "Transpose": Op(s.transpose),
        "Trilu": Op(s.trilu, raw=(1,)),
        "Unsqueeze": Op(s.unsqueeze, raw=(1,)),
        "Upsample": Op(resize, raw=(1,)),
        "Where": Op(lambda n, c, a, b: torch.where(c, a, b)),
    }
)
"""Operator of ai.onnx -> how it is computed."""
