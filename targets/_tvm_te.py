"""What the lowerings share: sizes and constants of Relax expressions, columns in tiles, borders, TVM's own lowering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def shape(expr: Any) -> list[int] | None:
    """The static shape of a Relax expression."""
    dims = expr.ty.shape
    return [int(d) for d in dims] if dims is not None and all(hasattr(d, "value") for d in dims) else None


def constant(expr: Any) -> np.ndarray[Any, Any] | None:
    """The value of a constant."""
    return expr.value.numpy() if hasattr(expr, "value") and hasattr(expr.value, "numpy") else None


def starts(columns: int, width: int) -> list[int]:
    """Where the column tiles begin: the last one ends with the last column and overlaps its neighbour."""
    count = -(-columns // width)
    return [min(i * width, max(columns - width, 0)) for i in range(count)]


def packed(weights: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Weights with columns last as [tile, ..., lane]; columns that are too few for one tile are filled with zeros."""
    columns = weights.shape[-1]
    if columns < width:
        weights = np.concatenate([weights, np.zeros((*weights.shape[:-1], width - columns), weights.dtype)], axis=-1)
    return np.ascontiguousarray(np.stack([weights[..., s : s + width] for s in starts(columns, width)]))


def column(n: Any, columns: int, width: int) -> tuple[Any, Any]:
    """Tile and lane of a column."""
    from tvm import tirx

    if columns <= width:
        return tirx.const(0, "int64"), n
    tile = tirx.floordiv(n, width)
    if columns % width == 0:
        return tile, tirx.floormod(n, width)
    return tile, n - tirx.min(tile * width, columns - width)


def padded(x: Any, pads: Sequence[int], value: float = 0.0) -> Any:
    """An image [b, y, x, c] with a border: top, left, bottom, right."""
    from tvm import te, tirx

    top, left, bottom, right = pads
    if not any(pads):
        return x
    b, h, w, c = (int(d) for d in x.shape)

    def cell(i: Any, y: Any, z: Any, k: Any) -> Any:
        inside = tirx.all(y >= top, y < h + top, z >= left, z < w + left)
        return tirx.if_then_else(inside, x[i, y - top, z - left, k], tirx.const(value, x.dtype))

    attrs = {"edge.pads": [top, left, bottom, right]}
    return te.compute((b, h + top + bottom, w + left + right, c), cell, name="border", attrs=attrs)


def extent(size: int, kernel: int, pad: int, stride: int, dilation: int) -> int:
    """The size of a convolution's result along an axis."""
    return (size + pad - dilation * (kernel - 1) - 1) // stride + 1


def default(name: str, builder: Any, call: Any) -> Any:
    """TVM's own lowering."""
    from importlib import import_module

    module, _, function = name.partition(".")
    return getattr(
        import_module(f"tvm.relax.transform.legalize_ops.{module}"), f"_{'nn_' if module == 'nn' else ''}{function}"
    )(builder, call)
