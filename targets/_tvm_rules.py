"""Code for rows (softmax, layer norm), and which rule takes a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgecompile.targets import _tvm_tir as tir
from edgecompile.targets._tvm_elements import Simd, assembled, elements, vectors
from edgecompile.targets._tvm_tiles import tiled
from edgecompile.targets._tvm_tir import Block


def scheduled(function: Any, simd: Simd) -> tuple[str, Any] | None:
    """The rule that takes a function, with its code; None when none does."""
    for name, rule in (("tile", tiled), ("rows", rows), ("elements", elements)):
        try:
            made = rule(function, simd)
        except NotImplementedError:  # an expression that the rules cannot read
            return None
        if made is not None:
            return ("int8 " if _integers(function) else "") + name, made
    return None


def _integers(function: Any) -> bool:
    """Whether a function computes in integers: its sums, or all that it reads."""
    blocks = tir.blocks_of(function) or []
    sums = {str(b.buffer.dtype) for b in blocks if b.reduced}
    read = {str(buffer.dtype) for b in blocks for buffer, _ in tir.loads(b.value)}
    small = {"uint8", "int8"}
    if sums:
        return sums <= {"int32", *small} and bool((read | {str(b.buffer.dtype) for b in blocks}) & small)
    return bool(read & small) and not read & {"float32", "float64"}


@dataclass(frozen=True)
class _Row:
    """The domain of a row function: what is around the row, the row's length, where intermediates live."""

    outer: tuple[int, ...]
    length: int
    held: Mapping[Any, tuple[Any, bool]]


def rows(function: Any, simd: Simd) -> Any | None:
    """All blocks of a function row by row, intermediate rows in a buffer of one row."""
    from tvm import tirx

    blocks = tir.blocks_of(function)
    if not blocks or not any(b.reduced for b in blocks):
        return None
    domain = _domain(blocks)
    if domain is None or tir.results(function, blocks) != 1:
        return None
    outer, length = domain
    held: dict[Any, tuple[Any, bool]] = {}
    for index, block in enumerate(blocks[:-1]):
        scalar = bool(block.reduced) or block.sizes[-1] == 1 < length or len(block.sizes) == len(outer)
        size = 1 if scalar else length
        held[block.buffer] = (tirx.decl_buffer((size,), str(block.buffer.dtype), f"row{index}"), scalar)
    row = _Row(outer, length, held)

    def body(variables: list[Any]) -> Any | None:
        passes = [_pass(b, row, variables, simd, last=b is blocks[-1]) for b in blocks]
        return None if any(p is None for p in passes) else tir.sequence(passes)

    try:
        code = tir.nest(outer, lambda v: _required(body(v)))
    except _Unfit:
        return None
    return assembled(function, [b for b, _ in held.values()], [code])


class _Unfit(Exception):
    pass


def _required(stmt: Any | None) -> Any:
    if stmt is None:
        raise _Unfit
    return stmt


def _domain(blocks: Sequence[Block]) -> tuple[tuple[int, ...], int] | None:
    """The outer sizes and the row length that all blocks share."""
    reduced = [b for b in blocks if b.reduced]
    first = reduced[0]
    if any(len(b.reduced) != 1 or b.reduced[0] != len(b.sizes) - 1 for b in reduced):
        return None
    length = first.sizes[first.reduced[0]]
    outer = tuple(first.sizes[i] for i in first.spatial)
    full = [b for b in blocks if not b.reduced and b.sizes[-1:] == (length,) and len(b.sizes) >= 1]
    wide = max((len(b.sizes) for b in full), default=len(outer) + 1)
    if len(outer) == wide and outer[-1:] == (1,):
        outer = outer[:-1]
    for block in blocks:
        spatial = tuple(block.sizes[i] for i in block.spatial)
        if spatial not in (outer, (*outer, 1), (*outer, length)):
            return None
        if block.reduced and block.sizes[block.reduced[0]] != length:
            return None
    return outer, length


def _pass(block: Block, row: _Row, outer: Sequence[Any], simd: Simd, last: bool) -> Any | None:
    """One block over one row."""
    from tvm import tirx

    spatial = [block.axes[i] for i in block.spatial]
    zero = tirx.const(0, "int64")
    fits = True

    def load(buffer: Any, indices: list[Any]) -> Any:
        nonlocal fits
        if buffer not in row.held:
            return None
        place, scalar = row.held[buffer]
        lead = indices[: len(row.outer)]
        if not all(tir.equal(i, o) for i, o in zip(lead, outer, strict=False)):
            fits = False
        return tirx.BufferLoad(place, [zero if scalar else indices[-1]])

    def target(values: dict[Any, Any], value: Any) -> Any:
        if last:
            indices = [tir.rewrite(i, values) for i in block.indices]
            return tirx.BufferStore(block.buffer, value, indices)
        place, scalar = row.held[block.buffer]
        return tirx.BufferStore(place, value, [zero if scalar else tir.rewrite(block.indices[-1], values)])

    around = dict(zip(spatial, [*outer, zero], strict=False))
    if block.reduced:
        made = _reduction(block, around, load, target, row.length, simd)
    elif block.sizes[-1:] == (row.length,) and len(block.sizes) == len(row.outer) + 1:

        def cell(j: Any) -> Any:
            values = around | {block.axes[-1]: j}
            return target(values, tir.rewrite(block.value, values, load))

        made = vectors(row.length, simd.lanes, cell)
    else:
        made = target(around, tir.rewrite(block.value, around, load))
    return made if fits else None


def _reduction(block: Block, around: dict[Any, Any], load: Any, target: Any, length: int, simd: Simd) -> Any | None:
    """A sum or maximum along the row: vector sums side by side, folded in the end, the rest one by one."""
    from tvm import tirx

    combine = type(block.value)
    if combine not in (tirx.Add, tirx.Max, tirx.Min) or not hasattr(block.value.a, "source"):
        return None
    if not block.value.a.source.same_as(block.buffer):
        return None
    lanes, dtype, axis = simd.lanes, str(block.buffer.dtype), block.axes[block.reduced[0]]
    side = max(1, min(4, length // lanes))
    zero = tirx.const(0, "int64")
    sums = [tirx.decl_buffer((lanes,), dtype, f"sum{i}") for i in range(side)]
    total = tirx.decl_buffer((1,), dtype, "total")

    def at(buffer: Any, index: Any, j: Any) -> Any:
        value = tir.rewrite(block.value.b, around | {axis: j}, load)
        return tirx.BufferStore(buffer, combine(tirx.BufferLoad(buffer, [index]), value), [index])

    def turn(i: Any) -> Any:
        return tir.sequence([part(i * side + n, sums[n]) for n in range(side)])

    def part(vector: Any, into: Any) -> Any:
        return tir.loop(lanes, lambda lane: at(into, lane, vector * lanes + lane), "vector")

    def joined(into: Any, other: Any) -> Any:
        return tir.loop(lanes, lambda j: _folded(into, j, other, j, combine), "vector")

    def start(buffer: Any, size: int) -> Any:
        return tir.loop(size, lambda j: tirx.BufferStore(buffer, block.init, [j]), "vector")

    turns = length // (lanes * side)
    parts: list[Any] = [tirx.AllocBuffer(b) for b in [*sums, total]]
    parts.append(start(total, 1))
    if turns:
        parts += [start(b, lanes) for b in sums] + [tir.loop(turns, turn)]
        parts += [joined(sums[0], other) for other in sums[1:]]
        parts.append(tir.loop(lanes, lambda j: _folded(total, zero, sums[0], j, combine), "unroll"))
    done = turns * lanes * side
    if done < length:
        parts.append(tir.loop(length - done, lambda j: at(total, zero, j + done)))
    return tir.sequence([*parts, target(around, tirx.BufferLoad(total, [zero]))])


def _folded(into: Any, i: Any, other: Any, j: Any, combine: Any) -> Any:
    from tvm import tirx

    return tirx.BufferStore(into, combine(tirx.BufferLoad(into, [i]), tirx.BufferLoad(other, [j])), [i])
