"""One step of an integer tile: words of four (or two) integers by a vector of words, added to 32-bit sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from edgecompile.targets import _tvm_tir as tir
from edgecompile.targets._tvm_elements import Simd
from edgecompile.targets._tvm_tir import Block

_VNNI = "llvm.x86.avx512.vpdpbusd.512"
_PAIRS = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
_SDOT = "llvm.aarch64.neon.sdot.v4i32.v16i8"


def _ramp(start: Any, count: int, step: int = 1) -> Any:
    from tvm import tirx

    base = start if hasattr(start, "ty") else tirx.const(start, "int64")
    return tirx.Ramp(base, tirx.const(step, str(base.ty.dtype)), count)


def shared(anchor: Block, simd: Simd, values: Mapping[Any, Any], tile: Any, vector: int, acc: Any) -> Any:
    """Add a word of activations, the same for all lanes, times a vector of words of packed weights."""
    from tvm import tirx

    factors, lanes = anchor.value.b, simd.lanes
    zero = {anchor.axes[anchor.reduced[-1]]: tirx.const(0, "int64")}
    ((source, at),) = tir.loads(factors.a)
    ((weights, place),) = tir.loads(factors.b)
    *front, last = (tir.rewrite(i, {**values, **zero}) for i in at)
    word = tirx.reinterpret("int32", tirx.BufferLoad(source, [*front, _ramp(last, 4)]))
    *around, _ = (tir.rewrite(i, {**values, **zero}) for i in place)
    start = vector * lanes * 4

    def held(offset: int, count: int) -> Any:
        return tirx.BufferLoad(weights, [tile, *around[1:], _ramp(start + offset, count)])

    total = tirx.BufferLoad(acc, [_ramp(0, lanes)])
    if simd.dot == "":
        strided = [tirx.BufferLoad(weights, [tile, *around[1:], _ramp(start + i, lanes, 4)]) for i in range(4)]
        return _plain(anchor, values, strided, acc)
    wide = tirx.Broadcast(word, lanes)
    parts = (held(0, 2 * lanes), held(2 * lanes, 2 * lanes)) if simd.dot == "pairs" else (held(0, 4 * lanes),)
    return tirx.BufferStore(acc, _summed(total, wide, parts, simd), [_ramp(0, lanes)])


def _summed(total: Any, words: Any, weights: Sequence[Any], simd: Simd) -> Any:
    """The sums with one word a lane added; for pairs the even parts of the words, then the odd ones."""
    from tvm import tirx

    lanes = simd.lanes
    sums = f"int32x{lanes}"
    if simd.dot != "pairs":
        name = {"vnni": _VNNI, "sdot": _SDOT}[simd.dot]
        return tirx.call_llvm_pure_intrin(sums, name, total, tirx.reinterpret(f"int8x{4 * lanes}", words), *weights)
    mask, kind = tirx.Broadcast(tirx.const(0x00FF00FF, "int32"), lanes), f"int16x{2 * lanes}"
    low = tirx.bitwise_and(words, mask)
    high = tirx.bitwise_and(tirx.shift_right(words, tirx.Broadcast(tirx.const(8, "int32"), lanes)), mask)
    for part, held in zip((low, high), weights, strict=True):
        total = total + tirx.call_llvm_pure_intrin(sums, _PAIRS[lanes], tirx.reinterpret(kind, part), held)
    return total


def _plain(anchor: Block, values: Mapping[Any, Any], weights: Sequence[Any], acc: Any) -> Any:
    """Without an instruction for words: one product after the other."""
    from tvm import tirx

    part, lanes = anchor.axes[anchor.reduced[-1]], int(acc.shape[0])
    stores = []
    for i, held in enumerate(weights):
        activation = tir.rewrite(anchor.value.b.a, {**values, part: tirx.const(i, "int64")})
        total = tirx.BufferLoad(acc, [_ramp(0, lanes)])
        product = tirx.Broadcast(activation, lanes) * held.astype(f"int32x{lanes}")
        stores.append(tirx.BufferStore(acc, total + product, [_ramp(0, lanes)]))
    return tir.sequence(stores)


def depthwise(anchor: Block, simd: Simd, places: Sequence[tuple[Mapping[Any, Any], Any]]) -> Any:
    """All steps of a tile of a depthwise convolution, the sums at `places`; in a loop where they are many."""
    from tvm import tirx

    rows, columns = (anchor.sizes[i] for i in anchor.reduced)
    groups = range(-(-rows // int(anchor.marks["edge.taps"])))

    def cell(group: int, column: Any) -> Any:
        return tir.sequence([_taps(anchor, simd, values, acc, (group, column)) for values, acc in places])

    if len(groups) * columns > 32:
        return tir.sequence([tir.loop(columns, partial(cell, g)) for g in groups])
    return tir.sequence([cell(g, tirx.const(x, "int64")) for g in groups for x in range(columns)])


def _taps(anchor: Block, simd: Simd, values: Mapping[Any, Any], acc: Any, cell: tuple[int, Any]) -> Any:
    """Add rows of one column of a depthwise kernel: a lane's word is its channel in consecutive rows of the image."""
    from tvm import tirx

    lanes, count = simd.lanes, int(anchor.marks["edge.taps"])
    group, column = cell
    ry, rx = (anchor.axes[i] for i in anchor.reduced)
    rows = anchor.sizes[anchor.reduced[0]]
    factors = anchor.value.b
    ((source, at),) = tir.loads(factors.a)
    ((weights, _),) = tir.loads(factors.b)
    bits, words = 32 // count, None
    for i in range(min(count, rows - group * count)):
        place = {**values, ry: tirx.const(group * count + i, "int64"), rx: column}
        *front, last = (tir.rewrite(index, place) for index in at)
        part = tirx.BufferLoad(source, [*front, _ramp(last, lanes)])
        if str(source.dtype) == "int8":
            part = tirx.reinterpret(f"uint8x{lanes}", part)
        part = part.astype(f"int32x{lanes}")
        if i:
            part = tirx.shift_left(part, tirx.Broadcast(tirx.const(bits * i, "int32"), lanes))
        words = part if words is None else tirx.bitwise_or(words, part)
    channel = tir.rewrite(anchor.axes[anchor.spatial[-1]], values)
    held = tirx.BufferLoad(weights, [group, column, _ramp(channel * count, count * lanes)])
    total = tirx.BufferLoad(acc, [_ramp(0, lanes)])
    if simd.dot == "pairs":
        kind = f"int16x{2 * lanes}"
        total = total + tirx.call_llvm_pure_intrin(f"int32x{lanes}", _PAIRS[lanes], tirx.reinterpret(kind, words), held)
    else:
        total = _summed(total, words, (held,), simd)
    return tirx.BufferStore(acc, total, [_ramp(0, lanes)])
