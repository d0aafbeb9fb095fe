"""Code for what is computed element by element: vectors along the last axis, transposes in tiles that fit the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgecompile.targets import _tvm_tir as tir
from edgecompile.targets._tvm_choice import Task, Tile
from edgecompile.targets._tvm_steps import simplified
from edgecompile.targets._tvm_tir import Block
from edgecompile.targets._tvm_transpose import square


@dataclass(frozen=True)
class Simd:
    """Vector lanes of 32 bits and vector registers of a CPU, and its instruction for dot products of integers.

    `vnni` is unsigned by signed words of four, `sdot` signed words of four, `pairs` pairs of 16 bits; '' is none.
    `tuned` are tiles that were measured.
    """

    lanes: int
    registers: int
    dot: Literal["", "vnni", "sdot", "pairs"] = ""
    tuned: tuple[tuple[Task, Tile], ...] = ()

    @property
    def signed(self) -> bool:
        """Whether activations are signed integers."""
        return self.dot == "sdot"


def assembled(function: Any, buffers: Sequence[Any], stmts: Sequence[Any]) -> Any:
    """The function with a new body."""
    from tvm import tirx

    body = tir.sequence([*(tirx.AllocBuffer(b) for b in buffers), *stmts])
    made = tirx.PrimFunc(function.params, body, function.ret_type, function.attrs)
    return made.with_attr("tirx.is_scheduled", True)


def elements(function: Any, simd: Simd) -> Any | None:
    """Everything inlined into the last block, its last axis in vectors; transposes by tiles that fit the cache."""
    blocks = tir.blocks_of(function)
    if not blocks or any(b.reduced for b in blocks):
        return None
    if len(blocks) == 1 and "edge.pads" in blocks[0].marks:
        return assembled(function, [], [bordered(blocks[0], simd)])
    results = [b for b in blocks if any(b.buffer.same_as(p) for p in function.params)]
    earlier = {b.buffer: b for b in blocks if b not in results}
    if any(buffer.same_as(r.buffer) for b in blocks for buffer, _ in tir.loads(b.value) for r in results):
        return None
    if not all(i.same_as(a) for r in results for i, a in zip(r.indices, r.axes, strict=True)):
        return None
    return assembled(function, [], [elementwise(r, simplified(tir.inlined(r.value, earlier)), simd) for r in results])


def elementwise(last: Block, value: Any, simd: Simd) -> Any:
    """Loops that store `value` wherever `last` stores."""
    from tvm import tirx

    def store(variables: Sequence[Any], count: int = 1, axis: int = -1) -> Any:
        """A vector along an axis, or one element."""

        def where(lane: Any) -> dict[Any, Any]:
            place = list(variables)
            if count > 1:
                place[axis] = place[axis] + lane
            return dict(zip(last.axes, place, strict=True))

        return tir.stored(last.buffer, last.indices, value, count, where)

    sizes, lanes = last.sizes, simd.lanes
    if not sizes:
        return store([])
    found = tir.loads(value)
    crossed = _crossed(last, found)
    if crossed is not None and sizes[crossed] >= lanes and sizes[-1] >= 4:
        rest = [i for i in range(len(sizes) - 1) if i != crossed]

        def tile(variables: list[Any]) -> Any:
            *outer, p, q = variables
            wide, high = min(lanes, sizes[-1]), lanes
            corner = dict(zip(rest, outer, strict=True))
            corner[crossed] = tirx.min(p * high, sizes[crossed] - high)
            corner[len(sizes) - 1] = tirx.min(q * wide, sizes[-1] - wide)
            if wide == lanes and (made := square(last, value, crossed, corner, lanes)) is not None:
                return made

            def cell(pair: list[Any]) -> Any:
                place = {**corner, crossed: corner[crossed] + pair[0]}
                place[len(sizes) - 1] = corner[len(sizes) - 1] + pair[1]
                return store([place[i] for i in range(len(sizes))])

            return tir.nest([high, wide], cell)

        return tir.nest([*(sizes[i] for i in rest), -(-sizes[crossed] // lanes), -(-sizes[-1] // lanes)], tile)
    if sizes[-1] < lanes or crossed is not None:
        return tir.nest(sizes, store)
    return tir.nest(sizes[:-1], lambda outer: blocked(sizes[-1], lanes, lambda j: store([*outer, j], lanes)))


def _crossed(last: Block, found: Sequence[tuple[Any, list[Any]]]) -> int | None:
    """The axis along which a load is contiguous, where that is not the last one."""
    for _, indices in found:
        for at, axis in enumerate(last.axes[:-1]):
            if indices and tir.mentions(indices[-1], axis) and not tir.mentions(indices[-1], last.axes[-1]):
                return at
    return None


def blocked(size: int, lanes: int, body: Any) -> Any:
    """A loop over the starts of vectors, the last one overlapping its neighbour."""
    from tvm import tirx

    def start(i: Any) -> Any:
        return i * lanes if size % lanes == 0 else tirx.min(i * lanes, size - lanes)

    return tir.loop(-(-size // lanes), lambda i: body(start(i)))


def vectors(size: int, lanes: int, body: Any) -> Any:
    """Every index of an axis in vectors; scalars on a short axis."""
    if size < lanes:
        return tir.loop(size, body)
    return blocked(size, lanes, lambda start: tir.loop(lanes, lambda lane: body(start + lane), "vector"))


def bordered(block: Block, simd: Simd) -> Any:
    """A copy [b, y, x, c] into a larger image: rows of the fill value, then some left and right of each copied row."""
    from tvm import tirx

    top, left, bottom, right = (int(v) for v in block.marks["edge.pads"])
    batch, height, width, channels = block.sizes
    have = int(block.marks.get("edge.channels", channels))
    inner, fill = height - top - bottom, block.value.args[2]
    ((source, _),) = tir.loads(block.value)
    wide = simd.lanes * (4 if "int8" in str(block.buffer.dtype) else 1)

    def run(b: Any, y: Any, x: Any, count: int, row: Any = None) -> Any:
        """Pixels side by side, which lie in memory without a gap: an index of the last axis may go past its end."""
        lanes = wide
        while lanes > max(count * channels, simd.lanes):
            lanes //= 2

        def cell(i: Any) -> Any:
            held = fill if row is None else tirx.BufferLoad(source, [b, row, tirx.const(0, "int64"), i])
            return tirx.BufferStore(block.buffer, held, [b, y, tirx.const(0, "int64") + x, i])

        return vectors(count * channels, lanes, cell)

    def pixel(b: Any, y: Any, x: Any) -> Any:
        """A pixel that gets more channels."""
        held = [tirx.BufferLoad(source, [b, y, x, tirx.const(c, "int64")]) for c in range(have)]
        held += [fill] * (channels - have)
        stores = [tirx.BufferStore(block.buffer, v, [b, y + top, x + left, tirx.const(c, "int64")])
                  for c, v in enumerate(held)]  # fmt: skip
        return tir.sequence(stores)

    def line(b: Any, y: Any) -> Any:
        parts = [run(b, y + top, 0, left)] if left else []
        if have == channels:
            parts.append(run(b, y + top, left, width - left - right, y))
        else:
            parts.append(tir.loop(width - left - right, lambda x: pixel(b, y, x)))
        return tir.sequence(parts + ([run(b, y + top, width - right, right)] if right else []))

    def image(b: Any) -> Any:
        parts = [tir.loop(top, lambda y: run(b, y, 0, width))] if top else []
        parts.append(tir.loop(inner, lambda y: line(b, y)))
        if bottom:
            parts.append(tir.loop(bottom, lambda y: run(b, y + (height - bottom), 0, width)))
        return tir.sequence(parts)

    return tir.loop(batch, image)
