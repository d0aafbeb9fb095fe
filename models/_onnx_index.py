"""ONNX indexing: slice, gather, scatter, one-hot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecompile.models._onnx_values import Known, Node, Value, ints, numbers


def slice_(n: Node, x: Tensor, *operands: Value) -> Tensor:
    """Slice, also backwards."""
    if n.version < 10:
        starts, ends, axes, steps = n.get("starts"), n.get("ends"), n.get("axes"), None
    else:
        found = [
            ints(v, w) if v is not None else None
            for v, w in zip(operands, ("starts", "ends", "axes", "steps"), strict=False)
        ]
        starts, ends, axes, steps = (*found, None, None)[:4]
    axes = axes if axes is not None else range(len(starts))
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        x = _slice_axis(x, int(axis) % x.dim(), start, end, step)
    return x


FAR = (1 << 63) - 1
"""torch's end of any axis; exporters also write the largest int32, which would bound a dynamic axis."""


def _far(place: Any) -> Any:
    if not isinstance(place, int) or abs(place) < (1 << 31) - 1:
        return place
    return FAR if place > 0 else -FAR


def _slice_axis(x: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    start, end = _far(start), _far(end)
    if step > 0:
        if isinstance(start, int) and isinstance(end, int) and (start, end, step) == (0, FAR, 1):
            return x
        forward: Tensor = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
        return forward
    size = x.shape[axis]
    first, beyond, stride = slice(start, end, step).indices(size)
    if first <= beyond:
        return x.narrow(axis, 0, 0)
    last = first - (first - beyond - 1) // -stride * -stride
    backward: Tensor = torch.ops.aten.slice.Tensor(x, axis, last, first + 1, -stride).flip(axis)
    return backward


def gather(n: Node, x: Value, indices: Value) -> Tensor:
    """Gather; rows of a stored matrix are an embedding, one known index is a select."""
    axis = n.get("axis", 0)
    table = n.tensor(x)
    axis = axis + table.dim() if axis < 0 else axis
    if isinstance(indices, Known):
        where = indices.tensor
        if where.dim() == 0:
            return table.select(axis, indices.numbers()[0])
        place = n.folded(indices, lambda i: torch.where(i < 0, i + table.shape[axis], i).flatten(), buffer=True)
    else:
        where = n.tensor(indices)
        if isinstance(x, Known) and table.dim() == 2 and axis == 0 and table.is_floating_point():
            return F.embedding(where, table)
        place = _positive(where, table.shape[axis]).flatten()
    picked = torch.index_select(table, axis, place)
    return picked.reshape(*table.shape[:axis], *where.shape, *table.shape[axis + 1 :])


def _positive(indices: Tensor, size: Any) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


def gather_elements(n: Node, x: Tensor, indices: Tensor) -> Tensor:
    """GatherElements."""
    axis = n.get("axis", 0)
    return torch.gather(x, axis, _positive(indices, x.shape[axis]).long())


def gather_nd(n: Node, x: Tensor, indices: Tensor) -> Tensor:
    """GatherND, with leading batch axes."""
    batch, depth = n.get("batch_dims", 0), int(indices.shape[-1])
    lead = [
        torch.arange(x.shape[i]).reshape([-1 if j == i else 1 for j in range(indices.dim() - 1)]) for i in range(batch)
    ]
    return x[(*lead, *(indices[..., i] for i in range(depth)))]


_REDUCE: Mapping[str, str] = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(n: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterElements, also with a reduction."""
    axis, how = n.get("axis", 0), n.get("reduction", "none")
    place = _positive(indices, x.shape[axis]).long()
    if how == "none":
        return torch.scatter(x, axis, place, updates)
    return torch.scatter_reduce(x, axis, place, updates, _REDUCE[how], include_self=True)


def scatter_nd(n: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterND as one scatter over the flattened leading axes."""
    depth, how = int(indices.shape[-1]), n.get("reduction", "none")
    rows, width = math.prod(x.shape[:depth]), math.prod(x.shape[depth:])
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for i in range(depth):
        flat = flat * x.shape[i] + _positive(indices[..., i], x.shape[i])
    place = flat.reshape(-1, 1).expand(-1, width)
    source, target = updates.reshape(-1, width), x.reshape(rows, width)
    if how == "none":
        return torch.scatter(target, 0, place, source).reshape(x.shape)
    return torch.scatter_reduce(target, 0, place, source, _REDUCE[how], include_self=True).reshape(x.shape)


def one_hot(n: Node, indices: Tensor, depth: Value, values: Tensor) -> Tensor:
    """OneHot; what is out of range is off everywhere."""
    (count,) = ints(depth, "depth")
    axis = n.get("axis", -1)
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    place = torch.remainder(indices, count) if indices.is_floating_point() else _positive(indices, count)
    classes = torch.arange(count).reshape([-1] + [1] * (indices.dim() - axis))
    return torch.where(place.unsqueeze(axis) == classes, values[1], values[0])


def non_zero(n: Node, x: Tensor) -> Tensor:
    """NonZero, of known values only: otherwise the size of its result depends on the data."""
    return torch.nonzero(x).t().contiguous()


def compress(n: Node, x: Tensor, condition: Value) -> Tensor:
    """Compress by a known condition."""
    axis = n.get("axis")
    keep = [i for i, on in enumerate(numbers(condition, "condition")) if on]
    rows = n.stored("_rows", lambda: torch.tensor(keep, dtype=torch.int64))
    return torch.index_select(x.flatten() if axis is None else x, axis or 0, rows)
