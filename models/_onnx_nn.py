"""ONNX layers: convolution, pooling and normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecompile.models._onnx_values import Node, Refusal

Pool = Callable[..., Tensor]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX: dict[int, Pool] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Pool] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _spatial(x: Tensor) -> int:
    axes = x.dim() - 2
    if axes not in _CONV:
        raise Refusal(f"{axes} spatial axes: only 1, 2 and 3 are supported")
    return axes


def _pads(n: Node, x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> tuple[list[int], list[int]]:
    """What is padded before and after each spatial axis, `auto_pad` resolved."""
    axes = x.dim() - 2
    mode = n.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * axes, [0] * axes
    if mode == "NOTSET":
        pads = n.get("pads", [0] * (2 * axes))
        return list(pads[:axes]), list(pads[axes:])
    before, after = [], []
    for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return before, after


def _flat(before: list[int], after: list[int]) -> list[int]:
    """Amounts in the order of `F.pad`: last axis first."""
    return [v for pair in reversed(list(zip(before, after, strict=True))) for v in pair]


def conv(n: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Conv; what is padded unevenly is padded first."""
    axes = _spatial(x)
    stride, dilation = n.get("strides", [1] * axes), n.get("dilations", [1] * axes)
    before, after = _pads(n, x, list(w.shape[2:]), stride, dilation)
    if before != after:
        x, before = F.pad(x, _flat(before, after)), [0] * axes
    return _CONV[axes](x, w, b, stride, before, dilation, n.get("group", 1))


def conv_transpose(n: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """ConvTranspose; uneven padding is cut from the full result."""
    axes = _spatial(x)
    stride, dilation = n.get("strides", [1] * axes), n.get("dilations", [1] * axes)
    extra, group = n.get("output_padding", [0] * axes), n.get("group", 1)
    mode, shape = n.get("auto_pad", "NOTSET"), n.get("output_shape")
    pads = n.get("pads", [0] * (2 * axes))
    before, after = list(pads[:axes]), list(pads[axes:])
    if shape is not None or mode.startswith("SAME"):
        wanted = shape[-axes:] if shape is not None else [i * s for i, s in zip(x.shape[2:], stride, strict=True)]
        for i in range(axes):
            full = stride[i] * (x.shape[2 + i] - 1) + extra[i] + (w.shape[2 + i] - 1) * dilation[i] + 1
            if full < wanted[i] and shape is None:
                raise Refusal("auto_pad with a kernel smaller than its stride (ONNX and ONNX Runtime differ)")
            total = max(full - wanted[i], 0)
            extra = [*extra[:i], extra[i] + max(wanted[i] - full, 0), *extra[i + 1 :]]
            before[i] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            after[i] = total - before[i]
    if before == after and all(e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        return _TRANSPOSED[axes](x, w, b, stride, before, extra, group, dilation)
    y = _TRANSPOSED[axes](x, w, None, stride, 0, 0, group, dilation)
    y = F.pad(y, _flat([-v for v in before], [e - a for e, a in zip(extra, after, strict=True)]))
    return y if b is None else y + b.reshape(-1, *[1] * axes)


def _window(n: Node, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    axes = _spatial(x)
    kernel = n.get("kernel_shape")
    stride, dilation = n.get("strides", [1] * axes), n.get("dilations", [1] * axes)
    return kernel, stride, dilation, *_pads(n, x, kernel, stride, dilation)


def _ends(x: Tensor, n: Node, window: tuple[list[int], ...]) -> list[int]:
    """How far each axis must be padded at its end so that a floor-mode pool gives ONNX's output size."""
    ends = []
    for size, k, s, d, b, e in zip(x.shape[2:], *window, strict=True):
        reach = (k - 1) * d + 1
        if not n.get("ceil_mode", 0):
            ends.append(e)
            continue
        count = -(-(size + b + e - reach) // s) + 1
        count -= int((count - 1) * s >= size + b)  # a window may not start in the padding at the end
        ends.append((count - 1) * s + reach - size - b)
    return ends


def max_pool(n: Node, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """MaxPool; indices count through the whole tensor."""
    window = _window(n, x)
    kernel, stride, dilation, before, after = window
    native = before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True))
    pool = _MAX[len(kernel)]
    if not native:
        if n.wants(1):
            raise Refusal("indices together with uneven padding")
        low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        return pool(F.pad(x, _flat(before, _ends(x, n, window)), value=low), kernel, stride, 0, dilation)
    if not n.wants(1):
        return pool(x, kernel, stride, before, dilation, bool(n.get("ceil_mode", 0)))
    if n.get("storage_order", 0):
        raise Refusal("indices in column-major order")
    y, place = pool(x, kernel, stride, before, dilation, bool(n.get("ceil_mode", 0)), True)
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * len(kernel))
    return y, place + planes * math.prod(x.shape[2:])


def average_pool(n: Node, x: Tensor) -> Tensor:
    """AveragePool; uneven padding is averaged through a mask of what counts."""
    window = _window(n, x)
    kernel, stride, dilation, before, after = window
    if any(d != 1 for d in dilation):
        raise Refusal("dilated average pooling")
    include, pool = bool(n.get("count_include_pad", 0)), _AVERAGE[len(kernel)]
    if before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        return pool(x, kernel, stride, before, bool(n.get("ceil_mode", 0)), include)
    outer = _flat(before, _ends(x, n, window))
    mask = F.pad(torch.ones(1, 1, *x.shape[2:], dtype=x.dtype), _flat(before, after), value=float(include))
    rest = [a - b for a, b in zip(outer, _flat(before, after), strict=True)]
    return pool(F.pad(x, outer), kernel, stride) / pool(F.pad(mask, rest), kernel, stride)


def lp_pool(n: Node, x: Tensor) -> Tensor:
    """LpPool as a scaled average of powers."""
    window = _window(n, x)
    kernel, stride, dilation, before, _ = window
    if any(d != 1 for d in dilation):
        raise Refusal("dilated Lp pooling")
    p = n.get("p", 2)
    powers = F.pad(x.abs() ** p, _flat(before, _ends(x, n, window)))
    return torch.pow(_AVERAGE[len(kernel)](powers, kernel, stride) * math.prod(kernel), 1 / p)


def global_average_pool(n: Node, x: Tensor) -> Tensor:
    """GlobalAveragePool."""
    match x.dim():
        case 3:
            return F.adaptive_avg_pool1d(x, 1)
        case 4:
            return F.adaptive_avg_pool2d(x, 1)
        case _:
            return x.mean(list(range(2, x.dim())), keepdim=True)


def global_max_pool(n: Node, x: Tensor) -> Tensor:
    """GlobalMaxPool."""
    return torch.amax(x, list(range(2, x.dim())), keepdim=True)


def global_lp_pool(n: Node, x: Tensor) -> Tensor:
    """GlobalLpPool."""
    p = n.get("p", 2)
    return torch.pow((x.abs() ** p).sum(list(range(2, x.dim())), keepdim=True), 1 / p)


def batch_norm(n: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """BatchNormalization in inference."""
    if n.get("training_mode", 0):
        raise Refusal("it is in training mode")
    if n.version < 9 and n.get("spatial", 1) == 0:
        raise Refusal("statistics per place (spatial=0)")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, n.get("epsilon", 1e-5))


def instance_norm(n: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization."""
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, n.get("epsilon", 1e-5))


def layer_norm(n: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
    """LayerNormalization, with mean and inverse deviation where they are asked for."""
    axis, eps = n.get("axis", -1), n.get("epsilon", 1e-5)
    axis = axis + x.dim() if axis < 0 else axis
    shape = list(x.shape[axis:])
    fits = list(scale.shape) == shape and (bias is None or list(bias.shape) == shape)
    if fits and not n.wants(1) and not n.wants(2):
        return F.layer_norm(x, shape, scale, bias, eps)
    dims = list(range(axis, x.dim()))
    mean = x.mean(dims, keepdim=True)
    inverse = torch.rsqrt(((x - mean) ** 2).mean(dims, keepdim=True) + eps)
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


def rms_norm(n: Node, x: Tensor, scale: Tensor) -> Tensor:
    """RMSNormalization."""
    axis = n.get("axis", -1)
    dims = list(range(axis + x.dim() if axis < 0 else axis, x.dim()))
    return x * torch.rsqrt((x * x).mean(dims, keepdim=True) + n.get("epsilon", 1e-5)) * scale


def group_norm(n: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """GroupNormalization: scales per group in opset 18, per channel from 21 on."""
    groups, eps = n.get("num_groups"), n.get("epsilon", 1e-5)
    if n.version >= 21:
        return F.group_norm(x, groups, scale, bias, eps)
    each = int(x.shape[1]) // groups
    return F.group_norm(x, groups, scale.repeat_interleave(each), bias.repeat_interleave(each), eps)


def lrn(n: Node, x: Tensor) -> Tensor:
    """LRN over an odd number of channels; torch centres an even window elsewhere."""
    size = n.get("size")
    if size % 2 == 0:
        raise Refusal("an even window")
    return F.local_response_norm(x, size, n.get("alpha", 1e-4), n.get("beta", 0.75), n.get("bias", 1.0))


def lp_normalization(n: Node, x: Tensor) -> Tensor:
    """LpNormalization; an all-zero slice stays zero."""
    axis, p = n.get("axis", -1), n.get("p", 2)
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def mean_variance(n: Node, x: Tensor) -> Tensor:
    """MeanVarianceNormalization."""
    dims = n.get("axes", [0, 2, 3])
    mean = x.mean(dims, keepdim=True)
    deviation = torch.sqrt((x * x).mean(dims, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)
