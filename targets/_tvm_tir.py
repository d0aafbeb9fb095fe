"""TensorIR read and written node by node: blocks of a fused function, expressions rewritten, loops built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgecompile.targets._tvm_math import expanded

Expr = Any
Stmt = Any
Load = Callable[[Any, list[Any]], Any]


@dataclass(frozen=True)
class Block:
    """One block of a function: `buffer[indices] = value` for all of its iteration variables."""

    name: str
    axes: tuple[Any, ...]
    sizes: tuple[int, ...]
    kinds: tuple[int, ...]
    buffer: Any
    indices: tuple[Any, ...]
    value: Expr
    init: Expr | None
    marks: Mapping[str, Any]

    @property
    def spatial(self) -> list[int]:
        """Positions of the axes that index the result."""
        return [i for i, kind in enumerate(self.kinds) if kind == 0]

    @property
    def reduced(self) -> list[int]:
        """Positions of the axes that are summed over."""
        return [i for i, kind in enumerate(self.kinds) if kind == 2]

    @property
    def operations(self) -> int:
        """Iterations of the block, two operations each where it reduces."""
        total = 2 if self.reduced else 1
        for size in self.sizes:
            total *= size
        return total


def blocks_of(function: Any) -> list[Block] | None:
    """The blocks of a function in order, each one store; None where a block is anything else or a shape is dynamic."""
    from tvm import tirx
    from tvm.s_tir.stmt import SBlockRealize

    found: list[Block] = []

    def visit(stmt: Stmt) -> bool:
        if isinstance(stmt, tirx.SeqStmt):
            return all(visit(s) for s in stmt.seq)
        if isinstance(stmt, tirx.For):
            return visit(stmt.body)
        if not isinstance(stmt, SBlockRealize):
            return False
        block = stmt.block
        if block.name_hint == "root":
            return visit(block.body)
        stores = [block.body] + ([block.init] if block.init is not None else [])
        if not all(isinstance(s, tirx.BufferStore) for s in stores):
            return False
        axes = block.iter_vars
        if not all(isinstance(a.dom.extent, tirx.IntImm) and int(a.dom.min) == 0 for a in axes):
            return False
        found.append(
            Block(
                block.name_hint, tuple(a.var for a in axes), tuple(int(a.dom.extent) for a in axes),
                tuple(int(a.iter_type) for a in axes), block.body.buffer, tuple(block.body.indices), block.body.value,
                None if block.init is None else block.init.value, dict(block.annotations),
            )
        )  # fmt: skip
        return True

    return found if visit(function.body) else None


def results(function: Any, blocks: Sequence[Block]) -> int:
    """How many of the blocks write a result of the function."""
    return sum(any(b.buffer.same_as(p) for p in function.params) for b in blocks)


def rewrite(expr: Expr, values: Mapping[Any, Expr], load: Load | None = None) -> Expr:
    """The expression with variables replaced, and every load replaced by what `load` says (None keeps it)."""
    from tvm import ir, tirx

    def go(e: Expr) -> Expr:
        if isinstance(e, (tirx.IntImm, tirx.FloatImm)):
            return e
        if isinstance(e, tirx.Var):
            return values.get(e, e)
        if isinstance(e, ir.TensorLoad):
            indices = [go(i) for i in e.indices]
            new = None if load is None else load(e.source, indices)
            return tirx.BufferLoad(e.source, indices) if new is None else new
        if isinstance(e, tirx.Cast):
            return go(e.value).astype(str(e.ty.dtype))
        if isinstance(e, tirx.Select):
            return tirx.Select(go(e.condition), go(e.true_value), go(e.false_value))
        if isinstance(e, tirx.Not):
            return tirx.Not(go(e.a))
        if isinstance(e, tirx.Let):
            fresh = tirx.Var(e.var.name, str(e.var.ty.dtype))  # a copy of an expression defines its own variables
            inside: Any = copy(values)  # of the same kind: one that counts goes on counting
            inside[e.var] = fresh
            return tirx.Let(fresh, go(e.value), rewrite(e.body, inside, load))
        if isinstance(e, ir.Call):
            return _call(e, [go(a) for a in e.args])
        if hasattr(e, "a") and hasattr(e, "b"):
            return _binary(e, go(e.a), go(e.b))
        raise NotImplementedError(type(e).__name__)

    return go(expr)


def _binary(e: Any, a: Any, b: Any) -> Any:
    kinds = {str(a.ty.dtype), str(b.ty.dtype)}
    if kinds == {"int32", "int64"}:  # TVM's own axes are of both
        a, b = a.astype("int64"), b.astype("int64")
    return type(e)(a, b)


def _call(e: Any, args: list[Any]) -> Any:
    from tvm import tirx

    if e.op.name == "tirx.if_then_else":
        return tirx.if_then_else(*args)
    if len(args) == 1 and (plain := expanded(e.op.name, args[0])) is not None:
        return plain
    return tirx.call_intrin(str(e.ty.dtype), e.op, *args)


def mentions(expr: Expr, var: Any) -> bool:
    """Whether a variable occurs in an expression."""
    found: list[Any] = []

    class Seen(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            if key.same_as(var):
                found.append(key)
            return default

    rewrite(expr, Seen())
    return bool(found)


def equal(a: Expr, b: Expr) -> bool:
    """Whether two indices are the same expression."""
    from tvm_ffi import structural_equal

    return bool(a.same_as(b) or structural_equal(a, b))


def loads(expr: Expr) -> list[tuple[Any, list[Any]]]:
    """Every load in an expression, as buffer and indices."""
    found: list[tuple[Any, list[Any]]] = []

    def note(buffer: Any, indices: list[Any]) -> None:
        found.append((buffer, indices))

    rewrite(expr, {}, note)
    return found


def inlined(value: Expr, earlier: Mapping[Any, Block]) -> Expr:
    """The expression with loads of earlier blocks' results replaced by what those blocks compute.

    What is read twice is computed once, unless a condition may guard it.
    """
    from tvm import tirx

    guarded = "if_then_else" in str(value)
    found: list[tuple[Any, list[Any], Any, Any]] = []

    def load(buffer: Any, indices: list[Any]) -> Expr | None:
        block = earlier.get(buffer)
        if block is None or block.reduced:
            return None
        for other, at, variable, _ in found:
            if other.same_as(buffer) and all(equal(a, b) for a, b in zip(at, indices, strict=True)):
                return variable
        made = inlined(rewrite(block.value, dict(zip(block.axes, indices, strict=True))), earlier)
        if guarded:
            return made
        variable = tirx.Var("v", str(buffer.dtype))
        found.append((buffer, indices, variable, made))
        return variable

    body = rewrite(value, {}, load)
    for _, _, variable, made in reversed(found):
        body = tirx.Let(variable, made, body)
    return body


def unnested(value: Expr) -> tuple[list[tuple[Any, Expr]], Expr]:
    """What an inlined expression computes first, in order, and the expression over that."""
    from tvm import tirx

    first: list[tuple[Any, Expr]] = []
    while isinstance(value, tirx.Let) and value.var.name == "v":
        inner, made = unnested(value.value)
        first += [*inner, (value.var, made)]
        value = value.body
    return first, value


def stored(
    buffer: Any,
    indices: Sequence[Expr],
    value: Expr,
    lanes: int,
    where: Callable[[Any], Mapping[Any, Expr]],
    load: Callable[[Any], Load] | None = None,
    kind: str = "vector",
) -> Stmt:
    """A vector of `value` stored, each intermediate in a vector of its own: nested expressions double at each use.

    `where` gives the variables' values for a lane and `load` the rule for loads.
    """  # fmt: skip
    from tvm import tirx

    first, last = unnested(value)
    held = {v: tirx.decl_buffer((lanes,), str(v.ty.dtype), "held") for v, _ in first}

    def made(expr: Expr, lane: Any) -> Expr:
        earlier = {v: tirx.BufferLoad(b, [lane]) for v, b in held.items()}
        return rewrite(expr, {**where(lane), **earlier}, load(lane) if load else None)

    def early(into: Any, expr: Expr, lane: Any) -> Stmt:
        return tirx.BufferStore(into, made(expr, lane), [lane])

    stmts = [tirx.AllocBuffer(b) for b in held.values()]
    for variable, expr in first:
        stmts.append(loop(lanes, partial(early, held[variable], expr), kind))
    final = loop(
        lanes, lambda j: tirx.BufferStore(buffer, made(last, j), [rewrite(i, where(j)) for i in indices]), kind
    )
    return sequence([*stmts, final])


def loop(size: int, body: Callable[[Any], Stmt], kind: str = "serial", name: str = "i") -> Stmt:
    """A loop from 0; a single turn is no loop."""
    from tvm import tirx

    kinds = {"serial": tirx.ForKind.SERIAL, "vector": tirx.ForKind.VECTORIZED, "unroll": tirx.ForKind.UNROLLED}
    if size == 1:
        return body(tirx.const(0, "int64"))
    var = tirx.Var(name, "int64")
    return tirx.For(var, tirx.const(0, "int64"), tirx.const(size, "int64"), kinds[kind], body(var))


def nest(sizes: Sequence[int], body: Callable[[list[Any]], Stmt], names: Sequence[str] | None = None) -> Stmt:
    """Loops in a nest, outermost first."""
    if not sizes:
        return body([])
    name = names[0] if names else "i"
    return loop(sizes[0], lambda v: nest(sizes[1:], lambda rest: body([v, *rest]), names and names[1:]), name=name)


def sequence(stmts: Sequence[Stmt]) -> Stmt:
    """Statements one after the other."""
    from tvm import tirx

    return stmts[0] if len(stmts) == 1 else tirx.SeqStmt(list(stmts))


def counted(body: Stmt) -> int:
    """Iterations of all innermost statements of a function, two operations each where they reduce."""
    from tvm import tirx
    from tvm.s_tir.stmt import SBlockRealize

    def visit(stmt: Stmt, times: int) -> int:
        if isinstance(stmt, tirx.SeqStmt):
            return sum(visit(s, times) for s in stmt.seq)
        if isinstance(stmt, tirx.For):
            return visit(stmt.body, times * int(getattr(stmt.extent, "value", 0)))
        if isinstance(stmt, SBlockRealize):
            return visit(stmt.block.body, times * (2 if stmt.block.init is not None else 1))
        inner = [getattr(stmt, n) for n in ("body", "then_case", "else_case") if getattr(stmt, n, None) is not None]
        return sum(visit(s, times) for s in inner) if inner else times

    return visit(body, 1)
