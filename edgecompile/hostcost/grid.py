"""The usual geometries of networks as tiny ONNX models: what a profile measures before any network is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from edgecompile.hostcost.plain import Plain

Kind = Literal["conv", "depthwise", "matmul", "gemm", "other"]
_SIDES = (7, 8, 14, 16, 28, 32, 56, 64, 112)
_WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
_ROWS = (16, 49, 64, 65, 128, 196, 197, 256, 384)
_PRODUCT_WIDTHS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)
_MOST_MACS = 3e8
_MOST_VALUES = 1_700_000


@dataclass(frozen=True)
class Point:
    """One operator at one pair of widths; `side`: of its square image, or rows; `fused`: it adds a shortcut."""

    kind: Kind
    kernel: int
    stride: int
    side: int
    wide_in: int
    wide_out: int
    integer: bool = False
    op: str = ""
    fused: bool = False

    @property
    def name(self) -> str:
        """What the table remembers it by."""
        element = "int8" if self.integer else "float"
        kind = self.op or f"{self.kind}{'+' if self.fused else ''}{self.kernel}s{self.stride}"
        return f"{kind} {self.side} {self.wide_in}x{self.wide_out} {element}"

    @property
    def macs(self) -> float:
        """Multiply-accumulates."""
        if self.kind in ("matmul", "gemm"):
            return self.side * self.wide_in * self.wide_out
        inner = 1 if self.kind == "depthwise" else self.wide_in
        return (self.side // self.stride) ** 2 * self.kernel**2 * inner * self.wide_out


def points() -> Iterator[Point]:
    """Every point of the grid, the commonest geometries and the cheap points first."""
    found = [*_others(), *_convs(), *_depthwise(), *_products()]
    return iter(sorted(found, key=lambda p: (_rank(p), p.macs)))


def _rank(point: Point) -> int:
    common = point.kernel in (1, 3) and point.side in (7, 8, 14, 16, 28, 32, 56) and point.stride == 1
    if point.kind in ("matmul", "gemm"):
        common = point.side in (1, 49, 64, 196, 197)
    return 0 if point.kind == "other" else 1 if common else 2


def _convs() -> Iterator[Point]:
    for integer in (False, True):
        for kernel, stride in ((3, 1), (1, 1), (3, 2)):
            widest = 2048 if kernel == 1 else 512
            for side in _SIDES:
                for wide_in in [w for w in _WIDTHS if w <= widest]:
                    for wide_out in [w for w in _WIDTHS if w <= widest]:
                        point = Point("conv", kernel, stride, side, wide_in, wide_out, integer)
                        if point.macs <= _MOST_MACS and side * side * max(wide_in, wide_out) <= _MOST_VALUES:
                            yield point
                            if not integer and stride == 1 and _rank(point) == 1:
                                yield replace(point, fused=True)
        for side, kernel in ((32, 3), (224, 3), (224, 7)):
            for wide_out in (16, 32, 64):
                yield Point("conv", kernel, 1 if side == 32 else 2, side, 3, wide_out, integer)


def _depthwise() -> Iterator[Point]:
    for integer in (False, True):
        for kernel in (3, 5):
            for stride in (1, 2):
                for side in _SIDES:
                    for width in (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024):
                        if side * side * width <= _MOST_VALUES:
                            yield Point("depthwise", kernel, stride, side, width, width, integer)


def _products() -> Iterator[Point]:
    for integer in (False, True):
        for wide_in in _PRODUCT_WIDTHS:
            for rows in _ROWS:
                for wide_out in _PRODUCT_WIDTHS:
                    point = Point("matmul", 1, 1, rows, wide_in, wide_out, integer)
                    if point.macs <= _MOST_MACS and max(wide_in, wide_out) / min(wide_in, wide_out) <= 4:
                        yield point
            for wide_out in (16, 112, *_PRODUCT_WIDTHS):
                yield Point("gemm", 1, 1, 1, wide_in, wide_out, integer)


def _others() -> Iterator[Point]:
    for op in ("Add", "Mul", "Sigmoid", "Softmax", "LayerNormalization", "Transpose", "Concat", "Split", "Gelu"):
        for side, width in ((16, 64), (64, 192), (196, 192), (196, 768), (784, 256), (3136, 64)):
            yield Point("other", 1, 1, side, width, width, op=op)


def build(point: Point) -> bytes:
    """The operator alone as a plain float model; ONNX Runtime makes of it what it makes of it in networks."""
    graph = Plain(point.integer)
    image, matrix = (1, point.wide_in, point.side, point.side), (1, point.side, point.wide_in)
    data = graph.rounded("x")
    match point.kind:
        case "conv" | "depthwise":
            group = point.wide_in if point.kind == "depthwise" else 1
            out = graph.conv(data, point.wide_in, point.wide_out, point.kernel, point.stride, group, point.fused)
            return graph.model({"x": image}, [out])
        case "matmul":
            return graph.model({"x": matrix}, [graph.product(data, point.wide_in, point.wide_out)])
        case "gemm":
            operands = [data, graph.weight(point.wide_out, point.wide_in), graph.bias(point.wide_out)]
            return graph.model({"x": matrix[1:]}, [graph.rounded(graph.node("Gemm", operands, transB=1))])
        case "other":
            return graph.model({"x": matrix}, [_other(graph, point)])


def _other(graph: Plain, point: Point) -> str:
    match point.op:
        case "Add" | "Mul" | "Concat":
            fields = {"axis": 1} if point.op == "Concat" else {}
            return graph.node(point.op, [graph.node("Neg", ["x"]), "x"], **fields)
        case "Split":
            return graph.node("Split", ["x"], 2, axis=2, num_outputs=2)
        case "Transpose":
            return graph.node("Transpose", ["x"], perm=[0, 2, 1])
        case "LayerNormalization":
            return graph.node(point.op, ["x", graph.value(point.wide_in), graph.value(point.wide_in)], axis=-1)
    return graph.node(point.op, ["x"])
