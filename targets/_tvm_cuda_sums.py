"""Sums of one term as plain values: TVM's rules for GPUs inline what follows into such sums and make wrong kernels."""

from __future__ import annotations

from typing import Any

from edgecompile.targets import _tvm_tir as tir


def without_single(function: Any) -> Any:
    """The function with every sum (or maximum) over a single term as that term."""
    from tvm import tirx

    body = _rebuilt(function.body)
    if body.same_as(function.body):
        return function
    return tirx.PrimFunc(function.params, body, function.ret_type, function.attrs)


def _rebuilt(stmt: Any) -> Any:
    from tvm import tirx
    from tvm.s_tir.stmt import SBlock, SBlockRealize

    if isinstance(stmt, tirx.SeqStmt):
        made = [_rebuilt(s) for s in stmt.seq]
        return stmt if all(a.same_as(b) for a, b in zip(made, stmt.seq, strict=True)) else tirx.SeqStmt(made)
    if isinstance(stmt, tirx.For):
        body = _rebuilt(stmt.body)
        if body.same_as(stmt.body):
            return stmt
        return tirx.For(
            stmt.loop_var, stmt.min, stmt.extent, stmt.kind, body, stmt.thread_binding, dict(stmt.annotations)
        )
    if not isinstance(stmt, SBlockRealize):
        return stmt
    block = stmt.block
    if block.init is not None:
        return SBlockRealize(list(stmt.iter_values), stmt.predicate, _value(block)) if _single(block) else stmt
    body = _rebuilt(block.body)
    if body.same_as(block.body):
        return stmt
    made = SBlock(
        list(block.iter_vars), list(block.reads), list(block.writes), block.name_hint, body, None,
        list(block.alloc_buffers), list(block.match_buffers), dict(block.annotations),
    )  # fmt: skip
    return SBlockRealize(list(stmt.iter_values), stmt.predicate, made)


def _single(block: Any) -> bool:
    """Whether a block is one store whose sums have a single term."""
    from tvm import tirx

    stores = isinstance(block.body, tirx.BufferStore) and isinstance(block.init, tirx.BufferStore)
    reduced = [v for v in block.iter_vars if int(v.iter_type) == tirx.IterVar.CommReduce]
    return stores and all(isinstance(v.dom.extent, tirx.IntImm) and int(v.dom.extent) == 1 for v in reduced)


def _value(block: Any) -> Any:
    """The block without its sum: where it reads its own result, the value that the sum begins with."""
    from tvm import tirx
    from tvm.s_tir.stmt import SBlock

    store, first = block.body, block.init.value

    def load(buffer: Any, _indices: Any) -> Any:
        return first if buffer.same_as(store.buffer) else None

    made = tirx.BufferStore(store.buffer, tir.rewrite(store.value, {}, load), list(store.indices))
    axes = [tirx.IterVar(v.dom, v.var, tirx.IterVar.DataPar, v.thread_tag) for v in block.iter_vars]
    reads = [r for r in block.reads if not _source(r).same_as(store.buffer)]
    return SBlock(axes, reads, list(block.writes), block.name_hint, made, None, [], [], dict(block.annotations))


def _source(region: Any) -> Any:
    return getattr(region, "buffer", None) or region.source
