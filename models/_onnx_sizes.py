"""Shape arithmetic with dynamic sizes in it, as ONNX exporters write it between Shape and Reshape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnx import TensorProto

from edgecompile.models._onnx_values import Known, Node, Sizes, Value, from_numbers, ints, rank, sizes


def on_sizes(node: Node, values: Sequence[Value]) -> tuple[Value, ...] | None:
    """The result of a shape computation with symbols in it, or None when it needs tensors.

    Covers gathering, joining, slicing, casts, arithmetic, comparison and selection of scalars and vectors.
    """
    if not all(isinstance(v, (Known, Sizes)) or v is None for v in values):
        return None
    hosts: list[Any] = [v for v in values if v is not None]
    if any(rank(v) > 1 for v in hosts):
        return None
    result = _SHAPE_OPS.get(node.op)
    return result(node, hosts) if result is not None else None


def _pairwise(combine: Callable[[Any, Any], Any]) -> Callable[[Node, list[Any]], tuple[Value, ...] | None]:
    def run(node: Node, hosts: list[Any]) -> tuple[Value, ...] | None:
        if any(isinstance(h, Known) and h.tensor.is_floating_point() for h in hosts):
            return None
        result: Any = hosts[0]
        for other in hosts[1:]:
            left, right = ints(result, "operand"), ints(other, "operand")
            count = max(len(left), len(right))
            if len(left) != len(right) and 1 not in (len(left), len(right)):
                return None
            left, right = left * (count // len(left)), right * (count // len(right))
            vector = rank(result) == 1 or rank(other) == 1
            items = [combine(a, b) for a, b in zip(left, right, strict=True)]
            if items and all(isinstance(i, bool) for i in items):
                result = from_numbers(items if vector else items[0], torch.bool)
            else:
                result = sizes(items, vector)
        return (result,)

    return run


def _gather(node: Node, hosts: list[Any]) -> tuple[Value, ...] | None:
    items, indices = ints(hosts[0], "data"), ints(hosts[1], "indices")
    return (sizes([items[i] for i in indices], rank(hosts[1]) == 1),)


def _slice(node: Node, hosts: list[Any]) -> tuple[Value, ...] | None:
    if node.version < 10:
        (start,), (end,), step = node.get("starts"), node.get("ends"), 1
    else:
        (start,), (end,) = ints(hosts[1], "starts"), ints(hosts[2], "ends")
        step = ints(hosts[4], "steps")[0] if len(hosts) > 4 else 1
    if not (isinstance(start, int) and isinstance(end, int)):
        return None
    return (sizes(ints(hosts[0], "data")[start:end:step]),)


def _cast(node: Node, hosts: list[Any]) -> tuple[Value, ...] | None:
    return (hosts[0],) if node.get("to") in (TensorProto.INT64, TensorProto.INT32) else None


def _reshape(node: Node, hosts: list[Any]) -> tuple[Value, ...] | None:
    shape = ints(hosts[1], "shape")
    return (sizes(ints(hosts[0], "data"), bool(shape)),) if len(shape) < 2 else None


def _where(node: Node, hosts: list[Any]) -> tuple[Value, ...] | None:
    if not isinstance(hosts[0], Known):
        return None
    lists = [ints(h, "operand") for h in hosts]
    count = max(map(len, lists))
    chosen, yes, no = (v * (count // len(v)) for v in lists)
    vector = any(rank(h) == 1 for h in hosts)
    return (sizes([a if c else b for c, a, b in zip(chosen, yes, no, strict=True)], vector),)


def _split(node: Node, hosts: list[Any]) -> tuple[Value, ...] | None:
    items = ints(hosts[0], "data")
    parts = ints(hosts[1], "split") if len(hosts) > 1 else node.get("split")
    count = -(-len(items) // len(node.outputs))
    parts = parts or [min(count, len(items) - i * count) for i in range(len(node.outputs))]
    starts = [sum(parts[:i]) for i in range(len(parts))]
    return tuple(sizes(items[s : s + p]) for s, p in zip(starts, parts, strict=True))


def _squeeze(node: Node, hosts: list[Any]) -> tuple[Value, ...] | None:
    items = ints(hosts[0], "data")
    return (sizes(items, vector=False),) if len(items) == 1 else None


def _unsqueeze(node: Node, hosts: list[Any]) -> tuple[Value, ...] | None:
    return (sizes(ints(hosts[0], "data")),) if rank(hosts[0]) == 0 else None


def _product(node: Node, hosts: list[Any]) -> tuple[Value, ...] | None:
    return (sizes([math.prod(ints(hosts[0], "data"))], bool(node.get("keepdims", 1))),)


def _trunc_div(a: Any, b: Any) -> Any:
    return a // b if not (isinstance(a, int) and isinstance(b, int)) else int(a / b)


_SHAPE_OPS: Mapping[str, Callable[[Node, list[Any]], tuple[Value, ...] | None]] = {
    "Add": _pairwise(lambda a, b: a + b),
    "Sub": _pairwise(lambda a, b: a - b),
    "Mul": _pairwise(lambda a, b: a * b),
    "Div": _pairwise(_trunc_div),
    "Max": _pairwise(lambda a, b: a if bool(a >= b) else b),
    "Min": _pairwise(lambda a, b: a if bool(a <= b) else b),
    "Equal": _pairwise(lambda a, b: bool(a == b)),
    "Greater": _pairwise(lambda a, b: bool(a > b)),
    "Less": _pairwise(lambda a, b: bool(a < b)),
    "Gather": _gather,
    "Slice": _slice,
    "Cast": _cast,
    "Reshape": _reshape,
    "Where": _where,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Identity": lambda node, hosts: (hosts[0],),
    "Concat": lambda node, hosts: (sizes([i for h in hosts for i in ints(h, "operand")]),),
    "ReduceProd": _product,
}
