"""Where a node stands in the table, and what lies between two measured widths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompile.hostcost import grid
from edgecompile.hostcost.cold import Cold, Setting, alive_mb, weights_us
from edgecompile.hostcost.cut import take_apart
from edgecompile.hostcost.geometry import Place, Work, interpolate, laws, locate, parametric_us
from edgecompile.hostcost.plain import Plain

SQUARE = {(16, 16): 1.0, (32, 16): 2.0, (16, 32): 3.0, (32, 32): 5.0}


def test_a_grid_point_is_itself_and_the_middle_is_the_mean() -> None:
    assert interpolate(SQUARE, Place("g", 32, 16)) == 2.0
    assert interpolate(SQUARE, Place("g", 24, 24)) == pytest.approx(11 / 4)
    assert interpolate(SQUARE, Place("g", 16, 24)) == pytest.approx(2.0)


def test_nothing_is_invented_outside_the_grid() -> None:
    assert interpolate(SQUARE, Place("g", 48, 16)) is None
    assert interpolate(SQUARE, Place("g", 8, 16)) is None
    assert interpolate({}, Place("g", 16, 16)) is None
    assert interpolate({(16, 16): 1.0, (64, 64): 2.0}, Place("g", 32, 32)) is None  # too far apart
    assert interpolate({k: v for k, v in SQUARE.items() if k != (32, 16)}, Place("g", 24, 24)) is None


def test_depthwise_has_one_width() -> None:
    assert interpolate({(16, 16): 1.0, (32, 32): 2.0}, Place("g", 24, 24)) == pytest.approx(1.5)


@given(
    st.lists(st.floats(0.1, 1e4), min_size=9, max_size=9),
    st.integers(16, 64),
    st.integers(16, 64),
)
def test_a_value_between_points_lies_between_their_values(values: list[float], x: int, y: int) -> None:
    widths = (16, 32, 64)
    points = dict(zip([(a, b) for a in widths for b in widths], values, strict=True))
    found = interpolate(points, Place("g", x, y))
    assert found is not None
    assert min(values) * 0.999 <= found <= max(values) * 1.001


def test_a_law_is_found_again() -> None:
    works = [
        Work("conv", m, w, b, 2 + 1e-6 * m + 1e-4 * w) for m in (10**5, 10**6) for w in (10**3, 10**5) for b in (0, 9)
    ]
    assert parametric_us(laws(works), Work("conv", 500_000, 50_000, 5)) == pytest.approx(7.5, rel=0.02)


def test_what_has_no_law_still_has_a_price() -> None:
    assert parametric_us({}, Work("Odd float", 0, 0, 10**6)) > parametric_us({}, Work("Odd float", 0, 0, 10)) > 0


def test_points_of_the_grid_have_names_of_their_own() -> None:
    names = [p.name for p in grid.points()]
    assert len(names) == len(set(names)) > 1000


@pytest.mark.parametrize(
    "point",
    [
        grid.Point("conv", 3, 1, 8, 32, 64),
        grid.Point("conv", 1, 2, 8, 32, 64, integer=True),
        grid.Point("conv", 3, 1, 8, 32, 32, fused=True),
        grid.Point("depthwise", 5, 1, 8, 32, 32),
        grid.Point("depthwise", 3, 2, 8, 32, 32, integer=True),
        grid.Point("matmul", 1, 1, 49, 32, 64),
        grid.Point("matmul", 1, 1, 49, 32, 64, integer=True),
        grid.Point("gemm", 1, 1, 1, 32, 64, integer=True),
    ],
    ids=lambda p: p.name,
)
def test_a_point_of_the_grid_is_a_place_with_its_widths(point: grid.Point, tmp_path: Path) -> None:
    path = tmp_path / "point.onnx"
    path.write_bytes(grid.build(point))
    places = [place for cut in take_apart(path) if (place := locate(cut, 16)) is not None]
    if not places and point.kind != "gemm":
        pytest.skip("this processor has no blocked layout or integer kernel for it")
    assert (point.wide_in, point.wide_out) in [(p.wide_in, p.wide_out) for p in places]


def test_another_stride_padding_or_size_is_another_geometry(tmp_path: Path) -> None:
    found = set()
    points = [grid.Point("conv", k, s, side, 32, 32) for k, s, side in ((3, 1, 8), (3, 2, 8), (1, 1, 8), (3, 1, 14))]
    for point in points:
        path = tmp_path / "point.onnx"
        path.write_bytes(grid.build(point))
        found |= {place.geometry for cut in take_apart(path) if (place := locate(cut, 16)) is not None}
    if not found:
        pytest.skip("this processor has no blocked layout")
    assert len(found) == len(points)


def test_cold_weights_cost_more_in_larger_networks(tmp_path: Path) -> None:
    path = tmp_path / "point.onnx"
    path.write_bytes(grid.build(grid.Point("matmul", 1, 1, 64, 256, 256)))
    (cut,) = take_apart(path)
    known = Cold(((4.0, 0.0), (16.0, 1.0)), {"product float": 30.0})
    shares = [Setting(mb, 0.0, 0.0).coldness(known) for mb in (0.0, 4.0, 10.0, 16.0, 100.0)]
    assert shares == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert Setting(16.0, 0.0, 1.0).coldness(known) < 1.0
    assert weights_us(known, cut) == pytest.approx(30 * 256 * 256 * 4e-6)
    assert weights_us(Cold(known.share, {}), cut) == 0.0


def test_what_is_alive_at_once(tmp_path: Path) -> None:
    """A chain keeps two values alive, a shortcut three; a view none of its own."""

    def alive(shortcut: bool, view: bool) -> float:
        graph = Plain()
        first = out = graph.node("Softmax", ["x"])
        if view:
            out = graph.node("Reshape", [out, graph.constant(np.array([500, 1000]))])
        for _ in range(3):
            out = graph.node("Softmax", [out])
        if shortcut:
            out = graph.node("MatMul", [out, first])
        path = tmp_path / "m.onnx"
        path.write_bytes(graph.model({"x": (1000, 1000) if shortcut else (1000, 500)}, [out]))
        return alive_mb(take_apart(path))

    assert alive(False, False) == pytest.approx(4.0)
    assert alive(False, True) == pytest.approx(4.0)
    assert alive(True, False) == pytest.approx(12.0)
