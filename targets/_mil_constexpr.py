"""Compressed constants of an ML Program, decoded as Core ML defines them: affine, palettes, sparse and their joints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgecompile.errors import TargetError

Array = np.ndarray[Any, Any]
COMPRESSED = frozenset(
    (
        "constexpr_affine_dequantize",
        "constexpr_blockwise_shift_scale",
        "constexpr_lut_to_dense",
        "constexpr_sparse_to_dense",
        "constexpr_cast",
        "constexpr_lut_to_sparse",
        "constexpr_sparse_blockwise_shift_scale",
    )
)
"""Every MIL operation that gives a constant from a smaller one."""


def decompressed(kind: str, given: Mapping[str, Any]) -> tuple[Array, ...]:
    """The results of one `constexpr_*` operation from its stored arguments; `TargetError` for an unknown one."""
    match kind:
        case "constexpr_affine_dequantize":
            return (_affine(given),)
        case "constexpr_blockwise_shift_scale":
            return (_blockwise(given["data"], given["scale"], given.get("offset")),)
        case "constexpr_lut_to_dense":
            return (_packed_palette(given) if "shape" in given else _palette(given),)
        case "constexpr_sparse_to_dense":
            return (_packed_sparse(given) if "shape" in given else _dense(given["nonzero_data"], given["mask"]),)
        case "constexpr_cast":
            names = {"fp32": np.float32, "fp16": np.float16}
            return (given["source_val"].astype(names[given["output_dtype"]]),)
        case "constexpr_lut_to_sparse":
            mask = given["indices_mask"]
            indices = _dense(given["indices_nonzero_data"], mask)
            dense = _palette({**given, "indices": indices})
            axis = given.get("vector_axis")
            mask = mask if axis is None else np.repeat(mask, given["lut"].shape[-1], int(axis))
            return mask, dense[mask != 0]
        case "constexpr_sparse_blockwise_shift_scale":
            mask = given["data_mask"]
            dense = _blockwise(_dense(given["nonzero_data"], mask), given["scale"], given.get("offset"))
            return mask, dense[mask != 0]
    raise TargetError("is no compressed constant that is interpreted here")


def _affine(given: Mapping[str, Any]) -> Array:
    data, scale, zero = given["quantized_data"], given["scale"], given["zero_point"]
    shape = [1] * data.ndim
    shape[int(given["axis"])] = -1
    columns = (scale.reshape(shape) if scale.ndim else scale, zero.reshape(shape) if zero.ndim else zero)
    whole = (data.astype(np.int32) - columns[1].astype(np.int32)).astype(np.float32)
    result: Array = (whole * columns[0].astype(np.float32)).astype(scale.dtype)
    return result


def _blockwise(data: Array, scale: Array, offset: Array | None) -> Array:
    """`scale * (data - offset)`, each scale repeated over its block."""
    whole = data.astype(np.float32)
    if offset is not None:
        whole = whole - _repeated(offset, data.shape).astype(np.float32)
    result: Array = (whole * _repeated(scale, data.shape).astype(np.float32)).astype(scale.dtype)
    return result


def _repeated(value: Array, shape: tuple[int, ...]) -> Array:
    for axis, (size, blocks) in enumerate(zip(shape, value.shape, strict=True)):
        value = np.repeat(value, size // blocks, axis)
    return value


def _palette(given: Mapping[str, Any]) -> Array:
    indices, lut = given["indices"], given["lut"]
    length = lut.shape[-1]
    axis = int(given["vector_axis"]) % indices.ndim if length > 1 else indices.ndim - 1
    blocks = [np.arange(size) // (size // count) for size, count in zip(indices.shape, lut.shape, strict=False)]
    found = lut[(*np.ix_(*blocks), indices.astype(np.int64))]  # one vector an index, last axis
    shape = [n * (length if i == axis else 1) for i, n in enumerate(indices.shape)]
    result: Array = np.moveaxis(found, -1, axis + 1).reshape(shape)
    return result


def _packed_palette(given: Mapping[str, Any]) -> Array:
    lut, shape = given["lut"].reshape(-1), [int(n) for n in given["shape"]]
    width = max(int(lut.size).bit_length() - 1, 1)
    bits = np.unpackbits(given["indices"], bitorder="little")[: int(np.prod(shape)) * width].reshape(-1, width)
    result: Array = lut[(bits.astype(np.int64) << np.arange(width)).sum(1)].reshape(shape)
    return result


def _packed_sparse(given: Mapping[str, Any]) -> Array:
    shape = [int(n) for n in given["shape"]]
    mask = np.unpackbits(given["mask"], bitorder="little")[: int(np.prod(shape))]
    return _dense(given["nonzero_data"], mask.reshape(shape))


def _dense(values: Array, mask: Array) -> Array:
    result = np.zeros(mask.shape, values.dtype)
    result[mask != 0] = values
    return result
