"""ONNX reductions, arg-reductions, running sums and sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from edgecompile.models._onnx_values import Node, Value, ints

Function = Callable[..., Any]


def reduce(compute: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    """A reduction: axes are an attribute in old opsets, an operand in new ones."""

    def run(n: Node, x: Tensor, axes: Value = None) -> Tensor:
        given = ints(axes, "axes") if axes is not None else n.get("axes")
        if not given and n.get("noop_with_empty_axes", 0):
            return _pointwise(n, x)
        dims = [int(a) for a in given] if given else list(range(x.dim()))
        result = compute(x, dims, bool(n.get("keepdims", 1))) if x.dim() else _pointwise(n, x)
        return result if result.dtype == x.dtype else result.to(x.dtype)

    return run


def _pointwise(n: Node, x: Tensor) -> Tensor:
    """A reduction over no axis at all."""
    match n.op:
        case "ReduceL1" | "ReduceL2":
            return x.abs()
        case "ReduceSumSquare":
            return x * x
        case "ReduceLogSum":
            return x.log()
        case _:
            return x


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted((d % x.dim() for d in dims), reverse=True):
        x = torch.prod(x, dim, keepdim=keep)
    return x


def _extreme(largest: bool) -> Callable[[Tensor, list[int], bool], Tensor]:
    def run(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        return torch.amax(x, dims, keep) if largest else torch.amin(x, dims, keep)

    return run


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, dims, keep)
    return torch.div(torch.sum(x, dims, keep), math.prod(x.shape[d] for d in dims), rounding_mode="trunc")


def arg(largest: bool) -> Function:
    """ArgMax and ArgMin."""

    def run(n: Node, x: Tensor) -> Tensor:
        axis, keep = n.get("axis", 0), bool(n.get("keepdims", 1))
        if n.get("select_last_index", 0):
            found = torch.argmax if largest else torch.argmin
            last: Tensor = x.shape[axis] - 1 - found(x.flip(axis), axis, keep)
            return last
        return torch.argmax(x, axis, keep) if largest else torch.argmin(x, axis, keep)

    return run


def cumsum(n: Node, x: Tensor, axis: Value) -> Tensor:
    """CumSum, also exclusive and from the end."""
    (dim,) = ints(axis, "axis")
    x = x.flip(dim) if n.get("reverse", 0) else x
    total = torch.cumsum(x, dim, dtype=x.dtype)
    total = total - x if n.get("exclusive", 0) else total
    return total.flip(dim) if n.get("reverse", 0) else total


def topk(n: Node, x: Tensor, count: Value = None) -> tuple[Tensor, Tensor]:
    """TopK by a stable sort: ONNX wants the lower index first among equals, torch.topk does not say."""
    k = ints(count, "K")[0] if count is not None else n.get("k")
    axis = n.get("axis", -1)
    values, indices = torch.sort(x, dim=axis, descending=bool(n.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


def log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """ReduceLogSumExp."""
    return torch.logsumexp(x if x.is_floating_point() else x.float(), dims, keep)


REDUCTIONS: Mapping[str, Function] = {
    "ReduceSum": reduce(lambda x, d, k: torch.sum(x, d, k)),
    "ReduceMean": reduce(_mean),
    "ReduceMax": reduce(_extreme(largest=True)),
    "ReduceMin": reduce(_extreme(largest=False)),
    "ReduceProd": reduce(_product),
    "ReduceL1": reduce(lambda x, d, k: torch.sum(x.abs(), d, k)),
    "ReduceL2": reduce(lambda x, d, k: torch.sqrt(torch.sum(x * x, d, k))),
    "ReduceSumSquare": reduce(lambda x, d, k: torch.sum(x * x, d, k)),
    "ReduceLogSum": reduce(lambda x, d, k: torch.log(torch.sum(x, d, k))),
    "ReduceLogSumExp": reduce(log_sum_exp),
}
