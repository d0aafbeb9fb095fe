"""Transposes in vector registers: a square of vectors, interleaved until rows have become columns."""

from __future__ import annotations

from typing import Any

from edgecompile.targets import _tvm_tir as tir
from edgecompile.targets._tvm_tir import Block


def square(last: Block, value: Any, crossed: int, place: dict[int, Any], lanes: int) -> Any | None:
    """One square of `lanes` by `lanes` elements at a place; None where the value is more than one load.

    Interleaving row i with row i + n/2 rotates the bits of (row, column) by one; n rows take log2(n) of it.
    """
    from tvm import tirx

    found = tir.loads(value)
    if len(found) != 1 or not hasattr(value, "source") or not found[0][1][-1].same_as(last.axes[crossed]):
        return None
    if any(tir.mentions(i, last.axes[crossed]) for i in found[0][1][:-1]):
        return None
    dtype, end = str(last.buffer.dtype), len(last.axes) - 1
    if dtype != "float32":
        return None
    whole = tirx.Ramp(tirx.const(0, "int64"), tirx.const(1, "int64"), lanes)
    parts: list[Any] = []

    def fresh(stage: int) -> list[Any]:
        made = [tirx.decl_buffer((lanes,), dtype, f"square{stage}_{i}") for i in range(lanes)]
        parts.extend(tirx.AllocBuffer(b) for b in made)
        return made

    def run(axis: int, offset: int, vector: int) -> dict[Any, Any]:
        """The axes' values where one of them is a vector and another one offset from the square's corner."""
        moved = {**place, axis: place[axis] + offset}
        moved[vector] = tirx.Ramp(place[vector], tirx.const(1, "int64"), lanes)
        return {last.axes[i]: v for i, v in moved.items()}

    rows = fresh(0)
    for i, row in enumerate(rows):
        parts.append(tirx.BufferStore(row, tir.rewrite(value, run(end, i, crossed)), [whole]))
    stage = 1
    while 1 << stage <= lanes:
        made = fresh(stage)
        for i in range(lanes // 2):
            pair = [tirx.BufferLoad(rows[j], [whole]) for j in (i, i + lanes // 2)]
            for half in range(2):
                picked = [n for c in range(lanes // 2) for n in (half * lanes // 2 + c, half * lanes // 2 + c + lanes)]
                mixed = tirx.Shuffle(pair, [tirx.const(n, "int32") for n in picked])
                parts.append(tirx.BufferStore(made[2 * i + half], mixed, [whole]))
        rows, stage = made, stage + 1
    for i, row in enumerate(rows):
        where = run(crossed, i, end)
        indices = [tir.rewrite(index, where) for index in last.indices]
        parts.append(tirx.BufferStore(last.buffer, tirx.BufferLoad(row, [whole]), indices))
    return tir.sequence(parts)
