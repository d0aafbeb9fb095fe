"""ONNX quantization: as quantized_decomposed operators where they say the same, else exact arithmetic."""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor

from edgecompile.models._onnx_nn import conv
from edgecompile.models._onnx_values import Known, Node, Refusal, Value, dtype_of

decomposed = torch.ops.quantized_decomposed
_PLAIN = (torch.int8, torch.uint8)
"""Element types that the quantized_decomposed operators take on both sides, and every target understands."""


def _range(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(dtype)
    return info.min, info.max


def _aligned(value: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point brought to a shape that broadcasts with `x`."""
    if value.numel() == 1:
        return value.reshape(())
    if block:
        size = x.shape[axis]
        return value.repeat_interleave(block, axis).narrow(axis, 0, size)
    if value.dim() == 1:
        return value.reshape(*[-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    return value


def quantize(n: Node, x: Tensor, scale: Value, zero: Value = None) -> Tensor:
    """QuantizeLinear."""
    if zero is not None:
        dtype = zero.tensor.dtype if isinstance(zero, Known) else n.tensor(zero).dtype
    else:
        dtype = dtype_of(n.get("output_dtype") or 2)
    low, high = _range(dtype)
    axis, block = n.get("axis", 1), n.get("block_size", 0)
    plain = x.dtype == torch.float32 and dtype in _PLAIN and not block
    if plain and isinstance(scale, Known) and (isinstance(zero, Known) or zero is None):
        each, channels = decomposed.quantize_per_tensor, decomposed.quantize_per_channel
        return _plain(n, each, channels, x, scale, zero, axis, dtype)
    s = _aligned(n.tensor(scale), x, axis, block)
    y = torch.round(x.to(s.dtype) / s)
    y = y if zero is None else y + _aligned(n.tensor(zero), x, axis, block).to(s.dtype)
    return torch.clamp(y, low, high).to(dtype)


def dequantize(n: Node, x: Value, scale: Value, zero: Value = None) -> Tensor:
    """DequantizeLinear; stored integers stay stored integers."""
    q = n.tensor(x, buffer=True)
    axis, block = n.get("axis", 1), n.get("block_size", 0)
    wanted = n.get("output_dtype") or 0
    single = isinstance(scale, Known) and scale.tensor.dtype == torch.float32 and wanted in (0, 1)
    if q.dtype in (*_PLAIN, torch.int32) and single and not block and (zero is None or isinstance(zero, Known)):
        each, channels = decomposed.dequantize_per_tensor, decomposed.dequantize_per_channel
        return _plain(n, each, channels, q, scale, zero, axis, q.dtype)
    s = _aligned(n.tensor(scale), q, axis, block)
    y = (
        q.to(torch.int32)
        if zero is None
        else q.to(torch.int32) - _aligned(n.tensor(zero), q, axis, block).to(torch.int32)
    )
    y = y.to(s.dtype) * s
    return y.to(dtype_of(wanted)) if wanted else y


def _plain(
    n: Node, each: Any, channels: Any, x: Tensor, scale: Value, zero: Value, axis: int, dtype: torch.dtype
) -> Tensor:
    assert isinstance(scale, Known)
    low, high = _range(dtype)
    if scale.tensor.numel() == 1:
        point = int(zero.numbers()[0]) if isinstance(zero, Known) else 0
        whole: Tensor = each(x, float(scale.numbers()[0]), point, low, high, dtype)
        return whole
    count = scale.tensor.numel()
    s = n.folded(scale, lambda v: v.flatten(), buffer=True)
    if zero is None:
        z = n.stored("_zero_point", lambda: torch.zeros(count, dtype=torch.int64))
    else:
        z = n.folded(zero, lambda v: v.flatten().to(torch.int64), buffer=True)
    axis = axis % x.dim()
    sliced: Tensor = channels(x, s, z, axis, low, high, dtype)
    return sliced


def dynamic_quantize(n: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DynamicQuantizeLinear, to uint8."""
    low, high = torch.clamp(x.amin(), max=0.0), torch.clamp(x.amax(), min=0.0)
    scale = (high - low) / 255.0
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / safe), 0, 255)
    y = torch.clamp(torch.round(x / safe) + zero, 0, 255)
    return y.to(torch.uint8), scale, zero.to(torch.uint8)


def _centred(x: Tensor, zero: Tensor | None, rows: bool = False) -> Tensor:
    """Integers less their zero point, as doubles: products of 8-bit integers add up exactly there."""
    if zero is None:
        return x.double()
    if zero.numel() == 1:
        return x.double() - zero.double().reshape(())
    if zero.dim() > 1:
        return x.double() - zero.double()
    return x.double() - (zero.double().unsqueeze(-1) if rows else zero.double())


def matmul_integer(n: Node, a: Tensor, b: Tensor, az: Tensor | None = None, bz: Tensor | None = None) -> Tensor:
    """MatMulInteger: exact, in doubles."""
    return torch.matmul(_centred(a, az, rows=True), _centred(b, bz)).to(torch.int32)


def _int_conv(n: Node, x: Tensor, w: Tensor) -> Tensor:
    return conv(n, x, w)


def conv_integer(n: Node, x: Tensor, w: Tensor, xz: Tensor | None = None, wz: Tensor | None = None) -> Tensor:
    """ConvInteger: exact, in doubles."""
    weight = w.double()
    if wz is not None:
        weight = weight - wz.double().reshape(-1, *[1] * (w.dim() - 1))
    return _int_conv(n, _centred(x, xz), weight).to(torch.int32)


def _requantized(total: Tensor, factor: Tensor, zero: Tensor) -> Tensor:
    low, high = _range(zero.dtype)
    y = torch.round(total.float() * factor) + zero.reshape(()).float()
    return torch.clamp(y, low, high).to(zero.dtype)


def qlinear_matmul(
    n: Node, a: Tensor, sa: Tensor, za: Tensor, b: Tensor, sb: Tensor, zb: Tensor, sy: Tensor, zy: Tensor
) -> Tensor:
    """QLinearMatMul."""
    if sa.numel() > 1 or sy.numel() > 1:
        raise Refusal("scales per row")
    total = torch.matmul(_centred(a, za), _centred(b, zb))
    return _requantized(total, (sa.reshape(()) * sb / sy.reshape(())).float(), zy)


def qlinear_conv(
    n: Node,
    x: Tensor,
    sx: Tensor,
    zx: Tensor,
    w: Tensor,
    sw: Tensor,
    zw: Tensor,
    sy: Tensor,
    zy: Tensor,
    b: Tensor | None = None,
) -> Tensor:
    """QLinearConv."""
    channels = [-1] + [1] * (w.dim() - 2)
    total = _int_conv(n, _centred(x, zx), w.double() - zw.double().reshape(-1, *[1] * (w.dim() - 1)))
    total = total if b is None else total + b.double().reshape(*channels)
    factor = sx.reshape(()) * sw.reshape(*channels) / sy.reshape(()) if sw.numel() > 1 else sx * sw / sy
    return _requantized(total, factor if sw.numel() > 1 else factor.reshape(()), zy)
