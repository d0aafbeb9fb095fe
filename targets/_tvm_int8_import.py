"""Integer layers in Relax: sums of integers by integers, requantized; for other nodes the importers for floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompile.rewrite import argument
from edgecompile.targets._tvm_elements import Simd
from edgecompile.targets._tvm_int8 import CLAMPS, CONVOLUTIONS, DEQUANTIZE, LAYERS, MEAN, MOVES, NAMES, QUANTIZE, Plan
from edgecompile.targets._tvm_int8_grid import Grid, Layer

if TYPE_CHECKING:
    from torch import fx

Convert = Callable[[Any, Any], Any]
Sums = tuple[Any, tuple[int, ...], tuple[int, ...]]
"""The sums of a layer, the shape of constants a column, the shape of its result."""
_ADD = "add.Tensor"


def converters(plan: Plan, base: Mapping[str, Convert], simd: Simd) -> dict[str, Convert]:
    """Importers that look a node up in the plan first; `base` and TVM's own are for the other nodes."""
    kind = "int8" if simd.signed else "uint8"

    def plain(name: str, node: fx.Node, importer: Any) -> Any:
        return base[name](node, importer) if name in base else importer.create_convert_map()[name](node)

    def layer(node: fx.Node, importer: Any) -> Any:
        found = plan.layers.get(node)
        if found is None:
            return plain(node.target.__name__, node, importer)  # type: ignore[union-attr]
        make = _mean if node.target is MEAN else _convolution if node.target in CONVOLUTIONS else _linear
        return _finished(importer, *make(importer, node, found, simd), found)

    def carried(node: fx.Node, importer: Any) -> Any:
        if node in plan.carried:
            return importer.env[node.args[0]]
        return plain(node.target.__name__, node, importer)  # type: ignore[union-attr]

    def added(node: fx.Node, importer: Any) -> Any:
        if any(plan.ends.get(u) is node for u in _behind(node)):
            return importer.env[node.args[0].args[0]]  # type: ignore[union-attr]
        return plain(_ADD, node, importer)

    def move(node: fx.Node, importer: Any) -> Any:
        name = node.target.__name__  # type: ignore[union-attr]
        if node not in plan.moves:
            return plain(name, node, importer)
        held, before = importer.env[node.args[0]], node.args[0]
        importer.env[before] = importer.env[plan.moves[node]]
        try:
            if "pad" in name:
                return _pad(importer, node, plan.grids[plan.moves[node]])
            return plain(name, node, importer)
        finally:
            importer.env[before] = held

    def quantize(node: fx.Node, importer: Any) -> Any:
        value = importer.env[node.args[0]]
        if node in plan.sums:
            found = plan.sums[node]
            return _sum(importer, [importer.env[s] for s in found.sources], found, kind)
        anchor = plan.ends.get(node)
        return _quantized(importer, value, plan.grids[node], kind) if anchor is None else value

    def dequantize(node: fx.Node, importer: Any) -> Any:
        source, grid = node.args[0], plan.grids.get(node.args[0])  # type: ignore[arg-type]
        scale, zero = (float(node.args[1]), int(node.args[2])) if grid is None else (grid.scale, grid.zero)  # type: ignore[arg-type]
        return _dequantized(importer, importer.env[source], scale, zero)

    found: dict[str, Convert] = {op.__name__: layer for op in (*LAYERS, MEAN)}
    found |= {op.__name__: carried for op in CLAMPS} | {op.__name__: move for op in MOVES}
    found |= {_ADD: added, QUANTIZE.__name__: quantize, DEQUANTIZE.__name__: dequantize}
    by_channel = next(iter(NAMES - {QUANTIZE.__name__, DEQUANTIZE.__name__}))
    found[by_channel] = lambda node, importer: importer.env[node.args[0]]  # only integer layers read it
    return found


def _behind(node: fx.Node) -> list[fx.Node]:
    """The nodes that a chain of single readers leads to."""
    found: list[fx.Node] = []
    while len(node.users) == 1 and node.target is not QUANTIZE:
        node = next(iter(node.users))
        found.append(node)
    return found


def _const(value: Any, dtype: str) -> Any:
    from tvm import relax

    return relax.const(np.asarray(value, dtype), dtype)


def _quantized(importer: Any, x: Any, grid: Grid, kind: str) -> Any:
    """As torch does it: the product with the inverse scale in float32, rounded to even."""
    from tvm.relax import op

    emit = importer.block_builder.emit
    value = emit(op.round(emit(op.multiply(x, _const(1.0 / grid.scale, "float32")))))
    value = emit(op.maximum(value, _const(grid.low - grid.zero, "float32")))
    value = emit(op.minimum(value, _const(grid.high - grid.zero, "float32")))
    return emit(op.astype(emit(op.add(emit(op.astype(value, "int32")), _const(grid.zero, "int32"))), kind))


def _dequantized(importer: Any, x: Any, scale: float, zero: int) -> Any:
    from tvm.relax import op

    emit = importer.block_builder.emit
    steps = emit(op.subtract(emit(op.astype(x, "int32")), _const(zero, "int32")))
    return emit(op.multiply(emit(op.astype(steps, "float32")), _const(scale, "float32")))


def _narrowed(importer: Any, steps: Any, grid: Grid, kind: str) -> Any:
    """Steps around zero as integers of a grid."""
    from tvm.relax import op

    emit = importer.block_builder.emit
    value = emit(op.add(steps, _const(grid.zero, "int32")))
    value = emit(op.minimum(emit(op.maximum(value, _const(grid.low, "int32"))), _const(grid.high, "int32")))
    return emit(op.astype(value, kind))


def _requantized(importer: Any, sums: Any, multipliers: Any, exact: bool, grid: Grid, kind: str) -> Any:
    """Sums times multipliers, rounded once to even: in float32 with a fused product where that is exact."""
    from tvm.relax import op

    emit, dtype = importer.block_builder.emit, "float32" if exact else "float64"
    value = emit(op.round(emit(op.multiply(emit(op.astype(sums, dtype)), _const(multipliers, dtype)))))
    if not exact:
        value = emit(op.minimum(emit(op.maximum(value, _const(-(2**24), dtype))), _const(2**24, dtype)))
    return _narrowed(importer, emit(op.astype(value, "int32")), grid, kind)


def _finished(importer: Any, sums: Any, shape: tuple[int, ...], size: tuple[int, ...], layer: Layer) -> Any:
    """What follows the sums of a layer; `shape` is that of the constants a column, `size` that of the result."""
    from tvm.relax import op

    emit = importer.block_builder.emit
    if layer.out is None:
        value = emit(op.add(sums, _const(layer.offset().reshape(shape), "int32")))
        value = emit(op.multiply(emit(op.astype(value, "float32")), _const(layer.scales.reshape(shape), "float32")))
        value = emit(op.add(value, _const(layer.bias.reshape(shape), "float32"))) if layer.bias.any() else value
    else:
        offset, multipliers, exact = layer.requantization()
        value = emit(op.add(sums, _const(offset.reshape(shape), "int32")))
        kind = str(importer.env[layer.source].ty.dtype)
        value = _requantized(importer, value, multipliers.reshape(shape), exact, layer.out, kind)
    return value if tuple(int(d) for d in value.ty.shape) == size else emit(op.reshape(value, size))


def _linear(importer: Any, node: fx.Node, layer: Layer, simd: Simd) -> Sums:
    """A product with the weights transposed; the inner size is filled up to groups of four."""
    from tvm.relax import op

    emit, x = importer.block_builder.emit, importer.env[layer.source]
    weight = layer.weight.T
    size = tuple(int(d) for d in node.meta["val"].shape)
    if more := -len(weight) % 4:
        x = emit(op.nn.pad(x, [0, 0] * (len(size) - 1) + [0, more], "constant", float(layer.grid.zero)))
        weight = np.pad(weight, ((0, more), (0, 0)))
    if len(size) == 1:
        x = emit(op.reshape(x, (1, len(weight))))
    return emit(op.matmul(x, _const(weight, "int8"), out_dtype="int32")), (-1,), size


def _convolution(importer: Any, node: fx.Node, layer: Layer, simd: Simd) -> Sums:
    """A convolution over an image with a border of the zero point; groups filled up to vectors."""
    from tvm.relax import op

    emit, x, weight = importer.block_builder.emit, importer.env[layer.source], layer.weight
    stride, pad, dilation = (list(argument(node, n)) for n in ("stride", "padding", "dilation"))
    if weight.ndim == 3:
        x, weight = emit(op.expand_dims(x, 2)), weight[:, :, None, :]
        stride, pad, dilation = [1, *stride[-1:]], [0, *pad[-1:]], [1, *dilation[-1:]]
    stride, pad, dilation = ((v * 2)[:2] for v in (stride, pad, dilation))
    sums = _image(importer, x, weight, (stride, pad, dilation, int(argument(node, "groups"))), layer.grid, simd)
    return sums, (1, -1, 1, 1), tuple(int(d) for d in node.meta["val"].shape)


def _mean(importer: Any, node: fx.Node, layer: Layer, simd: Simd) -> Sums:
    """The sums of an image, with weights of one."""
    x, ones = importer.env[layer.source], ([1, 1], [0, 0], [1, 1], len(layer.weight))
    sums = _image(importer, x, layer.weight, ones, layer.grid, simd)
    return sums, (1, -1, 1, 1), tuple(int(d) for d in node.meta["val"].shape)


def _image(importer: Any, x: Any, weight: np.ndarray[Any, Any], given: Any, grid: Grid, simd: Simd) -> Any:
    """The sums of a convolution; `given` are stride, padding, dilation and groups."""
    from tvm.relax import op

    stride, pad, dilation, groups = given
    emit, channels, more = importer.block_builder.emit, int(x.ty.shape[1]), 0
    if not groups == channels == len(weight) or channels < simd.lanes:
        weight, groups = _merged(weight, groups, simd.lanes)
        more = -channels % 4 if groups == 1 else 0
        weight = np.pad(weight, ((0, 0), (0, more), (0, 0), (0, 0)))
    if more or any(pad):
        around = [0, 0, 0, more, pad[0], pad[0], pad[1], pad[1]]
        x = emit(op.nn.pad(x, around, "constant", float(grid.zero)))
    return emit(
        op.nn.conv2d(x, _const(weight, "int8"), strides=stride, dilation=dilation, groups=groups, out_dtype="int32")
    )


def _merged(weight: np.ndarray[Any, Any], groups: int, lanes: int) -> tuple[np.ndarray[Any, Any], int]:
    """Groups put together until they fill vectors and words of four, zeros where an input is not of an output's group.

    All of them where no number of groups does.
    """
    outer, inner = len(weight) // groups, weight.shape[1]
    whole = (q for q in range(1, groups + 1) if groups % q == 0 and q * outer % lanes == 0 and q * inner % 4 == 0)
    q = next(whole, groups)
    merged = np.zeros((len(weight), q * inner, *weight.shape[2:]), weight.dtype)
    for g in range(groups):
        rows, place = slice(g * outer, (g + 1) * outer), (g % q) * inner
        merged[rows, place : place + inner] = weight[rows]
    return merged, groups // q


def _sum(importer: Any, values: list[Any], found: Any, kind: str) -> Any:
    """Two tensors in fixed point: products and their sum in int32, shifted back with rounding to even."""
    from tvm.relax import op

    emit = importer.block_builder.emit
    parts = [
        emit(op.multiply(emit(op.astype(v, "int32")), _const(f, "int32")))
        for v, f in zip(values, found.factors, strict=True)
    ]
    total = emit(op.add(emit(op.add(*parts)), _const(found.offset, "int32")))
    odd = emit(op.bitwise_and(emit(op.right_shift(total, _const(found.bits, "int32"))), _const(1, "int32")))
    half = emit(op.add(emit(op.add(total, _const(2 ** (found.bits - 1) - 1, "int32"))), odd))
    return _narrowed(importer, emit(op.right_shift(half, _const(found.bits, "int32"))), found.out, kind)


def _pad(importer: Any, node: fx.Node, grid: Grid) -> Any:
    """Zeros around a tensor, as its grid writes them."""
    from tvm.relax import op

    x: Any = importer.env[node.args[0]]
    given: Any = node.args[1]
    pairs = [(0, 0)] * len(x.ty.shape)
    for i in range(len(given) // 2):
        pairs[-1 - i] = tuple(given[2 * i : 2 * i + 2])
    return importer.block_builder.emit(op.nn.pad(x, [p for pair in pairs for p in pair], "constant", float(grid.zero)))
