"""MIL operations that work number by number: arithmetic, comparisons, activations, casts, quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompile.errors import TargetError
from edgecompile.targets._mil_values import Args, Handler, stored

_RANGES = MappingProxyType({"int8": (-128, 127), "uint8": (0, 255)})
_MIL = MappingProxyType(
    {
        "fp16": "FLOAT16",
        "fp32": "FLOAT32",
        "bool": "BOOL",
        "int8": "INT8",
        "uint8": "UINT8",
        "int16": "INT16",
        "uint16": "UINT16",
        "int32": "INT32",
        "int64": "INT64",
    }
)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Handler:
    return lambda a: function(a["x"], a["y"])


def _unary(function: Callable[[Tensor], Tensor]) -> Handler:
    return lambda a: function(a["x"])


def _per_channel(value: Tensor, x: Tensor, axis: int = 1) -> Tensor:
    """A vector along one axis of `x`; a number as it is."""
    if value.numel() == 1:
        return value.reshape(())
    return value.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def _clip(a: Args) -> Tensor:
    return a["x"].clamp(a.number("alpha", -float("inf")), a.number("beta", float("inf")))


def _gelu(a: Args) -> Tensor:
    x = a["x"]
    match a.text("mode", "EXACT"):
        case "EXACT":
            return F.gelu(x)
        case "TANH_APPROXIMATION":
            return F.gelu(x, approximate="tanh")
        case "SIGMOID_APPROXIMATION":
            return x * torch.sigmoid(1.702 * x)
        case mode:
            raise TargetError(f"mode {mode} is not interpreted here")


def _clamped(a: Args) -> Tensor:
    x = a["x"]
    return torch.where(x >= 0, x, a.number("alpha") * x).clamp(max=a.number("beta"))


def _softplus_parametric(a: Args) -> Tensor:
    x = a["x"]
    return _per_channel(a["alpha"], x) * F.softplus(_per_channel(a["beta"], x) * x)


def _prelu(a: Args) -> Tensor:
    x = a["x"]
    return torch.where(x >= 0, x, _per_channel(a["alpha"], x) * x)


def _divide(a: Args) -> Tensor:
    x, y = a["x"], a["y"]
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _cast(a: Args) -> Tensor:
    name = a.text("dtype")
    if name not in _MIL:
        raise TargetError(f"a cast to {name} is not interpreted here")
    x = a["x"]
    return stored(x.trunc() if x.is_floating_point() and "int" in name else x, _MIL[name])


def quantize(a: Args) -> Tensor:
    """`clip(round(input / scale) + zero_point)`, ties to even."""
    x = a["input"]
    axis = a.integer("axis", 0)
    low, high = _RANGES[a.text("output_dtype")]
    zero = a.get("zero_point")
    whole = torch.round(x / _per_channel(a["scale"], x, axis))
    return (whole if zero is None else whole + _per_channel(zero, x, axis)).clamp(low, high)


def dequantize(a: Args) -> Tensor:
    """`(input - zero_point) * scale`."""
    x = a["input"]
    axis = a.integer("axis", 0)
    zero = a.get("zero_point")
    whole = x if zero is None else x - _per_channel(zero, x, axis)
    return whole.float() * _per_channel(a["scale"], x, axis)


ELEMENTWISE: Mapping[str, Handler] = MappingProxyType(
    {
        "add": _binary(torch.add),
        "sub": _binary(torch.sub),
        "mul": _binary(torch.mul),
        "real_div": _divide,
        "floor_div": _binary(torch.floor_divide),
        "mod": _binary(torch.remainder),
        "pow": _binary(torch.pow),
        "maximum": _binary(torch.maximum),
        "minimum": _binary(torch.minimum),
        "equal": _binary(torch.eq),
        "not_equal": _binary(torch.ne),
        "less": _binary(torch.lt),
        "less_equal": _binary(torch.le),
        "greater": _binary(torch.gt),
        "greater_equal": _binary(torch.ge),
        "logical_and": _binary(torch.logical_and),
        "logical_or": _binary(torch.logical_or),
        "logical_xor": _binary(torch.logical_xor),
        "logical_not": _unary(torch.logical_not),
        "abs": _unary(torch.abs),
        "acos": _unary(torch.acos),
        "asin": _unary(torch.asin),
        "atan": _unary(torch.atan),
        "atanh": _unary(torch.atanh),
        "ceil": _unary(torch.ceil),
        "cos": _unary(torch.cos),
        "cosh": _unary(torch.cosh),
        "erf": _unary(torch.erf),
        "exp": _unary(torch.exp),
        "exp2": _unary(torch.exp2),
        "floor": _unary(torch.floor),
        "identity": _unary(torch.clone),
        "round": _unary(torch.round),
        "sign": _unary(torch.sign),
        "sin": _unary(torch.sin),
        "sinh": _unary(torch.sinh),
        "sqrt": _unary(torch.sqrt),
        "square": _unary(torch.square),
        "tan": _unary(torch.tan),
        "tanh": _unary(torch.tanh),
        "relu": _unary(F.relu),
        "relu6": _unary(F.relu6),
        "sigmoid": _unary(torch.sigmoid),
        "silu": _unary(F.silu),
        "softplus": _unary(F.softplus),
        "softsign": _unary(F.softsign),
        "inverse": lambda a: 1 / (a["x"] + a.number("epsilon", 1e-4)),
        "rsqrt": lambda a: torch.rsqrt(a["x"] + a.number("epsilon", 1e-12)),
        "log": lambda a: torch.log(a["x"] + a.number("epsilon", 1e-45)),
        "clip": _clip,
        "threshold": lambda a: a["x"].clamp(min=a.number("alpha")),
        "gelu": _gelu,
        "leaky_relu": lambda a: F.leaky_relu(a["x"], a.number("alpha", 0.01)),
        "elu": lambda a: F.elu(a["x"], a.number("alpha", 1.0)),
        "prelu": _prelu,
        "sigmoid_hard": lambda a: (a.number("alpha", 0.2) * a["x"] + a.number("beta", 0.5)).clamp(0, 1),
        "scaled_tanh": lambda a: a.number("alpha", 1.0) * torch.tanh(a.number("beta", 1.0) * a["x"]),
        "linear_activation": lambda a: a.number("alpha") * a["x"] + a.number("beta", 0.0),
        "thresholded_relu": lambda a: torch.where(a["x"] >= a.number("alpha", 1.0), a["x"], torch.zeros(())),
        "clamped_relu": _clamped,
        "softplus_parametric": _softplus_parametric,
        "softmax": lambda a: torch.softmax(a["x"], a.integer("axis", -1)),
        "select": lambda a: torch.where(a["cond"].bool(), a["a"], a["b"]),
        "cast": _cast,
        "quantize": quantize,
        "dequantize": dequantize,
    }
)
