"""Integer convolutions and products as tensor expressions: weights packed in words of four, one word a lane."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompile.targets._tvm_choice import Task, Tile, choose
from edgecompile.targets._tvm_elements import Simd
from edgecompile.targets._tvm_te import column, extent
from edgecompile.targets._tvm_te import packed as by_tiles

INTEGERS = ("uint8", "int8")
_FUSES = 4
_OPAQUE = 8


def packed(weight: np.ndarray[Any, Any], tile: Tile, simd: Simd) -> np.ndarray[Any, Any]:
    """Weights [..., inner, columns] as [tile, ..., inner / 4, 4 * width], each lane's word of four side by side.

    For pairs of 16 bits the words of a vector come as all their even parts and then all their odd ones.
    """
    found = by_tiles(weight, tile.vectors * simd.lanes)
    *lead, inner, width = found.shape
    found = found.reshape(*lead, inner // 4, 4, width // simd.lanes, simd.lanes)
    ahead = list(range(len(lead) + 1))
    at = len(ahead)
    if simd.dot == "pairs":
        found = found.reshape(*lead, inner // 4, 2, 2, width // simd.lanes, simd.lanes)
        found = found.transpose(*ahead, at + 2, at + 1, at + 3, at).astype(np.int16)
    else:
        found = found.transpose(*ahead, at + 1, at + 2, at)
    return np.ascontiguousarray(found.reshape(*lead, inner // 4, 4 * width))


def taps(weight: np.ndarray[Any, Any], simd: Simd) -> np.ndarray[Any, Any]:
    """Depthwise weights [ky, kx, channel] as [ky / n, kx, n * channel]: n rows of a column are a lane's word."""
    count = word(simd)
    rows, columns, channels = weight.shape
    found = np.pad(weight, ((0, -rows % count), (0, 0), (0, 0)))
    found = found.reshape(-1, count, columns, channels).transpose(0, 2, 3, 1).reshape(-1, columns, count * channels)
    kind = {"pairs": np.int16, "": np.int32}.get(simd.dot, np.int8)
    return np.ascontiguousarray(found.astype(kind))


def word(simd: Simd) -> int:
    """How many integers of a lane one instruction multiplies in a depthwise convolution."""
    return {"pairs": 2, "": 1}.get(simd.dot, 4)


def marks(tile: Tile, simd: Simd, groups: int = 1) -> dict[str, Any]:
    """What the generator reads of an integer contraction's block."""
    fixed = {"edge.fixed": 1} if groups > 1 else {}
    return {"edge.rows": tile.rows, "edge.vectors": tile.vectors, "edge.tile_axis": 0, "edge.dot": 1} | fixed


def conv2d(builder: Any, call: Any, simd: Simd) -> Any:
    """A convolution without padding over channels that fill words of four."""
    from tvm import relax

    x, w = call.args
    weight, attrs = w.value.numpy(), call.attrs
    assert attrs.data_layout == "NHWC"
    assert attrs.kernel_layout == "HWIO"
    size = [int(d) for d in x.ty.shape]
    strides, dilation = ([int(v) for v in a] for a in (attrs.strides, attrs.dilation))
    groups, columns = int(attrs.groups), weight.shape[3]
    out = [extent(s, k, 0, t, d) for s, k, t, d in zip(size[1:3], weight.shape[:2], strides, dilation, strict=True)]
    shape = (size[0], *out, columns)
    if groups == columns == size[3] and groups > 1:
        kernel = weight.shape[:2]
        return builder.call_te(
            lambda a, k: _depthwise(a, k, shape, kernel, strides, dilation, simd), x,
            relax.const(taps(weight[:, :, 0, :], simd)), primfunc_name_hint="int8_depthwise",
            primfunc_attrs={"op_pattern": _FUSES},
        )  # fmt: skip
    depth = int(np.prod(weight.shape[:3]))
    tile = choose(Task("int8", out[1], columns, depth), simd)
    if groups > 1:
        inner = columns // groups
        vectors = max(v for v in range(1, tile.vectors + 1) if inner % (v * simd.lanes) == 0)
        tile = choose(Task("int8", out[1], vectors * simd.lanes, depth), simd)
    return builder.call_te(
        lambda a, k: _contracted(a, k, shape, groups, strides, dilation, tile, simd), x,
        relax.const(packed(weight, tile, simd)), primfunc_name_hint="int8_conv2d",
        primfunc_attrs={"op_pattern": _FUSES},
    )  # fmt: skip


def _contracted(x: Any, k: Any, shape: Any, groups: int, strides: Any, dilation: Any, tile: Tile, simd: Simd) -> Any:
    from tvm import te, tirx

    _, kh, kw, words, wide = (int(d) for d in k.shape)
    axes = [te.reduce_axis((0, n), name) for n, name in ((kh, "ry"), (kw, "rx"), (words, "rc"), (4, "part"))]
    ry, rx, rc, part = axes
    group = shape[3] // groups

    def cell(i: Any, y: Any, z: Any, n: Any) -> Any:
        at, lane = column(n, shape[3], wide // 4)
        channel = rc * 4 + part if groups == 1 else tirx.floordiv(n, group) * (words * 4) + rc * 4 + part
        value = x[i, y * strides[0] + ry * dilation[0], z * strides[1] + rx * dilation[1], channel]
        return te.sum(value.astype("int32") * k[at, ry, rx, rc, lane * 4 + part].astype("int32"), axis=axes)

    return te.compute(shape, cell, name="int8_conv2d", attrs=marks(tile, simd, groups))


def _depthwise(x: Any, k: Any, shape: Any, kernel: Any, strides: Any, dilation: Any, simd: Simd) -> Any:
    from tvm import te

    count = word(simd)
    ry, rx = te.reduce_axis((0, kernel[0]), "ry"), te.reduce_axis((0, kernel[1]), "rx")

    def cell(i: Any, y: Any, z: Any, n: Any) -> Any:
        value = x[i, y * strides[0] + ry * dilation[0], z * strides[1] + rx * dilation[1], n].astype("int32")
        held = k[ry // count, rx, n * count + ry % count] if count > 1 else k[ry, rx, n]
        return te.sum(value * held.astype("int32"), axis=[ry, rx])

    attrs = {"edge.taps": count} if count > 1 else {}
    return te.compute(shape, cell, name="int8_depthwise", attrs=attrs)


def matmul(builder: Any, call: Any, simd: Simd) -> Any:
    """A product with constant weights over an inner size that fills words of four."""
    from tvm import relax

    x, weight = call.args[0], call.args[1].value.numpy()
    size = [int(d) for d in x.ty.shape]
    total = int(np.prod(size[:-1]))
    flat = len(size) > 2 and size[-2] < total
    if flat:
        x = builder.emit(relax.op.reshape(x, (total, size[-1])))
    tile = choose(Task("int8", total, weight.shape[1], weight.shape[0]), simd)
    made = builder.call_te(
        lambda a, k: _linear(a, k, weight.shape[1], tile, simd), x, relax.const(packed(weight, tile, simd)),
        primfunc_name_hint="int8_linear", primfunc_attrs={"op_pattern": _FUSES},
    )  # fmt: skip
    return relax.op.reshape(builder.emit(made), (*size[:-1], weight.shape[1])) if flat else made


def _linear(x: Any, k: Any, columns: int, tile: Tile, simd: Simd) -> Any:
    from tvm import te

    *rows, _ = (int(d) for d in x.shape)
    _, words, wide = (int(d) for d in k.shape)
    rc, part = te.reduce_axis((0, words), "rc"), te.reduce_axis((0, 4), "part")

    def cell(*at: Any) -> Any:
        *place, n = at
        t, lane = column(n, columns, wide // 4)
        value = x(*place, rc * 4 + part).astype("int32")
        return te.sum(value * k[t, rc, lane * 4 + part].astype("int32"), axis=[rc, part])

    return te.compute((*rows, columns), cell, name="int8_linear", attrs=marks(tile, simd))


def bordered(builder: Any, call: Any) -> Any:
    """A border around an image in NHWC, and channels behind those that it has."""
    from tvm import te, tirx

    x, attrs = call.args[0], call.attrs
    size, width = [int(d) for d in x.ty.shape], [int(v) for v in attrs.pad_width]
    top, bottom, left, right, _, more = width[2:]
    fill = int(float(attrs.pad_value))

    def compute(a: Any) -> Any:
        def cell(i: Any, y: Any, z: Any, c: Any) -> Any:
            inside = tirx.all(y >= top, y < size[1] + top, z >= left, z < size[2] + left, c < size[3])
            return tirx.if_then_else(inside, a[i, y - top, z - left, c], tirx.const(fill, a.dtype))

        shape = (size[0], size[1] + top + bottom, size[2] + left + right, size[3] + more)
        attrs = {"edge.pads": [top, left, bottom, right], "edge.channels": size[3]}
        return te.compute(shape, cell, name="border", attrs=attrs)

    return builder.call_te(compute, x, primfunc_name_hint="int8_pad", primfunc_attrs={"op_pattern": _OPAQUE})
