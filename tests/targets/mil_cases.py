"""One program of one operation for each MIL operation that the interpreter knows, with what it must give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """`build(mb, *inputs)` makes the operation, `right(*inputs)` says what it gives."""

    build: Callable[..., Any]
    right: Callable[..., Any]
    inputs: tuple[Tensor, ...]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y, IMAGE = noise(2, 3, 4), noise(2, 3, 4, seed=2), noise(2, 4, 6, 5)
POSITIVE, UNIT = X.abs() + 0.1, X.tanh() * 0.9
STEPS = torch.tensor([[0.1], [0.2], [0.3]])
WHOLE = torch.tensor([[2, 0, 1], [1, 1, 3]], dtype=torch.int32)


def _f(value: Any) -> Any:
    return np.asarray(value, dtype=np.float32)


def _i(*values: int) -> Any:
    return np.asarray(values, dtype=np.int32)


def _unary(name: str, right: Callable[[Tensor], Tensor], x: Tensor = X, **options: Any) -> list[tuple[str, Case]]:
    return [(name, Case(lambda mb, v: getattr(mb, name)(x=v, **options), right, (x,)))]


def _binary(name: str, right: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> list[tuple[str, Case]]:
    return [(name, Case(lambda mb, x, y: getattr(mb, name)(x=x, y=y), right, inputs or (X, Y)))]


def _of(name: str, right: Callable[..., Any], *inputs: Tensor, keys: str = "x", **options: Any) -> tuple[str, Case]:
    """Inputs in the order of `keys`, the rest constant."""
    names = keys.split()

    def build(mb: Any, *given: Any) -> Any:
        return getattr(mb, name)(**dict(zip(names, given, strict=True)), **options)

    return name, Case(build, right, inputs)


def _logic(name: str, right: Callable[[Tensor, Tensor], Tensor]) -> tuple[str, Case]:
    def build(mb: Any, x: Any, y: Any) -> Any:
        pair = (mb.greater(x=v, y=np.float32(0)) for v in (x, y))
        x, y = pair
        return mb.cast(x=getattr(mb, name)(x=x, y=y), dtype="fp32")

    return name, Case(build, lambda x, y: right(x > 0, y > 0).float(), (X, Y))


def _compare(name: str, right: Callable[[Tensor, Tensor], Tensor]) -> tuple[str, Case]:
    def build(mb: Any, x: Any, y: Any) -> Any:
        return mb.cast(x=getattr(mb, name)(x=x, y=y), dtype="fp32")

    halves = (X * 2).round(), (Y * 2).round()
    return name, Case(build, lambda x, y: right(x, y).float(), halves)


ELEMENTWISE = [
    *_binary("add", torch.add),
    *_binary("sub", torch.sub),
    *_binary("mul", torch.mul),
    *_binary("maximum", torch.maximum),
    *_binary("minimum", torch.minimum),
    *_binary("real_div", torch.div, X, POSITIVE),
    *_binary("floor_div", lambda x, y: torch.floor(x / y), X * 4, POSITIVE),
    *_binary("mod", lambda x, y: x - y * torch.floor(x / y), X * 4, POSITIVE),
    *_binary("pow", torch.pow, POSITIVE, Y),
    *[
        _compare(name, right)
        for name, right in {
            "equal": torch.eq,
            "not_equal": torch.ne,
            "less": torch.lt,
            "less_equal": torch.le,
            "greater": torch.gt,
            "greater_equal": torch.ge,
        }.items()
    ],
    _logic("logical_and", torch.logical_and),
    _logic("logical_or", torch.logical_or),
    _logic("logical_xor", torch.logical_xor),
    (
        "logical_not",
        Case(
            lambda mb, x: mb.cast(x=mb.logical_not(x=mb.greater(x=x, y=np.float32(0))), dtype="fp32"),
            lambda x: (x <= 0).float(),
            (X,),
        ),
    ),
    *[
        one
        for name in (
            *("abs", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round"),
            *("sign", "sin", "sinh", "square", "tan", "tanh", "sigmoid", "relu"),
        )
        for one in _unary(name, getattr(torch, name))
    ],
    *[one for name in ("acos", "asin", "atan", "atanh") for one in _unary(name, getattr(torch, name), UNIT)],
    *_unary("sqrt", torch.sqrt, POSITIVE),
    *_unary("identity", lambda x: x),
    *_unary("relu6", F.relu6, X * 8),
    *_unary("silu", F.silu),
    *_unary("softplus", F.softplus),
    *_unary("softsign", F.softsign),
    *_unary("inverse", lambda x: 1 / (x + 0.01), POSITIVE, epsilon=np.float32(0.01)),
    *_unary("rsqrt", lambda x: 1 / (x + 0.01).sqrt(), POSITIVE, epsilon=np.float32(0.01)),
    *_unary("log", lambda x: (x + 0.01).log(), POSITIVE, epsilon=np.float32(0.01)),
    *_unary("clip", lambda x: x.clamp(-0.5, 0.7), alpha=np.float32(-0.5), beta=np.float32(0.7)),
    *_unary("threshold", lambda x: x.clamp(min=0.2), alpha=np.float32(0.2)),
    *_unary("gelu", F.gelu, mode="EXACT"),
    *_unary("gelu", lambda x: F.gelu(x, approximate="tanh"), mode="TANH_APPROXIMATION"),
    *_unary("gelu", lambda x: x / (1 + torch.exp(-1.702 * x)), mode="SIGMOID_APPROXIMATION"),
    *_unary("leaky_relu", lambda x: F.leaky_relu(x, 0.2), alpha=np.float32(0.2)),
    *_unary("elu", lambda x: F.elu(x, 1.3), alpha=np.float32(1.3)),
    *_unary("prelu", lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4])), IMAGE, alpha=_f([0.1, 0.2, 0.3, 0.4])),
    *_unary("sigmoid_hard", lambda x: (0.3 * x + 0.4).clamp(0, 1), alpha=np.float32(0.3), beta=np.float32(0.4)),
    *_unary("scaled_tanh", lambda x: 1.2 * (0.7 * x).tanh(), alpha=np.float32(1.2), beta=np.float32(0.7)),
    *_unary("linear_activation", lambda x: 1.2 * x + 0.7, alpha=np.float32(1.2), beta=np.float32(0.7)),
    *_unary("thresholded_relu", lambda x: F.threshold(x, 0.3, 0.0), alpha=np.float32(0.3)),
    *_unary("clamped_relu", lambda x: F.leaky_relu(x, 0.2).clamp(max=0.9), alpha=np.float32(0.2), beta=np.float32(0.9)),
    *_unary(
        "softplus_parametric",
        lambda x: torch.tensor([1.0, 2, 3])[:, None] * torch.log1p(torch.exp(torch.tensor([0.5, 1, 2])[:, None] * x)),
        alpha=_f([1, 2, 3]),
        beta=_f([0.5, 1, 2]),
    ),
    _of("softmax", lambda x: x.softmax(1), X, axis=1),
    (
        "select",
        Case(
            lambda mb, x, y: mb.select(cond=mb.greater(x=x, y=np.float32(0)), a=x, b=y),
            lambda x, y: torch.where(x > 0, x, y),
            (X, Y),
        ),
    ),
    ("cast", Case(lambda mb, x: mb.cast(x=x, dtype="int32"), lambda x: x.trunc().int(), (X * 5,))),
    (
        "quantize",
        Case(
            lambda mb, x: mb.cast(
                x=mb.quantize(input=x, scale=np.float32(0.02), zero_point=np.uint8(130), output_dtype="uint8"),
                dtype="int32",
            ),
            lambda x: ((x / 0.02).round() + 130).clamp(0, 255).int(),
            (X,),
        ),
    ),
    (
        "dequantize",
        Case(
            lambda mb, x: mb.dequantize(
                input=mb.quantize(input=x, scale=_f([0.1, 0.2, 0.3]), axis=1, output_dtype="int8"),
                scale=_f([0.1, 0.2, 0.3]),
                axis=1,
            ),
            lambda x: (x / STEPS).round().clamp(-128, 127) * STEPS,
            (X,),
        ),
    ),
]
