"""The steps of an inlined expression: what is read once stands where it is read, requantization is exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from edgecompile.targets import _tvm_tir as tir

_INTEGERS = 12582912.0
"""1.5 * 2**23: from 2**23 to 2**24 float32 has the integers only, so that adding this rounds to even."""
_BITS = 0x4B400000
"""The bits of that float32, from which integers count on."""


def simplified(value: Any) -> Any:
    """The same expression with fewer intermediates."""
    from tvm import tirx

    first, last = tir.unnested(value)
    if not first:
        return value
    first, last = _joined(*_requantized(first, last))
    for variable, made in reversed(first):
        last = tirx.Let(variable, made, last)
    return last


def _joined(first: Sequence[tuple[Any, Any]], last: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """Steps that one other reads, put there; those that nobody reads are left out.

    What binds variables of its own (exp as arithmetic) keeps a place of its own: TVM cannot vectorize it inside others.
    """
    reads: Counter[Any] = Counter()

    class Seen(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            reads[key] += 1
            return default

    for expr in [*(e for _, e in first), last]:
        tir.rewrite(expr, Seen())
    inside: dict[Any, Any] = {}
    kept = []
    for variable, expr in first:
        made = tir.rewrite(expr, inside)
        if reads[variable] == 1 and not _binds(made):
            inside[variable] = made
        elif reads[variable]:
            kept.append((variable, made))
    return kept, tir.rewrite(last, inside)


def _binds(expr: Any) -> bool:
    """Whether an expression has variables of its own."""
    from tvm import tirx

    if isinstance(expr, tirx.Let):
        return True
    parts = [getattr(expr, name, None) for name in ("a", "b", "value", "condition", "true_value", "false_value")]
    return any(map(_binds, [*(p for p in parts if p is not None), *getattr(expr, "args", ())]))


def _requantized(first: Sequence[tuple[Any, Any]], last: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """The steps with `int(nearbyint(float(sum) * m))` of int32 sums rounded once, as in float64.

    A float32 product of 24-bit integers is not exact; a fused product and sum rounds it once. The bits of the sum are
    the integer, beside a constant, which the optimiser may not reassociate as it may `(a * b + c) - c`.
    """
    from tvm import tirx

    made = dict(first)

    def bits(product: Any) -> Any:
        shift, least = (tirx.const(v, "float32") for v in (_INTEGERS, _INTEGERS - 2.0**22))
        fused = tirx.call_llvm_pure_intrin("float32", "llvm.fma", product.a, product.b, shift)
        return tirx.reinterpret("int32", tirx.max(fused, least)) - tirx.const(_BITS, "int32")

    def step(expr: Any) -> Any:
        product = _rounded(expr, made)
        return expr if product is None else bits(product)

    return [(v, step(e)) for v, e in first], step(last)


def _rounded(expr: Any, made: dict[Any, Any]) -> Any:
    """The product inside `int(nearbyint(float(sum) * m))`, None for anything else."""
    from tvm import ir, tirx

    def of(e: Any) -> Any:
        return made.get(e, e) if isinstance(e, tirx.Var) else e

    if not isinstance(expr, tirx.Cast) or str(expr.ty.dtype) != "int32":
        return None
    call = of(expr.value)
    if not isinstance(call, ir.Call) or getattr(call.op, "name", "") != "tirx.nearbyint":
        return None
    product = of(call.args[0])
    if not isinstance(product, tirx.Mul) or str(product.ty.dtype) != "float32":
        return None
    factor = of(product.a)
    return product if isinstance(factor, tirx.Cast) and str(factor.value.ty.dtype) == "int32" else None
