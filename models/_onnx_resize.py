"""ONNX Resize and Upsample: torch's interpolation where it is the same, index tables where it is not."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecompile.models._onnx_values import Node, Refusal, Value, ints, numbers

_TORCH_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(n: Node, x: Tensor, *operands: Value) -> Tensor:
    """Resize (and Upsample) along any axes; crops by region of interest and antialiasing are refused."""
    mode, how, scales, target = _options(n, x, operands)
    axes = [i for i, (s, t) in enumerate(zip(x.shape, target, strict=True)) if scales[i] != 1 or not _same(s, t)]
    if not axes:
        return x
    if any(not isinstance(v, int) for a in axes for v in (x.shape[a], target[a])):
        raise Refusal("it resizes an axis of dynamic size")
    if how == "align_corners" and any(abs(scales[a] * x.shape[a] - target[a]) > 1e-4 for a in axes):
        raise Refusal("align_corners with scales that give no whole size (ONNX and ONNX Runtime differ)")
    if (fast := _native(n, x, mode, how, scales, target, axes)) is not None:
        return fast
    for axis in axes:
        x = _along(n, x, axis, int(target[axis]), scales[axis], mode, how)
    return x


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, int) == isinstance(b, int) and bool(a == b)  # a size against a symbol would fix the symbol


def _options(n: Node, x: Tensor, operands: tuple[Value, ...]) -> tuple[str, str, list[float], list[Any]]:
    """The mode, the coordinate transformation, a scale and a size for every axis."""
    mode, how = n.get("mode", "nearest"), n.get("coordinate_transformation_mode", "half_pixel")
    if n.version < 11:
        how, raw, wanted = "asymmetric", (operands[0] if operands else None), None
        factors = numbers(raw, "scales") if raw is not None else n.get("scales")
    else:
        padded = [*operands, None, None, None]
        raw, wanted = padded[1], padded[2]
        factors = numbers(raw, "scales") if raw is not None else []
    if n.get("antialias", 0):
        raise Refusal("antialiasing")
    if how == "tf_crop_and_resize":
        raise Refusal("a region of interest (tf_crop_and_resize)")
    which = [a % x.dim() for a in n.get("axes") or range(x.dim())]
    scales, target = [1.0] * x.dim(), list(x.shape)
    if factors:
        for axis, factor in zip(which, factors, strict=True):
            scales[axis] = factor
            target[axis] = target[axis] if factor == 1 else math.floor(x.shape[axis] * factor)
        return mode, how, scales, target
    sizes = ints(wanted, "sizes") if wanted is not None else []
    if not sizes:
        raise Refusal("neither scales nor sizes")
    policy = n.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        pick = min if policy == "not_larger" else max
        factor = pick(s / x.shape[a] for a, s in zip(which, sizes, strict=True))
        for axis in which:
            scales[axis], target[axis] = factor, math.floor(factor * x.shape[axis] + 0.5)
        return mode, how, scales, target
    for axis, size in zip(which, sizes, strict=True):
        target[axis] = size
        if not _same(size, x.shape[axis]) and isinstance(x.shape[axis], int):
            scales[axis] = size / x.shape[axis]
    return mode, how, scales, target


def _native(
    n: Node, x: Tensor, mode: str, how: str, scales: list[float], target: list[Any], axes: list[int]
) -> Tensor | None:
    """One torch interpolation when it reads the same places."""
    spatial = x.dim() - 2
    if spatial not in _TORCH_LINEAR or min(axes) < 2 or not x.is_floating_point():
        return None
    size, exact = (
        [int(t) for t in target[2:]],
        all(abs(scales[a] * x.shape[a] - target[a]) < 1e-6 for a in axes),
    )
    if mode == "nearest":
        floors = n.get("nearest_mode", "round_prefer_floor") == "floor" or n.version < 11
        whole = all(scales[a] >= 1 and scales[a] == int(scales[a]) for a in axes)
        halves = how in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel")
        rounds = n.get("nearest_mode", "round_prefer_floor") in ("round_prefer_floor", "round_prefer_ceil")
        if whole and ((how == "asymmetric" and floors) or (halves and rounds)):
            return F.interpolate(x, size, mode="nearest")
        return None
    if mode == "linear" and exact:
        if how in ("half_pixel", "half_pixel_symmetric") or (how == "pytorch_half_pixel" and min(size) > 1):
            return F.interpolate(x, size, mode=_TORCH_LINEAR[spatial], align_corners=False)
        if how == "align_corners" and min(size) > 1:
            return F.interpolate(x, size, mode=_TORCH_LINEAR[spatial], align_corners=True)
    if mode == "cubic" and exact and spatial == 2 and not n.get("exclude_outside", 0):
        if n.get("cubic_coeff_a", -0.75) == -0.75 and how == "half_pixel":
            return F.interpolate(x, size, mode="bicubic", align_corners=False)
        if n.get("cubic_coeff_a", -0.75) == -0.75 and how == "align_corners" and min(size) > 1:
            return F.interpolate(x, size, mode="bicubic", align_corners=True)
    return None


def _place(how: str, i: int, scale: float, size: int, out: int) -> float:
    """Where in the input output place `i` reads."""
    match how:
        case "asymmetric":
            return i / scale
        case "align_corners":
            return i * (size - 1) / (out - 1) if out > 1 else 0.0
        case "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if out > 1 else 0.0
        case "half_pixel_symmetric":
            adjust = out / (scale * size)
            return size / 2 * (1 - adjust) + (i + 0.5) / scale - 0.5
        case "half_pixel":
            return (i + 0.5) / scale - 0.5
        case _:
            raise Refusal(f"coordinate transformation {how}")


def _nearest(rule: str, place: float) -> int:
    match rule:
        case "floor":
            return math.floor(place)
        case "ceil":
            return math.ceil(place)
        case "round_prefer_ceil":
            return math.floor(place + 0.5)
        case _:
            return math.ceil(place - 0.5)


def _cubic(t: float, a: float) -> list[float]:
    def near(d: float) -> float:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: float) -> float:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(1 + t), near(t), near(1 - t), far(2 - t)]


def _along(n: Node, x: Tensor, axis: int, out: int, scale: float, mode: str, how: str) -> Tensor:
    """One axis at a time: a table of indices for nearest, a small matrix for linear and cubic."""
    size = int(x.shape[axis])
    places = [_place(how, i, scale, size, out) for i in range(out)]
    if mode == "nearest":
        rule = "floor" if n.version < 11 else n.get("nearest_mode", "round_prefer_floor")
        table = [min(max(_nearest(rule, p), 0), size - 1) for p in places]
        return torch.index_select(x, axis, n.stored(f"_rows_{axis}", lambda: torch.tensor(table)))
    weights = [[0.0] * size for _ in range(out)]
    for i, place in enumerate(places):
        if mode == "linear":
            place = min(max(place, 0.0), size - 1.0)
        base = math.floor(place)
        t = place - base
        taps, first = ([1 - t, t], base) if mode == "linear" else (_cubic(t, n.get("cubic_coeff_a", -0.75)), base - 1)
        outside = bool(n.get("exclude_outside", 0)) and mode == "cubic"
        taps = [0.0 if outside and not 0 <= first + j < size else w for j, w in enumerate(taps)]
        total = sum(taps) if outside else 1.0
        for j, weight in enumerate(taps):
            weights[i][min(max(first + j, 0), size - 1)] += weight / total
    matrix = n.stored(f"_weights_{axis}", lambda: torch.tensor(weights, dtype=x.dtype).t().contiguous())
    return torch.matmul(x.transpose(axis, -1), matrix).transpose(axis, -1)
