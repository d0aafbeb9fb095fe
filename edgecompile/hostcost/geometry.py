"""What a node computes, in which geometry and at which widths: the coordinates of the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgecompile.hostcost.cut import Cut, Tensor

WIDTHS_STEP = 16
"""Output widths of matrix products move in steps of so many columns; integer kernels want such multiples."""
_NCHWC = "com.microsoft.nchwc"
_CONVS = frozenset({"Conv", "FusedConv", "QLinearConv", "NhwcFusedConv", "ConvInteger"})
_WEIGHT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
_PRODUCTS = frozenset(
    {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat"}
    | {"DynamicQuantizeMatMul"}
)
_CHEAP_ACTIVATIONS = frozenset({"", "Relu"})  # Clip costs a depthwise layer a third
_NEAREST = 2.01  # grid points further apart than this factor are no neighbours

Points = Mapping[tuple[int, int], float]


@dataclass(frozen=True)
class Place:
    """A node's geometry (everything but widths, as text) and its input and output channels."""

    geometry: str
    wide_in: int
    wide_out: int


def macs(cut: Cut) -> int | None:
    """Multiply-accumulates of a convolution or matrix product as the runtime pads it; None for other operators."""
    out = next((t for t in cut.results if t is not None), None)
    weight = _weight(cut)
    if out is None or weight is None:
        return None
    if cut.op in _CONVS:
        return math.prod(out.shape) * math.prod(weight.shape[1:])
    first = cut.operands[0]
    if first is None or not first.shape:
        return None
    inner = first.shape[0] if cut.attributes.get("transA", 0) else first.shape[-1]
    return math.prod(out.shape) * inner


def rows(cut: Cut) -> int:
    """Rows of a product's left operand."""
    first = cut.operands[0] if cut.operands else None
    return math.prod(first.shape[:-1]) if first is not None else 0


def kind(cut: Cut) -> str:
    """The class whose members follow one law of cost: `conv3 float`, `product uint8`, `Softmax float`."""
    first = cut.operands[0] if cut.operands else None
    element = "int8" if first is not None and first.number in (2, 3) else "float"
    weight = _weight(cut)
    if cut.op in _CONVS and weight is not None:
        layout = "" if cut.domain == _NCHWC or cut.attributes.get("channels_last") else "plain "
        if _depthwise(cut, weight):
            return f"{layout}depthwise {element}"
        return f"{layout}conv{1 if math.prod(weight.shape[2:]) == 1 else 3} {element}"
    if cut.op in _PRODUCTS:
        return f"product {element}" if weight is not None and weight.constant else f"batched product {element}"
    return f"{cut.op} {element}"


def locate(cut: Cut, block: int) -> Place | None:
    """Where a node stands on the grid of its geometry; None where widths do not vary smoothly or there is no grid."""
    weight, data = _weight(cut), cut.operands[0] if cut.operands else None
    if weight is None or data is None or not weight.constant:
        return None
    if cut.op in _CONVS:
        return _conv(cut, data, weight, block)
    return _product(cut, data, weight) if cut.op in _PRODUCTS and len(weight.shape) == 2 else None


def _conv(cut: Cut, data: Tensor, weight: Tensor, block: int) -> Place | None:
    activation = str(cut.attributes.get("activation", b"").decode())
    last = bool(cut.attributes.get("channels_last", 0)) or cut.op.startswith("Nhwc")
    space = data.shape[1:-1] if last else data.shape[2:]
    channels = data.shape[-1] if last else data.shape[1]
    out, inner = weight.shape[0], weight.shape[1]
    group = int(cut.attributes.get("group", 1))
    step = block if cut.domain == _NCHWC else WIDTHS_STEP
    if out % step:
        return None
    fused = "+sum" if cut.op in ("Conv", "FusedConv", "NhwcFusedConv") and len(cut.operands) > 3 else ""
    shape = [
        f"{cut.domain}.{cut.op}{fused}",
        "" if activation in _CHEAP_ACTIVATIONS else activation,
        "nhwc" if last else "",
        *("x".join(map(str, numbers)) for numbers in (data.shape[:1], space, weight.shape[2:])),
        *(
            f"{name[:3]}{cut.attributes[name]}"
            for name in ("strides", "dilations", "pads")
            if _unlike_default(cut, name)
        ),
        f"e{data.number}.{weight.number}",
    ]
    if _depthwise(cut, weight):
        return Place(" ".join([*shape, "depthwise"]), out, out)
    if group != 1:
        return None
    if channels % step:
        return Place(" ".join([*shape, f"from {inner}"]), inner, out)
    return Place(" ".join(shape), inner, out)


def _unlike_default(cut: Cut, name: str) -> bool:
    default = 0 if name == "pads" else 1
    return any(int(v) != default for v in cut.attributes.get(name, ()))


def _product(cut: Cut, data: Tensor, weight: Tensor) -> Place | None:
    if cut.attributes.get("transA", 0) or cut.op in ("FusedMatMul", "FusedGemm"):
        return None
    turned = int(cut.attributes.get("transB", 0))
    inner, out = (weight.shape[1], weight.shape[0]) if turned else weight.shape
    padded = -(-out // WIDTHS_STEP) * WIDTHS_STEP
    return Place(f"{cut.op} {rows(cut)} e{data.number}.{weight.number}{' turned' if turned else ''}", inner, padded)


def _weight(cut: Cut) -> Tensor | None:
    index = _WEIGHT.get(cut.op, 1)
    known = cut.op in _CONVS or cut.op in _PRODUCTS
    return cut.operands[index] if known and len(cut.operands) > index else None


def _depthwise(cut: Cut, weight: Tensor) -> bool:
    group = int(cut.attributes.get("group", 1))
    return group > 1 and len(weight.shape) > 2 and weight.shape[1] == 1


def interpolate(points: Points, place: Place) -> float | None:
    """Microseconds at a place between the four nearest points that enclose it; None where they are too far apart.

    Between grid points the time is bilinear in the widths to within a few percent; a single bilinear law for a whole
    geometry is not (the kernels take several blocks of outputs at once).
    """
    x, y = place.wide_in, place.wide_out
    if (x, y) in points:
        return points[x, y]
    alike = x == y and all(a == b for a, b in points)  # depthwise: one width
    lows = [p for p in points if p[0] <= x and p[1] <= y]
    highs = [p for p in points if p[0] >= x and p[1] >= y]
    best: tuple[float, tuple[int, int], tuple[int, int]] | None = None
    for low in lows:
        for high in highs:
            near = max(_factor(low[0], high[0]), _factor(low[1], high[1])) <= _NEAREST
            whole = alike or ((low[0], high[1]) in points and (high[0], low[1]) in points)
            spread = _factor(low[0], high[0]) * _factor(low[1], high[1])
            if near and whole and (best is None or spread < best[0]):
                best = (spread, low, high)
    if best is None:
        return None
    _, (x0, y0), (x1, y1) = best
    u = (x - x0) / (x1 - x0) if x1 > x0 else 0.0
    v = (y - y0) / (y1 - y0) if y1 > y0 else 0.0
    if alike:
        return (1 - u) * points[x0, y0] + u * points[x1, y1]
    corners = ((x0, y0, (1 - u) * (1 - v)), (x1, y0, u * (1 - v)), (x0, y1, (1 - u) * v), (x1, y1, u * v))
    return sum(share * points[a, b] for a, b, share in corners)


def _factor(low: int, high: int) -> float:
    return high / max(low, 1)


@dataclass(frozen=True)
class Work:
    """What a law of cost is fitted on: a node's class, its multiply-accumulates and bytes, and its measured time."""

    kind: str
    macs: int
    weight_bytes: int
    moved_bytes: int
    us: float = 0.0


def work(cut: Cut, us: float = 0.0) -> Work:
    """The coordinates of a node for the parametric law."""
    return Work(kind(cut), macs(cut) or 0, cut.weight_bytes, cut.in_bytes + cut.out_bytes, us)


_FEWEST = 5
_GUESS = (2.5, 2.5e-5, 5e-5, 1e-4)
"""us a run of a node, a multiply-accumulate, a byte of weights, a byte moved: where nothing alike was measured."""


def laws(measured: Iterable[Work]) -> dict[str, tuple[float, ...]]:
    """Per class the non-negative law `c0 + c1 macs + c2 weights + c3 moved` that fits best in relative terms."""
    import numpy as np
    from scipy.optimize import nnls

    groups: dict[str, list[Work]] = {}
    for item in measured:
        groups.setdefault(item.kind, []).append(item)
        if not item.macs:
            groups.setdefault("any", []).append(item)
    found = {}
    for name, items in groups.items():
        if len(items) >= _FEWEST:
            us = np.array([max(i.us, 0.5) for i in items])
            columns = np.array([[1.0, i.macs, i.weight_bytes, i.moved_bytes] for i in items]) / us[:, None]
            scale = np.maximum(columns.max(axis=0), 1e-30)
            found[name] = tuple(float(c) for c in nnls(columns / scale, np.ones(len(items)))[0] / scale)
    return found


def parametric_us(found: Mapping[str, tuple[float, ...]], item: Work) -> float:
    """Microseconds by the law of the node's class, else of operators that only move memory, else by a guess."""
    law = found.get(item.kind) or (None if item.macs else found.get("any")) or _GUESS
    return law[0] + law[1] * item.macs + law[2] * item.weight_bytes + law[3] * item.moved_bytes
