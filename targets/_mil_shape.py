"""MIL operations that move numbers: shapes, slices, gathers, scatters, pads, sorts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompile.errors import TargetError
from edgecompile.targets._mil_values import Args, Handler

_PADS = MappingProxyType({"reflect": "reflect", "reflection": "reflect", "replicate": "edge", "replication": "edge"})
_REDUCES = MappingProxyType({"mul": "prod", "max": "amax", "min": "amin"})


def _reshape(a: Args) -> Tensor:
    x, sizes = a["x"], a.ints("shape")
    lead = len(x.shape) - len(sizes)
    return x.reshape([x.shape[i] if n == 0 and lead == 0 else n for i, n in enumerate(sizes)])


def _expand_dims(a: Args) -> Tensor:
    x = a["x"]
    axes = a.ints("axes")
    rank = x.dim() + len(axes)
    for axis in sorted(i % rank for i in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Args) -> Tensor:
    x = a["x"]
    return x.squeeze() if "axes" not in a else x.squeeze(tuple(a.ints("axes")))


def _concat(a: Args) -> Tensor:
    values, axis = a.many("values"), a.integer("axis")
    if not a.flag("interleave"):
        return torch.cat(values, axis)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def _split(a: Args) -> tuple[Tensor, ...]:
    x, axis = a["x"], a.integer("axis")
    sizes = a.ints("split_sizes")
    if sizes is None:
        count = a.integer("num_splits")
        sizes = [x.shape[axis] // count] * count
    return torch.split(x, sizes, axis)


def _places(a: Args, x: Tensor) -> tuple[Any, ...]:
    """One index an axis, as numpy reads it."""
    begin, end = a.ints("begin"), a.ints("end")
    count = len(begin)
    stride = a.ints("stride", [1] * count)
    no_begin, no_end, squeeze = (a.bools(f"{k}_mask", count) for k in ("begin", "end", "squeeze"))
    return tuple(
        begin[i] if squeeze[i] else slice(None if no_begin[i] else begin[i], None if no_end[i] else end[i], stride[i])
        for i in range(count)
    )


def _slice(a: Args) -> Tensor:
    x = a["x"]
    return torch.from_numpy(np.array(x.numpy()[_places(a, x)]))


def _slice_update(a: Args) -> Tensor:
    x = a["x"].clone()
    x.numpy()[_places(a, x)] = a["update"].numpy()
    return x


def _slice_by_size(a: Args) -> Tensor:
    x = a["x"]
    for axis, (first, size) in enumerate(zip(a.ints("begin"), a.ints("size"), strict=True)):
        first %= x.shape[axis] or 1
        x = x.narrow(axis, first, x.shape[axis] - first if size == -1 else size)
    return x


def _indices(a: Args, size: int) -> Tensor:
    index = a["indices"].long()
    return torch.where(index < 0, index + size, index)


def _gather(a: Args) -> Tensor:
    x, batch = a["x"], a.integer("batch_dims", 0)
    axis = a.integer("axis", 0) % x.dim()
    index = _indices(a, x.shape[axis])
    if not batch:
        return x.index_select(axis, index.reshape(-1)).reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])
    lead = x.shape[:batch]
    pairs = zip(x.flatten(0, batch - 1), index.flatten(0, batch - 1), strict=True)
    axis -= batch
    rows = [
        one.index_select(axis, i.reshape(-1)).reshape([*one.shape[:axis], *i.shape, *one.shape[axis + 1 :]])
        for one, i in pairs
    ]
    stacked = torch.stack(rows)
    return stacked.reshape([*lead, *stacked.shape[1:]])


def _gather_along(a: Args) -> Tensor:
    x = a["x"]
    axis = a.integer("axis", 0) % x.dim()
    return torch.take_along_dim(x, _indices(a, x.shape[axis]), axis)


def _gather_nd(a: Args) -> Tensor:
    x, index, batch = a["x"], a["indices"].long(), a.integer("batch_dims", 0)
    if not batch:
        return x[tuple(index.unbind(-1))]
    pairs = zip(x.flatten(0, batch - 1), index.flatten(0, batch - 1), strict=True)
    stacked = torch.stack([one[tuple(i.unbind(-1))] for one, i in pairs])
    return stacked.reshape([*x.shape[:batch], *stacked.shape[1:]])


def _scatter(a: Args) -> Tensor:
    data, updates, mode = a["data"].clone(), a["updates"], a.text("mode", "add")
    axis = a.integer("axis", 0) % data.dim()
    index = _indices(a, data.shape[axis])
    updates = updates.to(data.dtype).reshape([*data.shape[:axis], index.numel(), *data.shape[axis + 1 :]])
    index = index.reshape(-1)
    match mode:
        case "update":
            return data.index_copy_(axis, index, updates)
        case "add" | "sub":
            return data.index_add_(axis, index, updates if mode == "add" else -updates)
        case "mul" | "max" | "min":
            return data.index_reduce_(axis, index, updates, _REDUCES[mode])
    raise TargetError(f"mode {mode} is not interpreted here")


def _scatter_along(a: Args) -> Tensor:
    data, mode = a["data"], a.text("mode", "add")
    updates = a["updates"].to(data.dtype)
    axis = a.integer("axis", 0) % data.dim()
    index = _indices(a, data.shape[axis])
    match mode:
        case "update":
            return data.scatter(axis, index, updates)
        case "add" | "sub":
            return data.scatter_add(axis, index, updates if mode == "add" else -updates)
        case "mul" | "max" | "min":
            return data.scatter_reduce(axis, index, updates, _REDUCES[mode])
    raise TargetError(f"mode {mode} is not interpreted here")


def _scatter_nd(a: Args) -> Tensor:
    data, mode = a["data"], a.text("mode", "add")
    updates = a["updates"].to(data.dtype)
    if mode not in ("update", "add", "sub"):
        raise TargetError(f"mode {mode} is not interpreted here")
    places = tuple(a["indices"].long().unbind(-1))
    return data.index_put(places, -updates if mode == "sub" else updates, accumulate=mode != "update")


def _pad(a: Args) -> Tensor:
    x, sides, mode = a["x"], a.ints("pad"), a.text("mode", "constant")
    pairs = [(0, 0)] * (x.dim() - len(sides) // 2)
    pairs += [(sides[i], sides[i + 1]) for i in range(0, len(sides), 2)]
    if mode == "constant":
        return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=a.number("constant_val", 0.0))
    if mode not in _PADS:
        raise TargetError(f"mode {mode} is not interpreted here")
    kind: Any = _PADS[mode]
    return torch.from_numpy(np.pad(x.numpy(), pairs, mode=kind))


def _topk(a: Args) -> tuple[Tensor, ...]:
    values, places = a["x"].topk(a.integer("k", 1), a.integer("axis", -1), not a.flag("ascending"))
    return (values, places) if a.flag("return_indices", True) else (values,)


def _cumsum(a: Args) -> Tensor:
    x, axis = a["x"], a.integer("axis", 0)
    x = x.flip(axis) if a.flag("reverse") else x
    total = x.cumsum(axis)
    total = total - x if a.flag("exclusive") else total
    return total.flip(axis) if a.flag("reverse") else total


def _range(a: Args) -> Tensor:
    start, end, step = a["start"], a["end"], a["step"]
    if start.is_floating_point():
        return torch.arange(float(start), float(end), float(step))
    return torch.arange(int(start), int(end), int(step), dtype=torch.int32)


def _one_hot(a: Args) -> Tensor:
    index, count = a["indices"].long(), a.integer("one_hot_vector_size")
    axis = a.integer("axis", -1)
    hot = index.unsqueeze(axis) == torch.arange(count).reshape([-1] + [1] * (index.dim() - axis % (index.dim() + 1)))
    on = a.get("on_value")
    off = a.get("off_value")
    return torch.where(hot, torch.ones(()) if on is None else on, torch.zeros(()) if off is None else off)


def _band_part(a: Args) -> Tensor:
    x, lower, upper = a["x"], a.integer("lower", -1), a.integer("upper", -1)
    x = x if lower < 0 else x.triu(-lower)
    return x if upper < 0 else x.tril(upper)


def _windows(a: Args) -> Tensor:
    axis = a.integer("axis") % a["x"].dim()
    return a["x"].unfold(axis, a.integer("size"), a.integer("stride", 1)).movedim(-1, axis + 1)


def _depth_to_space(a: Args) -> Tensor:
    x, b = a["x"], a.integer("block_size")
    n, c, h, w = x.shape
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(a: Args) -> Tensor:
    x, b = a["x"], a.integer("block_size")
    n, c, h, w = x.shape
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def _fill(a: Args) -> Tensor:
    value = a.get("value")
    value = torch.zeros(()) if value is None else value
    return value.reshape(()).expand(a.ints("shape")).clone()


def _crop(a: Args) -> Tensor:
    x, (top, bottom), (left, right) = a["x"], a.ints("crop_height"), a.ints("crop_width")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _flatten(a: Args) -> Tensor:
    x, axis = a["x"], a.integer("axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


SHAPES: Mapping[str, Handler] = MappingProxyType(
    {
        "reshape": _reshape,
        "transpose": lambda a: a["x"].permute(a.ints("perm")),
        "expand_dims": _expand_dims,
        "squeeze": _squeeze,
        "flatten2d": _flatten,
        "shape": lambda a: torch.tensor(a["x"].shape, dtype=torch.int32),
        "concat": _concat,
        "split": _split,
        "stack": lambda a: torch.stack(a.many("values"), a.integer("axis")),
        "tile": lambda a: a["x"].tile(a.ints("reps")),
        "slice_by_index": _slice,
        "slice_by_size": _slice_by_size,
        "slice_update": _slice_update,
        "gather": _gather,
        "gather_along_axis": _gather_along,
        "gather_nd": _gather_nd,
        "scatter": _scatter,
        "scatter_along_axis": _scatter_along,
        "scatter_nd": _scatter_nd,
        "pad": _pad,
        "reverse": lambda a: a["x"].flip(a.ints("axes", list(range(a["x"].dim())))),
        "topk": _topk,
        "argsort": lambda a: a["x"].argsort(dim=a.integer("axis", -1), descending=not a.flag("ascending"), stable=True),
        "cumsum": _cumsum,
        "range_1d": _range,
        "one_hot": _one_hot,
        "non_zero": lambda a: a["x"].nonzero(),
        "fill": _fill,
        "fill_like": lambda a: torch.full_like(a["ref_tensor"], a.number("value", 0.0), dtype=torch.float32),
        "crop": _crop,
        "band_part": _band_part,
        "sliding_windows": _windows,
        "depth_to_space": _depth_to_space,
        "space_to_depth": _space_to_depth,
        "pixel_shuffle": lambda a: F.pixel_shuffle(a["x"], a.integer("upscale_factor")),
        "pixel_unshuffle": lambda a: F.pixel_unshuffle(a["x"], a.integer("downscale_factor")),
    }
)
