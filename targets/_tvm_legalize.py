"""Relax operators as tensor expressions that the tile generator takes: constant weights packed by column tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgecompile.targets import _tvm_int8_ops as int8
from edgecompile.targets._tvm_choice import Task, Tile, choose
from edgecompile.targets._tvm_elements import Simd
from edgecompile.targets._tvm_pools import FUSES, pad, pool, rounded
from edgecompile.targets._tvm_te import column, constant, default, extent, packed, padded, shape, starts

Legalizer = Callable[[Any, Any], Any]


def legalizers(simd: Simd) -> dict[str, Legalizer]:
    """Our own lowering by operator name; what it does not take falls through to TVM's."""
    return {
        "relax.nn.conv2d": lambda builder, call: _conv2d(builder, call, simd),
        "relax.matmul": lambda builder, call: _matmul(builder, call, simd),
        "relax.nn.max_pool2d": lambda builder, call: pool(builder, call, "max_pool2d"),
        "relax.nn.avg_pool2d": lambda builder, call: pool(builder, call, "avg_pool2d"),
        "relax.nn.pad": pad,
        "relax.round": rounded,
    }


def marks(tile: Tile, axis: int = 0, groups: int = 1) -> dict[str, Any]:
    """What the generator reads of a contraction's block; tiles of groups must not cross them and are left alone."""
    fixed = {"edge.fixed": 1} if groups > 1 else {}
    return {"edge.rows": tile.rows, "edge.vectors": tile.vectors, "edge.tile_axis": axis} | fixed


def _conv2d(builder: Any, call: Any, simd: Simd) -> Any:
    from tvm import relax

    x, w = call.args
    attrs = call.attrs
    if str(x.ty.dtype) in int8.INTEGERS:
        return int8.conv2d(builder, call, simd)
    weights, size = constant(w), shape(x)
    if weights is None or size is None or attrs.data_layout != "NHWC" or attrs.kernel_layout != "HWIO":
        return default("nn.conv2d", builder, call)
    strides, pads, dilation = ([int(v) for v in a] for a in (attrs.strides, attrs.padding, attrs.dilation))
    pads = pads * 2 if len(pads) == 2 else pads * 4 if len(pads) == 1 else pads
    groups = int(attrs.groups)
    args = tuple(pads), tuple(strides), tuple(dilation)
    if groups == size[3] == weights.shape[3] and groups > 1:
        depthwise = np.ascontiguousarray(weights[:, :, 0, :])
        return builder.call_te(
            lambda a, k: _depthwise(a, k, *args), x, relax.const(depthwise), primfunc_name_hint="depthwise",
            primfunc_attrs={"op_pattern": FUSES},
        )  # fmt: skip
    weights, groups = _merged(weights, groups, simd)
    out = extent(size[2], weights.shape[1], pads[1] + pads[3], strides[1], dilation[1])
    columns = weights.shape[3] // groups
    depth = int(np.prod(weights.shape[:3]))
    tile = choose(Task("float", out, columns, depth), simd)
    if groups > 1:
        vectors = max(v for v in range(1, tile.vectors + 1) if columns % (v * simd.lanes) == 0)
        tile = choose(Task("float", out, vectors * simd.lanes, depth), simd)
    return builder.call_te(
        lambda a, k: _contracted(a, k, groups, weights.shape[3], tile, *args), x,
        relax.const(packed(weights, tile.vectors * simd.lanes)), primfunc_name_hint="conv2d",
        primfunc_attrs={"op_pattern": FUSES},
    )  # fmt: skip


def _merged(weights: np.ndarray[Any, Any], groups: int, simd: Simd) -> tuple[np.ndarray[Any, Any], int]:
    """Groups put together until they fill a vector, zeros where an input is not of an output's group."""
    if groups == 1:
        return weights, 1
    inner, outer = weights.shape[2], weights.shape[3] // groups
    whole = [q for q in range(1, groups + 1) if groups % q == 0 and (q * outer) % simd.lanes == 0]
    q = whole[0] if whole else groups
    merged = np.zeros((*weights.shape[:2], q * inner, weights.shape[3]), weights.dtype)
    for g in range(groups):
        place = (g % q) * inner
        merged[:, :, place : place + inner, g * outer : (g + 1) * outer] = weights[..., g * outer : (g + 1) * outer]
    return merged, groups // q


def _contracted(x: Any, k: Any, groups: int, columns: int, tile: Tile, pads: Any, strides: Any, dilation: Any) -> Any:
    """A convolution over packed weights [tile, ky, kx, channel, lane]."""
    from tvm import te, tirx

    p = padded(x, pads)
    b, h, w, _ = (int(d) for d in p.shape)
    _, kh, kw, inner, width = (int(d) for d in k.shape)
    ry, rx, rc = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx"), te.reduce_axis((0, inner), "rc")
    group = columns // groups

    def cell(i: Any, y: Any, z: Any, n: Any) -> Any:
        at, lane = column(n, columns, width)
        channel = rc if groups == 1 else tirx.floordiv(n, group) * inner + rc
        value = p[i, y * strides[0] + ry * dilation[0], z * strides[1] + rx * dilation[1], channel]
        return te.sum(value * k[at, ry, rx, rc, lane], axis=[ry, rx, rc])

    size = (b, extent(h, kh, 0, strides[0], dilation[0]), extent(w, kw, 0, strides[1], dilation[1]), columns)
    return te.compute(size, cell, name="conv2d", attrs=marks(tile, groups=groups))


def _depthwise(x: Any, k: Any, pads: Any, strides: Any, dilation: Any) -> Any:
    from tvm import te

    p = padded(x, pads)
    b, h, w, c = (int(d) for d in p.shape)
    kh, kw, _ = (int(d) for d in k.shape)
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")

    def cell(i: Any, y: Any, z: Any, n: Any) -> Any:
        value = p[i, y * strides[0] + ry * dilation[0], z * strides[1] + rx * dilation[1], n]
        return te.sum(value * k[ry, rx, n], axis=[ry, rx])

    size = (b, extent(h, kh, 0, strides[0], dilation[0]), extent(w, kw, 0, strides[1], dilation[1]), c)
    return te.compute(size, cell, name="depthwise")


def _matmul(builder: Any, call: Any, simd: Simd) -> Any:
    from tvm import relax

    a, b = call.args
    left, right = shape(a), shape(b)
    if str(a.ty.dtype) in int8.INTEGERS:
        return int8.matmul(builder, call, simd)
    if left is None or right is None or len(left) < 2 or len(right) < 2 or str(a.ty.dtype) != "float32":
        return default("linear_algebra.matmul", builder, call)
    weights = constant(b)
    if weights is not None and len(right) == 2:
        flat = len(left) > 2 and left[-2] < min(int(np.prod(left[:-1])), 6)
        rows = int(np.prod(left[:-1])) if flat else left[-2]
        tile = choose(Task("float", rows, right[1], right[0]), simd)
        if flat:
            a = builder.emit(relax.op.reshape(a, (int(np.prod(left[:-1])), left[-1])))
        made = builder.call_te(
            lambda x, k: _linear(x, k, right[1], tile), a, relax.const(packed(weights, tile.vectors * simd.lanes)),
            primfunc_name_hint="linear", primfunc_attrs={"op_pattern": FUSES},
        )  # fmt: skip
        return relax.op.reshape(builder.emit(made), (*left[:-1], right[1])) if flat else made
    if left[:-2] != right[:-2]:
        return default("linear_algebra.matmul", builder, call)
    tile = choose(Task("float", left[-2], right[-1], left[-1]), simd)
    return builder.call_te(
        lambda x, y: _batched(x, y, tile, simd), a, b, primfunc_name_hint="batched_matmul",
        primfunc_attrs={"op_pattern": FUSES},
    )  # fmt: skip


def _linear(x: Any, k: Any, columns: int, tile: Tile) -> Any:
    from tvm import te

    *rows, inner = (int(d) for d in x.shape)
    rc = te.reduce_axis((0, inner), "rc")

    def cell(*at: Any) -> Any:
        *place, n = at
        t, lane = column(n, columns, int(k.shape[2]))
        return te.sum(x(*place, rc) * k[t, rc, lane], axis=rc)

    return te.compute((*rows, columns), cell, name="linear", attrs=marks(tile))


def _batched(x: Any, y: Any, tile: Tile, simd: Simd) -> Any:
    """A product of two activations: the right one is packed first, as constant weights are."""
    from tvm import te, tirx

    *batch, rows, inner = (int(d) for d in x.shape)
    columns, width = int(y.shape[-1]), tile.vectors * simd.lanes
    begins = starts(columns, width)

    def pack(*at: Any) -> Any:
        *place, t, k, lane = at
        n = tirx.min(t * width, max(columns - width, 0)) + lane
        if columns >= width:
            return y(*place, k, n)
        return tirx.if_then_else(n < columns, y(*place, k, tirx.min(n, columns - 1)), tirx.const(0, y.dtype))

    guarded = {"edge.scalar": 1} if columns < width else {}
    right = te.compute((*batch, len(begins), inner, width), pack, name="pack", attrs=guarded)
    rc = te.reduce_axis((0, inner), "rc")

    def cell(*at: Any) -> Any:
        *place, m, n = at
        t, lane = column(n, columns, width)
        return te.sum(x(*place, m, rc) * right(*place, t, rc, lane), axis=rc)

    return te.compute((*batch, rows, columns), cell, name="batched_matmul", attrs=marks(tile, len(batch)))
