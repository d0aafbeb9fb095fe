"""Code for contractions, depthwise convolutions and pools: register tiles whose last tile overlaps, nothing guarded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from edgecompile.targets import _tvm_int8_dots as dots
from edgecompile.targets import _tvm_tir as tir
from edgecompile.targets._tvm_choice import Task, Tile, choose
from edgecompile.targets._tvm_elements import Simd, assembled, bordered, elementwise
from edgecompile.targets._tvm_steps import simplified
from edgecompile.targets._tvm_tir import Block


def tiled(function: Any, simd: Simd) -> Any | None:
    """The function with its one reduction as register tiles and all that follows in the tile; None where it cannot.

    The result's last axis is the one of the vectors and the axis before it the one of the rows. Tiles that would
    overhang start earlier instead, so that a few elements are computed twice and no store needs a guard.
    """
    blocks = tir.blocks_of(function)
    if blocks is None:
        return None
    anchors = [i for i, b in enumerate(blocks) if b.reduced]
    if len(anchors) != 1 or tir.results(function, blocks) != 1 or len(blocks[anchors[0]].spatial) < 2:
        return None
    at = anchors[0]
    anchor = blocks[at]
    plan = _plan(anchor, simd)
    if plan is None:
        return None
    follow, rest = _same_place(anchor, blocks[at + 1 :])
    after = _epilogue(anchor, follow)
    if after is None or any(b.reduced for b in rest):
        return None
    stmts = [*(_before(b, simd) for b in blocks[:at]), _loops(anchor, plan, after, simd)]
    held = [b.buffer for b in blocks[:at]]
    if rest:
        earlier = {b.buffer: b for b in rest[:-1]}
        stmts.append(elementwise(rest[-1], simplified(tir.inlined(rest[-1].value, earlier)), simd))
        held.append(after.buffer)
    return assembled(function, held, stmts)


def _same_place(anchor: Block, rest: Sequence[Block]) -> tuple[list[Block], list[Block]]:
    """What follows the reduction at its own size, and what follows that at another (a gate that scales an image)."""
    sizes = tuple(anchor.sizes[i] for i in anchor.spatial)
    count = 0
    while count < len(rest) and rest[count].sizes == sizes:
        count += 1
    outside = {id(b) for b in rest[count:]}
    inner = [b.buffer for b in rest[: max(count - 1, 0)]] + ([anchor.buffer] if count else [])
    late = [buffer for b in rest if id(b) in outside for buffer, _ in tir.loads(b.value)]
    if any(buffer.same_as(i) for buffer in late for i in inner):
        return [], list(rest)
    return list(rest[:count]), list(rest[count:])


@dataclass(frozen=True)
class _Plan:
    tile: Tile
    shared: bool
    rows: int
    columns: int


def _plan(anchor: Block, simd: Simd) -> _Plan | None:
    spatial = [anchor.sizes[i] for i in anchor.spatial]
    rows, columns = spatial[-2], spatial[-1]
    if "edge.vectors" in anchor.marks:
        vectors = int(anchor.marks["edge.vectors"])
        tile = Tile(int(anchor.marks["edge.rows"]), vectors)
        return _Plan(tile, True, rows, columns)
    if columns < simd.lanes or not ("edge.taps" in anchor.marks or _contiguous(anchor)):
        return None
    return _Plan(choose(_task(anchor), simd), False, rows, columns)


def task(function: Any) -> Task | None:
    """The sum in a function that `tiled` takes, where its tile can be chosen by itself."""
    anchors = [b for b in tir.blocks_of(function) or [] if b.reduced]
    if len(anchors) != 1 or len(anchors[0].spatial) < 2 or "edge.fixed" in anchors[0].marks:
        return None
    return _task(anchors[0])


def _task(anchor: Block) -> Task:
    rows, columns = (anchor.sizes[i] for i in anchor.spatial[-2:])
    kind: Any = "window" if "edge.vectors" not in anchor.marks else "int8" if "edge.dot" in anchor.marks else "float"
    return Task(kind, rows, columns, prod(anchor.sizes[i] for i in anchor.reduced))


def _contiguous(anchor: Block) -> bool:
    """Whether every load has the last axis as its last index or not at all, so that it is one vector or one value."""
    column = anchor.axes[anchor.spatial[-1]]
    used = [i for _, indices in tir.loads(anchor.value) for i in indices[:-1] if tir.mentions(i, column)]
    last = [indices[-1] for _, indices in tir.loads(anchor.value)]
    return not used and all(i.same_as(column) or not tir.mentions(i, column) for i in last)


@dataclass(frozen=True)
class _After:
    buffer: Any
    axes: tuple[Any, ...]
    indices: tuple[Any, ...]
    value: Any


def _epilogue(anchor: Block, rest: Sequence[Block]) -> _After | None:
    """What is stored in the end, as an expression over the reduction's result at the same place."""
    from tvm import tirx

    axes = tuple(anchor.axes[i] for i in anchor.spatial)
    if not rest:
        return _After(anchor.buffer, axes, anchor.indices, tirx.BufferLoad(anchor.buffer, list(anchor.indices)))
    if any(b.reduced for b in rest):
        return None
    earlier = {b.buffer: b for b in rest[:-1]}
    last = rest[-1]
    value = simplified(tir.inlined(last.value, earlier))
    sizes = tuple(anchor.sizes[i] for i in anchor.spatial)
    if last.sizes != sizes or not all(i.same_as(a) for i, a in zip(last.indices, last.axes, strict=True)):
        return None
    for buffer, indices in tir.loads(value):
        if buffer.same_as(anchor.buffer) and not all(
            i.same_as(a) or (size == 1 and isinstance(i, tirx.IntImm))
            for i, a, size in zip(indices, last.axes, sizes, strict=True)
        ):
            return None
    return _After(last.buffer, last.axes, last.indices, value)


def _loops(anchor: Block, plan: _Plan, after: _After, simd: Simd) -> Any:
    """The loops over tiles: outer axes, column tiles, row tiles."""
    from tvm import tirx

    outer = [anchor.sizes[i] for i in anchor.spatial[:-2]]
    width = plan.tile.vectors * simd.lanes
    wide, high = -(-plan.columns // width), -(-plan.rows // plan.tile.rows)

    def start(index: Any, step: int, limit: int) -> Any:
        if limit % step == 0 or limit < step:
            return index * step
        return tirx.min(index * step, tirx.const(limit - step, "int64"))

    first = 1 if len(outer) > 1 else 0  # a column's weights stay in the cache for a whole image

    def body(variables: list[Any]) -> Any:
        *around, co, ro = [*variables[:first], *variables[first + 1 : -1], variables[first], variables[-1]]
        place = _Place(around, start(ro, plan.tile.rows, plan.rows), start(co, width, plan.columns), co)
        return _tile(anchor, plan, after, simd, place)

    return tir.nest([*outer[:first], wide, *outer[first:], high], body)


@dataclass(frozen=True)
class _Place:
    outer: list[Any]
    row: Any
    column: Any
    tile: Any


def _tile(anchor: Block, plan: _Plan, after: _After, simd: Simd, place: _Place) -> Any:
    """One tile: zero the registers, sum, store what follows from them."""
    from tvm import tirx

    rows, vectors, lanes = range(plan.tile.rows), range(plan.tile.vectors), simd.lanes
    dtype = str(anchor.buffer.dtype)
    acc = [[tirx.decl_buffer((lanes,), dtype, f"acc{r}_{v}") for v in vectors] for r in rows]
    flat = [b for line in acc for b in line]
    spatial = [anchor.axes[i] for i in anchor.spatial]

    def at(r: int, v: int, lane: Any, axes: Sequence[Any]) -> dict[Any, Any]:
        return dict(zip(axes, [*place.outer, place.row + r, place.column + v * lanes + lane], strict=True))

    def zero(b: Any) -> Any:
        return tir.loop(lanes, lambda j: tirx.BufferStore(b, anchor.init, [j]), "vector")

    def step(r: int, v: int, k: dict[Any, Any]) -> Any:
        def body(lane: Any) -> Any:
            held = tirx.BufferLoad(acc[r][v], [lane])
            if plan.shared:
                value = held + _product(anchor, at(r, v, 0, spatial) | k, place.tile, v * lanes + lane)
            else:
                value = tir.rewrite(
                    anchor.value, at(r, v, lane, spatial) | k, lambda b, _: held if b.same_as(anchor.buffer) else None
                )
            return tirx.BufferStore(acc[r][v], value, [lane])

        return tir.loop(lanes, body, "vector")

    dot = "edge.dot" in anchor.marks
    reduced, sizes = ([of[i] for i in anchor.reduced[: -1 if dot else None]] for of in (anchor.axes, anchor.sizes))

    def sums(ks: list[Any]) -> Any:
        k = dict(zip(reduced, ks, strict=True))
        if dot:
            parts = [(at(r, v, 0, spatial) | k, v, acc[r][v]) for r in rows for v in vectors]
            return tir.sequence([dots.shared(anchor, simd, p, place.tile, v, into) for p, v, into in parts])
        return tir.sequence([step(r, v, k) for r in rows for v in vectors])

    if "edge.taps" in anchor.marks:
        places = [(at(r, v, 0, spatial), acc[r][v]) for r in rows for v in vectors]
        total = dots.depthwise(anchor, simd, places)
    elif plan.shared or prod(sizes) > 32:
        total = tir.nest(sizes, sums)
    else:
        total = tir.nest(sizes[:-1], lambda k: _unrolled(sizes[-1], k, sums))

    def store(r: int, v: int) -> Any:
        live = min(lanes, plan.columns - v * lanes) if plan.columns < plan.tile.vectors * lanes else lanes

        def load(lane: Any) -> Any:
            return lambda b, _: tirx.BufferLoad(acc[r][v], [lane]) if b.same_as(anchor.buffer) else None

        kind = "vector" if live == lanes else "unroll"
        return tir.stored(
            after.buffer, after.indices, after.value, live, lambda lane: at(r, v, lane, after.axes), load, kind
        )

    stored = [store(r, v) for r in rows for v in vectors if v * lanes < plan.columns]
    return tir.sequence([*(tirx.AllocBuffer(b) for b in flat), *map(zero, flat), total, *stored])


def _unrolled(size: int, outer: list[Any], body: Any) -> Any:
    from tvm import tirx

    return tir.sequence([body([*outer, tirx.const(i, "int64")]) for i in range(size)])


def _product(anchor: Block, values: dict[Any, Any], tile: Any, lane: Any) -> Any:
    """One product: an activation, the same for all lanes, by a vector of packed weights.

    The tile and the lane of the weights are the loop's own, whatever the overlap.
    """
    from tvm import tirx

    at = int(anchor.marks["edge.tile_axis"])

    def weight(buffer: Any, indices: list[Any]) -> Any:
        return tirx.BufferLoad(buffer, [*indices[:at], tile, *indices[at + 1 : -1], lane])

    factors = anchor.value.b
    return tir.rewrite(factors.a, values) * tir.rewrite(factors.b, values, weight)


def _before(block: Block, simd: Simd) -> Any:
    """What runs before the tiles: a border of zeros around a copy, or a plain loop nest."""
    from tvm import tirx

    if "edge.pads" in block.marks:
        return bordered(block, simd)

    def store(variables: list[Any]) -> Any:
        values = dict(zip(block.axes, variables, strict=True))
        indices = [tir.rewrite(i, values) for i in block.indices]
        return tirx.BufferStore(block.buffer, tir.rewrite(block.value, values), indices)

    if block.sizes[-1] % simd.lanes or "edge.scalar" in block.marks:
        return tir.nest(block.sizes, store)

    def split(variables: list[Any]) -> Any:
        *rest, last = variables
        return tir.loop(simd.lanes, lambda lane: store([*rest, last * simd.lanes + lane]), "vector")

    return tir.nest([*block.sizes[:-1], block.sizes[-1] // simd.lanes], split)
