"""MIL operations that resample images: each is one weighted sum of neighbours per axis, or a grid sample."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompile.errors import TargetError
from edgecompile.targets._mil_values import Args, Handler


def _points(size: int, wanted: int, mode: str) -> Tensor:
    """Where each output reads along an axis of `size`, as the MIL reference defines its sampling modes."""
    i = torch.arange(wanted, dtype=torch.float64)
    match mode:
        case "STRICT_ALIGN_CORNERS" | "ALIGN_CORNERS":
            if wanted == 1:
                return torch.full((1,), (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0, dtype=torch.float64)
            points = i * ((size - 1) / (wanted - 1))
        case "DEFAULT":
            points = i * (size / wanted)
        case "OFFSET_CORNERS":
            delta = max(1, size - 1) / wanted
            points = 0.5 * delta + i * delta
        case "UNALIGN_CORNERS":
            points = (i + 0.5) * (size / wanted) - 0.5
        case _:
            raise TargetError(f"sampling mode {mode} is not interpreted here")
    return points.clamp(0, size - 1)


def _linear(x: Tensor, axis: int, points: Tensor) -> Tensor:
    low = points.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    weight = (points - low).to(x.dtype).reshape([-1] + [1] * (-1 - axis))
    return x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight


def _sampled(x: Tensor, sizes: tuple[int, int], mode: str) -> Tensor:
    for axis, wanted in zip((-2, -1), sizes, strict=True):
        x = _linear(x, axis, _points(x.shape[axis], wanted, mode))
    return x


def _nearest(x: Tensor, sizes: tuple[int, ...], scales: tuple[float, ...] | None = None) -> Tensor:
    for i, wanted in enumerate(sizes):
        axis = i - len(sizes)
        step = x.shape[axis] / wanted if scales is None else 1 / scales[i]
        index = (torch.arange(wanted) * step).floor().long().clamp(max=x.shape[axis] - 1)
        x = x.index_select(axis, index)
    return x


def _target(a: Args) -> tuple[int, int]:
    return a.integer("target_size_height", 1), a.integer("target_size_width", 1)


def _scales(a: Args) -> tuple[tuple[float, float], tuple[int, int]]:
    scales = a.number("scale_factor_height", 1.0), a.number("scale_factor_width", 1.0)
    # fp16 or fp32 factors such as 1.9999999 are meant to give whole sizes
    height, width = (int(n * s + 1e-4) for n, s in zip(a["x"].shape[-2:], scales, strict=True))
    return scales, (height, width)


def _upsample_nearest(a: Args) -> Tensor:
    scales, sizes = _scales(a)
    whole = all(s == int(s) for s in scales)
    return _nearest(a["x"], sizes, None if whole else scales)


def _upsample_bilinear(a: Args) -> Tensor:
    align = a.flag("align_corners", True)
    if align:
        return _sampled(a["x"], _scales(a)[1], "STRICT_ALIGN_CORNERS")
    half = a.flag("half_pixel_centers", True)
    return _sampled(a["x"], _scales(a)[1], "UNALIGN_CORNERS" if half else "DEFAULT")


def _resize(a: Args) -> Tensor:
    x, count = a["x"], a.integer("resized_dims")
    wanted = tuple(n or x.shape[i - count] for i, n in enumerate(a.ints("shape")[-count:]))
    mode, sampling = a.text("interpolation_mode", "LINEAR"), a.text("sampling_mode", "DEFAULT")
    if mode == "NEAREST_NEIGHBOR":
        if sampling != "DEFAULT":
            raise TargetError(f"nearest neighbours with sampling mode {sampling} are not interpreted here")
        return _nearest(x, wanted)
    for i, size in enumerate(wanted):
        x = _linear(x, i - count, _points(x.shape[i - count], size, sampling))
    return x


def _resample(a: Args) -> Tensor:
    x, grid = a["x"], a["coordinates"].float()
    mode, padding = a.text("sampling_mode"), a.text("padding_mode")
    corners, coordinates = a.flag("align_corners"), a.text("coordinates_mode")
    if padding == "constant" and a.number("padding_value", 0.0) != 0:
        raise TargetError("a padding value other than zero is not interpreted here")
    known = {"constant": "zeros", "border": "border", "reflection": "reflection"}
    if padding not in known or mode not in ("bilinear", "nearest"):
        raise TargetError(f"sampling {mode} with padding {padding} is not interpreted here")
    if coordinates == "normalized_zero_to_one":
        grid = grid * 2 - 1
    elif coordinates == "unnormalized":
        size = torch.tensor([x.shape[-1], x.shape[-2]], dtype=torch.float32)
        grid = grid * 2 / (size - 1).clamp(min=1) - 1 if corners else (grid * 2 + 1) / size - 1
    return F.grid_sample(x, grid, mode, known[padding], corners)


RESIZES: Mapping[str, Handler] = MappingProxyType(
    {
        "resize_bilinear": lambda a: _sampled(a["x"], _target(a), a.text("sampling_mode", "DEFAULT")),
        "resize_nearest_neighbor": lambda a: _nearest(a["x"], _target(a)),
        "upsample_nearest_neighbor": _upsample_nearest,
        "upsample_bilinear": _upsample_bilinear,
        "resize": _resize,
        "resample": _resample,
    }
)
