"""ONNX data movement: reshape, slice, gather, scatter, pad, split and what makes tensors from sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecompile.models._onnx_values import Known, Node, Refusal, Sizes, Value, dtype_of, ints, numbers, sizes

Function = Callable[..., Any]


def reshape(n: Node, x: Tensor, shape: Value) -> Tensor:
    """Reshape: 0 copies a size unless `allowzero`."""
    target = ints(shape, "shape")
    if not n.get("allowzero", 0):
        target = [x.shape[i] if isinstance(s, int) and s == 0 else s for i, s in enumerate(target)]
    return x.reshape(target)


def flatten(n: Node, x: Tensor) -> Tensor:
    """Flatten to two axes."""
    axis = n.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return torch.flatten(x, 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(n: Node, x: Tensor, axes: Value = None) -> Tensor:
    """Squeeze: the axes are an operand from opset 13 on."""
    given = ints(axes, "axes") if axes is not None else n.get("axes")
    dims = (
        [int(a) % max(x.dim(), 1) for a in given]
        if given is not None
        else [i for i, s in enumerate(x.shape) if isinstance(s, int) and s == 1]
    )
    if any(x.shape[d] != 1 for d in dims):
        raise Refusal(f"it drops axes {dims} of a tensor of shape {tuple(x.shape)}")
    return torch.squeeze(x, tuple(dims)) if dims else x


def unsqueeze(n: Node, x: Tensor, axes: Value = None) -> Tensor:
    """Unsqueeze: the axes count in the result."""
    given = ints(axes, "axes") if axes is not None else n.get("axes")
    total = x.dim() + len(given)
    for axis in sorted(int(a) % total for a in given):
        x = x.unsqueeze(axis)
    return x


def transpose(n: Node, x: Tensor) -> Tensor:
    """Transpose: reversed axes unless `perm` says otherwise."""
    return x.permute(n.get("perm", list(reversed(range(x.dim())))))


def split(n: Node, x: Tensor, parts: Value = None) -> tuple[Tensor, ...]:
    """Split by sizes, or evenly with a smaller last part."""
    axis, count = n.get("axis", 0), len(n.outputs)
    lengths = ints(parts, "split") if parts is not None else n.get("split")
    if lengths is None:
        size = x.shape[axis]
        chunk = -(-size // count)
        lengths = [min(chunk, size - i * chunk) for i in range(count)]
    return torch.split(x, [int(v) for v in lengths], axis)


def pad(n: Node, x: Tensor, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    """Pad in any mode and on any axes; amounts are attributes before opset 11."""
    mode = n.get("mode", "constant")
    amounts = ints(pads, "pads") if pads is not None else n.get("pads")
    which = [a % x.dim() for a in ints(axes, "axes")] if axes is not None else list(range(x.dim()))
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(which):
        before[axis], after[axis] = amounts[i], amounts[i + len(which)]
    flat = [v for axis in reversed(range(x.dim())) for v in (before[axis], after[axis])]
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    if not any(isinstance(v, torch.SymInt) or v != 0 for v in flat):
        return x
    if mode == "constant":
        fill = numbers(value, "fill value")[0] if value is not None else n.get("value", 0)
        return F.pad(x, flat, value=float(fill) if x.is_floating_point() else int(fill))
    if min(flat) >= 0 and x.is_floating_point() and x.dim() in (3, 4, 5) and len(flat) <= 2 * (x.dim() - 2):
        name = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
        fits = all(before[a] < x.shape[a] and after[a] < x.shape[a] for a in range(x.dim()) if before[a] or after[a])
        if fits and mode != "wrap":
            return F.pad(x, flat, mode=name)
    for axis in range(x.dim()):
        if before[axis] or after[axis]:
            table = _border(mode, x.shape[axis], before[axis], after[axis])
            x = torch.index_select(x, axis, n.stored(f"_border_{axis}", partial(torch.tensor, table)))
    return x


def _border(mode: str, size: int, before: int, after: int) -> list[int]:
    """Which index each place of a padded axis reads."""
    places = range(-before, size + after)
    if mode == "edge":
        return [min(max(p, 0), size - 1) for p in places]
    if mode == "wrap":
        return [p % size for p in places]
    period = max(2 * (size - 1), 1)
    return [min(p % period, period - p % period) if size > 1 else 0 for p in places]


def expand(n: Node, x: Tensor, shape: Value) -> Tensor:
    """Expand: both ways, as numpy broadcasts."""
    target = ints(shape, "shape")
    own = [1] * (len(target) - x.dim()) + list(x.shape)
    target = [1] * (len(own) - len(target)) + target
    full = [s if isinstance(t, int) and t == 1 else t for s, t in zip(own, target, strict=True)]
    return x.expand(full)


def tile(n: Node, x: Tensor, repeats: Value) -> Tensor:
    """Tile."""
    return x.repeat(ints(repeats, "repeats"))


def shape_of(n: Node, x: Value) -> Value:
    """Shape, or a part of it."""
    if isinstance(x, Sizes):
        full: list[Any] = [len(x.items)] if x.vector else []
    else:
        full = list(x.tensor.shape if isinstance(x, Known) else n.tensor(x).shape)
    return sizes(full[slice(n.get("start", 0), n.get("end"))])


def size_of(n: Node, x: Value) -> Value:
    """Size: the number of elements."""
    data = x.tensor if isinstance(x, Known) else n.tensor(x)
    return sizes([math.prod(data.shape)], vector=False)


def constant_of_shape(n: Node, shape: Value) -> Tensor:
    """ConstantOfShape: float zeros unless `value` says otherwise."""
    value = n.get("value")
    fill, dtype = (value.item(), value.dtype) if value is not None else (0.0, torch.float32)
    return torch.full(ints(shape, "shape"), fill, dtype=dtype)


def range_(n: Node, start: Value, limit: Value, delta: Value) -> Tensor:
    """Range; with a dynamic size in it the step must be 1."""
    if any(isinstance(v, Sizes) for v in (start, limit, delta)):
        (a,), (b,), (c,) = (ints(v, "bound") for v in (start, limit, delta))
        return torch.arange(a, b, c, dtype=torch.int64)
    (first,), (last,), (step,) = (numbers(v, "bound") for v in (start, limit, delta))
    count = max(math.ceil((last - first) / step), 0)
    assert isinstance(start, Known)
    return torch.tensor([first + i * step for i in range(count)], dtype=start.tensor.dtype)


def constant(n: Node) -> Tensor:
    """Constant in any of its forms."""
    for name, value in n.attributes.items():
        match name:
            case "value":
                return cast(Tensor, value)
            case "value_float" | "value_floats":
                return torch.tensor(value, dtype=torch.float32)
            case "value_int" | "value_ints":
                return torch.tensor(value, dtype=torch.int64)
    raise Refusal(f"its value is of the kind {', '.join(n.attributes)}")


def trilu(n: Node, x: Tensor, k: Value = None) -> Tensor:
    """Trilu: one triangle of each matrix."""
    diagonal = ints(k, "k")[0] if k is not None else 0
    return torch.triu(x, diagonal) if n.get("upper", 1) else torch.tril(x, diagonal)


def depth_to_space(n: Node, x: Tensor) -> Tensor:
    """DepthToSpace in both of its orders."""
    b, (batch, channels, height, width) = n.get("blocksize"), x.shape
    if n.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    y = x.reshape(batch, b, b, channels // (b * b), height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(batch, channels // (b * b), height * b, width * b)


def space_to_depth(n: Node, x: Tensor) -> Tensor:
    """SpaceToDepth in both of its orders (opset 28 added the second)."""
    b, (batch, channels, height, width) = n.get("blocksize"), x.shape
    y = x.reshape(batch, channels, height // b, b, width // b, b)
    y = y.permute(0, 1, 3, 5, 2, 4) if n.get("mode", "DCR") == "CRD" else y.permute(0, 3, 5, 1, 2, 4)
    return y.reshape(batch, channels * b * b, height // b, width // b)


def eye_like(n: Node, x: Tensor) -> Tensor:
    """EyeLike."""
    dtype = dtype_of(n.get("dtype")) if n.get("dtype") is not None else x.dtype
    k = n.get("k", 0)
    rows, columns = torch.arange(x.shape[0]).unsqueeze(1), torch.arange(x.shape[1])
    diagonal: Tensor = columns - rows == k
    return diagonal.to(dtype)


def identity(n: Node, x: Value, *_: Value) -> Value:
    """Identity, and Dropout, which does nothing in inference."""
    return x


def dropout(n: Node, x: Tensor, ratio: Value = None, training: Value = None) -> tuple[Tensor, ...]:
    """Dropout in inference."""
    if training is not None and numbers(training, "training mode")[0]:
        raise Refusal("it is in training mode")
    return (x, torch.ones_like(x, dtype=torch.bool)) if n.wants(1) else (x,)
