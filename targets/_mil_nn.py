"""MIL operations that sum over neighbours or axes: layers, pooling, norms, reductions, attention, recurrence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompile.errors import TargetError
from edgecompile.targets._mil_values import Args, Handler

_CONV: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX: tuple[Callable[..., Tensor], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE: tuple[Callable[..., Tensor], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _sides(a: Args, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    """What is padded before and after each spatial axis: [before, after, before, after, ...]."""
    kind = a.text("pad_type", "valid").lower()
    if kind == "valid":
        return [0] * (2 * len(sizes))
    if kind == "custom":
        return list(a.ints("pad", [0] * (2 * len(sizes))))
    if kind not in ("same", "same_lower"):
        raise TargetError(f"pad_type {kind} is not interpreted here")
    found = []
    for size, k, s in zip(sizes, kernel, strides, strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        less, more = total // 2, total - total // 2
        found += [less, more] if kind == "same" else [more, less]
    return found


def _padded(x: Tensor, sides: Sequence[int], value: float = 0.0) -> Tensor:
    pairs = [sides[i : i + 2] for i in range(0, len(sides), 2)]
    return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=value) if any(sides) else x


def _conv(a: Args) -> Tensor:
    x, weight = a["x"], a["weight"]
    rank = x.dim() - 2
    strides, dilations = a.ints("strides", [1] * rank), a.ints("dilations", [1] * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    sides = _sides(a, x.shape[2:], reach, strides)
    even = sides[::2] == sides[1::2]
    x, padding = (x, sides[::2]) if even else (_padded(x, sides), [0] * rank)
    return _CONV[rank - 1](x, weight, a.get("bias"), strides, padding, dilations, a.integer("groups", 1))


def _conv_transpose(a: Args) -> Tensor:
    x, weight = a["x"], a["weight"]
    rank = x.dim() - 2
    strides, dilations = a.ints("strides", [1] * rank), a.ints("dilations", [1] * rank)
    whole = _TRANSPOSED[rank - 1](x, weight, None, strides, 0, 0, a.integer("groups", 1), dilations)
    kind = a.text("pad_type", "valid").lower()
    before = a.ints("pad", [0] * (2 * rank))[::2]
    wanted = a.ints("output_shape")
    if kind == "same":
        wanted = wanted or [*whole.shape[:2], *(s * n for s, n in zip(strides, x.shape[2:], strict=True))]
        before = [max(w - n, 0) // 2 for w, n in zip(whole.shape[2:], wanted[2:], strict=True)]
    elif wanted is None:
        after = a.ints("pad", [0] * (2 * rank))[1::2]
        sizes = zip(whole.shape[2:], before, after, strict=True)
        wanted = [*whole.shape[:2], *(n - b - e for n, b, e in sizes)]
    elif kind == "valid":
        before = [0] * rank
    # an output longer than the sum (output_padding) reads zeros behind it
    short = [max(b + n - w, 0) for w, b, n in zip(whole.shape[2:], before, wanted[2:], strict=True)]
    whole = _padded(whole, [n for s in short for n in (0, s)])
    for axis, (first, size) in enumerate(zip(before, wanted[2:], strict=True), start=2):
        whole = whole.narrow(axis, first, size)
    bias = a.get("bias")
    return whole if bias is None else whole + bias.reshape([-1] + [1] * rank)


def _pool(a: Args, functions: Sequence[Callable[..., Tensor]], power: int = 1) -> Tensor:
    x = a["x"]
    kernel = a.ints("kernel_sizes")
    rank = len(kernel)
    strides = a.ints("strides", [1] * rank)
    sides = _sides(a, x.shape[2:], kernel, strides)
    ceil = a.flag("ceil_mode")
    maximum = functions is _MAX
    even = sides[::2] == sides[1::2] and all(2 * s <= k for s, k in zip(sides[::2], kernel, strict=True))
    if maximum:
        x, padding = (x, sides[::2]) if even else (_padded(x, sides, -math.inf), [0] * rank)
        return functions[rank - 1](x, kernel, strides, padding, ceil_mode=ceil)
    exclude = a.flag("exclude_padding_from_average") and power == 1
    if even:
        average = functions[rank - 1](x**power, kernel, strides, sides[::2], ceil, not exclude)
    else:
        average = functions[rank - 1](_padded(x**power, sides), kernel, strides, 0, ceil)
        if exclude:
            ones = _padded(torch.ones_like(x), sides)
            average = average / functions[rank - 1](ones, kernel, strides, 0, ceil)
    return average if power == 1 else (average * math.prod(kernel)).sqrt()


def _linear(a: Args) -> Tensor:
    return F.linear(a["x"], a["weight"], a.get("bias"))


def _matmul(a: Args) -> Tensor:
    x, y = a["x"], a["y"]
    x = x.transpose(-1, -2) if a.flag("transpose_x") and x.dim() > 1 else x
    y = y.transpose(-1, -2) if a.flag("transpose_y") and y.dim() > 1 else y
    if x.is_floating_point() != y.is_floating_point():
        x, y = x.float(), y.float()
    return torch.matmul(x, y)


def _batch_norm(a: Args) -> Tensor:
    x, eps = a["x"], a.number("epsilon", 1e-5)
    return F.batch_norm(x, a["mean"], a["variance"], a.get("gamma"), a.get("beta"), False, 0.0, eps)


def _instance_norm(a: Args) -> Tensor:
    return F.instance_norm(a["x"], None, None, a.get("gamma"), a.get("beta"), True, 0.0, a.number("epsilon", 1e-5))


def _layer_norm(a: Args) -> Tensor:
    x = a["x"]
    axes = sorted(i % x.dim() for i in a.ints("axes", list(range(x.dim()))))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + a.number("epsilon", 1e-5))
    shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
    gamma, beta = a.get("gamma"), a.get("beta")
    normal = normal if gamma is None else normal * gamma.reshape(shape)
    return normal if beta is None else normal + beta.reshape(shape)


def _l2_norm(a: Args) -> Tensor:
    x = a["x"]
    axes = list(range(-min(3, x.dim()), 0))
    return x * torch.rsqrt(x.square().sum(axes, keepdim=True) + a.number("epsilon", 1e-6))


def _response_norm(a: Args) -> Tensor:
    return F.local_response_norm(
        a["x"], a.integer("size"), a.number("alpha", 1e-4), a.number("beta", 0.75), a.number("k", 1.0)
    )


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Handler:
    def run(a: Args) -> Tensor:
        x = a["x"]
        axes = a.ints("axes") or list(range(x.dim()))
        return function(x, axes, a.flag("keep_dims"))

    return run


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((i % x.dim() for i in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(function: Callable[..., Tensor]) -> Handler:
    return lambda a: function(a["x"], a.integer("axis", -1), a.flag("keep_dims"))


def _attention(a: Args) -> Tensor:
    query, key, value, mask = a["query"], a["key"], a["value"], a.get("attn_mask")
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _activation(a: Args, key: str, default: str) -> Callable[[Tensor], Tensor]:
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": F.relu,
        "linear": lambda x: x,
    }
    name = a.text(key, default)
    if name not in known:
        raise TargetError(f"{key} {name} is not interpreted here")
    return known[name]


def _lstm(a: Args) -> tuple[Tensor, ...]:
    if "peephole" in a or "clip" in a:
        raise TargetError("peepholes and clipped cells are not interpreted here")
    directions = {"forward": ("",), "reverse": ("",), "bidirectional": ("", "_back")}[a.text("direction", "forward")]
    hidden = a["initial_h"].chunk(len(directions), -1)
    cell = a["initial_c"].chunk(len(directions), -1)
    runs = [
        _lstm_one(a, suffix, h, c, backwards=suffix == "_back" or a.text("direction") == "reverse")
        for suffix, h, c in zip(directions, hidden, cell, strict=True)
    ]
    sequence, last, state = (torch.cat(parts, -1) for parts in zip(*runs, strict=True))
    return (sequence if a.flag("output_sequence") else last[None]), last, state


def _lstm_one(a: Args, suffix: str, h: Tensor, c: Tensor, backwards: bool) -> tuple[Tensor, Tensor, Tensor]:
    gate = _activation(a, "recurrent_activation", "sigmoid")
    inner, outer = _activation(a, "cell_activation", "tanh"), _activation(a, "activation", "tanh")
    steps = F.linear(a["x"], a["weight_ih" + suffix], a.get("bias" + suffix))
    weight, found = a["weight_hh" + suffix], []
    for step in reversed(steps) if backwards else steps:
        i, f, o, z = (step + F.linear(h, weight)).chunk(4, -1)
        c = gate(f) * c + gate(i) * inner(z)
        h = gate(o) * outer(c)
        found.append(h)
    return torch.stack(found[::-1] if backwards else found), h, c


def _gru(a: Args) -> tuple[Tensor, ...]:
    gate, outer = _activation(a, "recurrent_activation", "sigmoid"), _activation(a, "activation", "tanh")
    h, backwards = a["initial_h"], a.text("direction", "forward") == "reverse"
    steps = F.linear(a["x"], a["weight_ih"], a.get("bias"))
    size, found = h.shape[-1], []
    inner_bias = a.get("input_bias")
    weight = a["weight_hh"]
    for step in reversed(steps) if backwards else steps:
        step = step if inner_bias is None else step + inner_bias
        rec = F.linear(h, weight)
        r = gate(step[:, :size] + rec[:, :size])
        z = gate(step[:, 2 * size :] + rec[:, 2 * size :])
        o = outer(step[:, size : 2 * size] + r * rec[:, size : 2 * size])
        h = (1 - z) * o + z * h
        found.append(h)
    sequence = torch.stack(found[::-1] if backwards else found)
    return (sequence if a.flag("output_sequence") else h[None]), h


def _norm(power: int) -> Callable[[Tensor, list[int], bool], Any]:
    return lambda x, axes, keep: x.abs().sum(axes, keep) if power == 1 else x.square().sum(axes, keep).sqrt()


LAYERS: Mapping[str, Handler] = MappingProxyType(
    {
        "conv": _conv,
        "conv_transpose": _conv_transpose,
        "max_pool": lambda a: _pool(a, _MAX),
        "avg_pool": lambda a: _pool(a, _AVERAGE),
        "l2_pool": lambda a: _pool(a, _AVERAGE, 2),
        "linear": _linear,
        "matmul": _matmul,
        "einsum": lambda a: torch.einsum(a.text("equation"), *a.many("values")),
        "batch_norm": _batch_norm,
        "instance_norm": _instance_norm,
        "layer_norm": _layer_norm,
        "l2_norm": _l2_norm,
        "local_response_norm": _response_norm,
        "reduce_sum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
        "reduce_mean": _reduce(lambda x, axes, keep: x.float().mean(axes, keep)),
        "reduce_max": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
        "reduce_min": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
        "reduce_prod": _reduce(_product),
        "reduce_l1_norm": _reduce(_norm(1)),
        "reduce_l2_norm": _reduce(_norm(2)),
        "reduce_sum_square": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
        "reduce_log_sum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
        "reduce_log_sum_exp": _reduce(lambda x, axes, keep: x.logsumexp(axes, keep)),
        "reduce_argmax": _arg(torch.argmax),
        "reduce_argmin": _arg(torch.argmin),
        "scaled_dot_product_attention": _attention,
        "lstm": _lstm,
        "gru": _gru,
    }
)
