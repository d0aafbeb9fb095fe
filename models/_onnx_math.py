"""ONNX arithmetic: elementwise operators, activations, reductions, sorting, products."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecompile.models._onnx_values import Known, Node, Refusal, Value, dtype_of

Function = Callable[..., Any]


def clip(n: Node, x: Tensor, low: Value = None, high: Value = None) -> Tensor:
    """Clip: bounds are attributes before opset 11, operands after."""
    if n.version < 11:
        return torch.clamp(x, n.get("min"), n.get("max"))
    known = all(v is None or isinstance(v, Known) for v in (low, high))
    if known and low is None and high is None:
        return x
    if known:
        least, most = (v.numbers()[0] if isinstance(v, Known) else None for v in (low, high))
        if least is not None and most is not None and least > most:
            least = most  # the specification: Min(max, Max(input, min))
        if (least, most) == (0, None) and x.is_floating_point():
            return F.relu(x)
        return F.relu6(x) if (least, most) == (0, 6) and x.is_floating_point() else torch.clamp(x, least, most)
    x = torch.maximum(x, n.tensor(low)) if low is not None else x
    return torch.minimum(x, n.tensor(high)) if high is not None else x


def hard_sigmoid(n: Node, x: Tensor) -> Tensor:
    """HardSigmoid: torch's own when the slope is 1/6, so that it stays one operator."""
    alpha, beta = n.get("alpha", 0.2), n.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def prelu(n: Node, x: Tensor, slope: Value) -> Tensor:
    """PRelu; a slope per channel (`[C, 1, 1]`) stays one operator."""
    if isinstance(slope, Known) and x.dim() > 1:
        shape = tuple(slope.tensor.shape)
        channels = x.shape[1]
        if shape == (channels,) + (1,) * (x.dim() - 2) or shape == (1, channels) + (1,) * (x.dim() - 2):
            return F.prelu(x, n.folded(slope, lambda s: s.flatten()))
    return torch.where(x < 0, x * n.tensor(slope), x)


def isinf(n: Node, x: Tensor) -> Tensor:
    """IsInf with either sign left out."""
    up, down = n.get("detect_positive", 1), n.get("detect_negative", 1)
    if up and down:
        return torch.isinf(x)
    return x == (math.inf if up else -math.inf) if up or down else torch.zeros_like(x, dtype=torch.bool)


def divide(n: Node, a: Any, b: Any) -> Tensor:
    """Div: integers round towards zero."""
    whole = not (a.is_floating_point() if isinstance(a, Tensor) else b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


def power(n: Node, a: Any, b: Any) -> Tensor:
    """Pow: the result has the type of the base."""
    kind = a.dtype if isinstance(a, Tensor) else None
    if isinstance(a, Tensor) and isinstance(b, Tensor) and not a.is_floating_point() and b.is_floating_point():
        return torch.pow(a.to(b.dtype), b).to(a.dtype)
    result = torch.pow(a, b)
    return result.to(kind) if kind is not None and result.dtype != kind else result


def modulo(n: Node, a: Any, b: Any) -> Tensor:
    """Mod: the divisor's sign, or the dividend's with `fmod`."""
    return torch.fmod(a, b) if n.get("fmod", 0) else torch.remainder(a, b)


def shift(n: Node, a: Tensor, b: Tensor) -> Tensor:
    """BitShift."""
    return a << b if n.get("direction") == "LEFT" else a >> b


def variadic(combine: Callable[[Any, Any], Tensor]) -> Function:
    """Max, Min and Sum over any number of operands."""

    def run(n: Node, *values: Tensor) -> Tensor:
        result = values[0]
        for value in values[1:]:
            result = combine(result, value)
        return result

    return run


def softmax(n: Node, x: Tensor) -> Tensor:
    """Softmax, LogSoftmax, Hardmax: before opset 13 all axes from `axis` on count as one."""
    old = n.version < 13
    axis = n.get("axis", 1 if old else -1)
    axis = axis + x.dim() if axis < 0 else axis
    flat = old and axis != x.dim() - 1
    y = x.flatten(axis) if flat else x
    match n.op:
        case "Softmax":
            y = torch.softmax(y, axis)
        case "LogSoftmax":
            y = torch.log_softmax(y, axis)
        case _:
            size = y.shape[axis]
            hot = torch.arange(size).reshape(-1, *[1] * (y.dim() - 1 - axis)) == torch.argmax(y, axis, True)
            y = hot.to(x.dtype)
    return y.reshape(x.shape) if flat else y


def matmul(n: Node, a: Value, b: Value) -> Tensor:
    """MatMul; a stored matrix on the right makes it a linear layer, the weight transposed once at import."""
    if isinstance(b, Known) and b.tensor.dim() == 2 and b.tensor.is_floating_point() and not isinstance(a, Known):
        left = n.tensor(a)
        if left.dim() > 1:
            return F.linear(left, n.folded(b, lambda w: w.t().contiguous()))
    left, right = n.tensor(a), n.tensor(b)
    return torch.matmul(left, right)


def gemm(n: Node, a: Tensor, b: Value, c: Value = None) -> Tensor:
    """Gemm as a linear layer where the bias is a vector, its factors folded into the stored weights."""
    alpha, beta = n.get("alpha", 1.0), n.get("beta", 1.0)
    transposed = bool(n.get("transB", 0))
    left = a.t() if n.get("transA", 0) else a

    def weight(w: Tensor) -> Tensor:
        w = w if transposed else w.t().contiguous()
        return w * alpha if alpha != 1.0 else w

    def bias(v: Tensor) -> Tensor:
        v = v.reshape(-1) if v.dim() == 2 and v.shape[0] == 1 else v
        return v * beta if beta != 1.0 else v

    if not left.is_floating_point():
        product = torch.matmul(left, n.folded(b, weight).t())
        return product if c is None else product + n.folded(c, bias)
    w = n.folded(b, weight)
    if c is None:
        return F.linear(left, w)
    if (c.tensor if isinstance(c, Known) else n.tensor(c)).numel() == 1 or not isinstance(c, Known):
        return F.linear(left, w) + n.folded(c, bias)
    v = n.folded(c, bias)
    return F.linear(left, w, v) if v.dim() == 1 and v.shape[0] == w.shape[0] else F.linear(left, w) + v


def einsum(n: Node, *operands: Tensor) -> Tensor:
    """Einsum."""
    return torch.einsum(n.get("equation").replace(" ", ""), *operands)


def random_refused(n: Node, *_: Value) -> Tensor:
    """Random operators have no single right answer."""
    raise Refusal("its output is random")


def cast_like(n: Node, x: Tensor, like: Tensor) -> Tensor:
    """CastLike."""
    return x if x.dtype == like.dtype else x.to(like.dtype)


def cast(n: Node, x: Tensor) -> Tensor:
    """Cast; floats are cut towards zero when they become integers."""
    wanted = dtype_of(n.get("to"))
    return x if x.dtype == wanted else x.to(wanted)


def gelu(n: Node, x: Tensor) -> Tensor:
    """Gelu, exact or by tanh."""
    return F.gelu(x, approximate=n.get("approximate", "none"))


def _alone(compute: Any) -> Function:
    return lambda n, x: compute(x)


def _pair(compute: Any) -> Function:
    return lambda n, a, b: compute(a, b)


UNARY: Mapping[str, Function] = {
    **{
        name: _alone(f)
        for name, f in {
            "Abs": torch.abs,
            "Neg": torch.neg,
            "Exp": torch.exp,
            "Log": torch.log,
            "Sqrt": torch.sqrt,
            "Reciprocal": torch.reciprocal,
            "Floor": torch.floor,
            "Ceil": torch.ceil,
            "Round": torch.round,
            "Sign": torch.sign,
            "Sin": torch.sin,
            "Cos": torch.cos,
            "Tan": torch.tan,
            "Asin": torch.asin,
            "Acos": torch.acos,
            "Atan": torch.atan,
            "Sinh": torch.sinh,
            "Cosh": torch.cosh,
            "Asinh": torch.asinh,
            "Acosh": torch.acosh,
            "Atanh": torch.atanh,
            "Erf": torch.erf,
            "Sigmoid": torch.sigmoid,
            "Tanh": torch.tanh,
            "Relu": torch.relu,
            "Not": torch.logical_not,
            "BitwiseNot": torch.bitwise_not,
            "IsNaN": torch.isnan,
            "Softplus": F.softplus,
            "Softsign": F.softsign,
            "Mish": F.mish,
            "HardSwish": F.hardswish,
            "Det": torch.det,
        }.items()
    },
    "Elu": lambda n, x: F.elu(x, n.get("alpha", 1.0)),
    "Celu": lambda n, x: F.celu(x, n.get("alpha", 1.0)),
    "Selu": lambda n, x: n.get("gamma", 1.0507009873554805) * F.elu(x, n.get("alpha", 1.6732632423543772)),
    "LeakyRelu": lambda n, x: F.leaky_relu(x, n.get("alpha", 0.01)),
    "ThresholdedRelu": lambda n, x: F.threshold(x, n.get("alpha", 1.0), 0.0),
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "IsInf": isinf,
    "Cast": cast,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "Hardmax": softmax,
    "Shrink": lambda n, x: torch.where(
        x < -n.get("lambd", 0.5),
        x + n.get("bias", 0.0),
        torch.where(x > n.get("lambd", 0.5), x - n.get("bias", 0.0), torch.zeros_like(x)),
    ),
}

BINARY: Mapping[str, Function] = {
    **{
        name: _pair(f)
        for name, f in {
            "Add": torch.add,
            "Sub": torch.sub,
            "Mul": torch.mul,
            "And": torch.logical_and,
            "Or": torch.logical_or,
            "Xor": torch.logical_xor,
            "Equal": torch.eq,
            "Greater": torch.gt,
            "Less": torch.lt,
            "GreaterOrEqual": torch.ge,
            "LessOrEqual": torch.le,
            "BitwiseAnd": torch.bitwise_and,
            "BitwiseOr": torch.bitwise_or,
            "BitwiseXor": torch.bitwise_xor,
        }.items()
    },
    "Div": divide,
    "Pow": power,
    "Mod": modulo,
}
"""Operators whose known operand of one element becomes a literal."""
