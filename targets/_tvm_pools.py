"""Pools, borders and rounding as tensor expressions."""

from __future__ import annotations

from typing import Any

from edgecompile.targets import _tvm_int8_ops as int8
from edgecompile.targets._tvm_te import default, extent, padded, shape

FUSES = 4
"""TVM's operator pattern of a reduction into which what follows element by element is fused."""


def pool(builder: Any, call: Any, name: str) -> Any:
    """A pool in NHWC whose padding counts or is below every value; other ones are TVM's."""
    from tvm import te, tirx

    (x,), attrs = call.args, call.attrs
    size = shape(x)
    kernel, strides, pads, dilation = (
        [int(v) for v in a] for a in (attrs.pool_size, attrs.strides, attrs.padding, attrs.dilation)
    )
    highest = name == "max_pool2d"
    plain = highest or bool(attrs.count_include_pad) or not any(pads)
    kind = str(x.ty.dtype)
    known = kind == "float32" or (highest and kind in int8.INTEGERS)
    if size is None or attrs.layout != "NHWC" or not plain or attrs.ceil_mode or not known:
        return default(f"nn.{name}", builder, call)
    pads = pads * 2 if len(pads) == 2 else pads

    def compute(a: Any) -> Any:
        least = {"float32": -3.4028234663852886e38, "int8": -128}.get(kind, 0)
        p = padded(a, tuple(pads), least if highest else 0.0)
        b, h, w, c = (int(d) for d in p.shape)
        ry, rx = te.reduce_axis((0, kernel[0]), "ry"), te.reduce_axis((0, kernel[1]), "rx")
        out = (b, *(extent(s, k, 0, t, d) for s, k, t, d in zip((h, w), kernel, strides, dilation, strict=True)), c)

        def cell(i: Any, y: Any, z: Any, n: Any) -> Any:
            value = p[i, y * strides[0] + ry * dilation[0], z * strides[1] + rx * dilation[1], n]
            return (te.max if highest else te.sum)(value, axis=[ry, rx])

        made = te.compute(out, cell, name=name)
        if highest:
            return made
        share = tirx.const(1.0 / (kernel[0] * kernel[1]), "float32")
        return te.compute(out, lambda *at: made(*at) * share, name="share")

    return builder.call_te(compute, x, primfunc_name_hint=name, primfunc_attrs={"op_pattern": FUSES})


def pad(builder: Any, call: Any) -> Any:
    """A border around an image in NHWC; other padding is TVM's."""
    size, attrs = shape(call.args[0]), call.attrs
    width = [int(v) for v in attrs.pad_width]
    inside = size is not None and len(size) == 4 and not any(width[:2] + width[6:]) and min(width) >= 0
    if str(call.args[0].ty.dtype) in int8.INTEGERS and size and len(size) == 4 and not any(width[:2] + width[6:7]):
        return int8.bordered(builder, call)
    if not inside or attrs.pad_mode != "constant" or str(call.args[0].ty.dtype) != "float32":
        return default("nn.pad", builder, call)
    pads = (width[2], width[4], width[3], width[5])
    return builder.call_te(lambda x: padded(x, pads, float(attrs.pad_value)), call.args[0], primfunc_name_hint="pad")


def rounded(builder: Any, call: Any) -> Any:
    """To even, as torch does."""
    from tvm import te, tirx

    def compute(x: Any) -> Any:
        return te.compute(x.shape, lambda *at: tirx.nearbyint(x(*at)), name="round")

    return builder.call_te(compute, call.args[0], primfunc_name_hint="round")
