"""The laws: finite, monotone, staircases where the hardware has them, and never faster than its sheet allows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompile.cost.columns import KINDS, columns
from edgecompile.cost.laws import LAWS, PARAMETERS, Seconds, Sheet
from edgecompile.cost.predict import SHARED, fitted, seconds, sheet
from edgecompile.cost.work import Kind, Work
from edgecompile.device import DeviceProfile

DEVICES = ("a100-sxm-40gb", "agx-orin-64gb", "galaxy-s24", "iphone-14-pro", "iphone-12", "rpi5")
PRODUCTS: tuple[Kind, ...] = ("conv", "depthwise", "linear", "matmul", "attention")
PROFILES = {name: DeviceProfile.load(name) for name in DEVICES}
FLAT = Sheet({"fp16": 1e13, "int8": 2e13}, {"fp16": 2e13, "int8": 4e13}, 1e12, 16, 1e11, 4e6)
"""A sheet with one rate for integers and half of it for floats."""

SIZES = st.integers(1, 4096)
EXAMPLES = settings(max_examples=40, derandomize=True)


@st.composite
def works(draw: st.DrawFn, kinds: tuple[Kind, ...] = KINDS) -> Work:
    """One operator whose counts fit its sizes."""
    kind = draw(st.sampled_from(kinds))
    if kind not in (*PRODUCTS, "recurrent"):
        return Work("w", kind, reads=draw(st.integers(1, 10**7)), writes=draw(st.integers(1, 10**7)))
    m, n, k = draw(SIZES), draw(SIZES), draw(SIZES)
    groups = 1 if kind in ("linear", "recurrent") else draw(st.integers(1, 64))
    return _product(kind, m, n, k, groups)


def _product(kind: Kind, m: int, n: int, k: int, groups: int = 1) -> Work:
    weights = 0 if kind in ("matmul", "attention") else n * k * groups
    return Work("w", kind, m * n * k * groups, m, n, k, groups, m * k * groups, m * n * groups, weights)


def timed(device: str, *of: Work, dtype: str = "fp16", sparse: bool = False) -> Seconds:
    return seconds(of, PROFILES[device], dtype, sparse=sparse)


@pytest.mark.parametrize("device", DEVICES)
@given(some=st.lists(works(), min_size=1, max_size=5))
@EXAMPLES
def test_times_are_positive_finite_and_at_least_each_part(device: str, some: list[Work]) -> None:
    for dtype in ("fp16", "int8"):
        found = timed(device, *some, dtype=dtype)
        for part in (found.compute, found.memory, found.launch, found.total):
            assert len(part) == len(some)
            assert np.isfinite(part).all()
            assert (part >= 0).all()
        for part in (found.compute, found.memory, found.launch):
            assert (found.total >= part * (1 - 1e-9)).all()
        assert np.isfinite(found.network)
        assert found.network >= found.total.sum()
        assert found.network > 0


@pytest.mark.parametrize("device", DEVICES)
@given(work=works(PRODUCTS), size=st.sampled_from("mnk"), more=st.integers(1, 300))
@EXAMPLES
def test_a_larger_product_never_takes_less(device: str, work: Work, size: str, more: int) -> None:
    sizes = {name: getattr(work, name) + (more if name == size else 0) for name in "mnk"}
    grown = _product(work.kind, **sizes, groups=work.groups)
    for dtype in ("fp16", "int8"):
        before, after = timed(device, work, dtype=dtype).network, timed(device, grown, dtype=dtype).network
        assert after >= before * (1 - 1e-9)


@pytest.mark.parametrize("device", DEVICES)
@given(work=works(), batch=st.integers(2, 64), count=st.integers(0, 10**6))
@EXAMPLES
def test_more_samples_or_bytes_never_take_less(device: str, work: Work, batch: int, count: int) -> None:
    before = timed(device, work).network
    assert timed(device, work.at(batch)).network >= before * (1 - 1e-9)
    for name in ("reads", "writes", "weights"):
        grown = replace(work, **{name: getattr(work, name) + count})
        assert timed(device, grown).network >= before * (1 - 1e-9)


@pytest.mark.parametrize(
    ("law", "size", "block"),
    [
        ("hexagon", "n", 32),
        ("hexagon", "m", 32),
        ("hexagon", "k", 16),
        ("neural_engine", "n", 16),
        ("neural_engine", "k", 16),
    ],
)
def test_engines_work_in_whole_blocks(law: str, size: str, block: int) -> None:
    """Every size of one block costs the same arithmetic, the next block more."""

    def compute(value: int) -> float:
        sizes = {"m": 128, "n": 128, "k": 128, size: value}
        work = Work("w", "linear", 1, **sizes)  # the arithmetic alone: no bytes
        return float(LAWS[law](columns([work], "int8"), FLAT, {SHARED: PARAMETERS[law]}).compute[0])

    steps = {compute(value) for value in range(block + 1, 2 * block + 1)}
    assert len(steps) == 1
    assert steps.pop() == pytest.approx(2 * compute(block))
    assert compute(2 * block + 1) > compute(2 * block)


def test_a_gpu_works_in_whole_waves() -> None:
    """Up to one wave of tiles costs the same; the staircase over m never falls."""

    def compute(m: int) -> float:
        return float(timed("a100-sxm-40gb", _product("linear", m, 4096, 4096)).compute[0])

    times = [compute(m) for m in range(1, 4097, 61)]
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(times))
    assert compute(1) == compute(32)
    assert len(set(times)) < len(times) / 2


@pytest.mark.parametrize("law", LAWS)
@given(work=works(PRODUCTS))
@EXAMPLES
def test_integers_are_never_slower_on_the_same_sheet(law: str, work: Work) -> None:
    def total(dtype: str) -> float:
        return LAWS[law](columns([work], dtype), FLAT, {SHARED: PARAMETERS[law]}).network

    assert total("int8") <= total("fp16") * (1 + 1e-9)


@pytest.mark.parametrize("device", ["a100-sxm-40gb", "agx-orin-64gb"])
@given(work=works(PRODUCTS))
@EXAMPLES
def test_sparsity_wins_at_most_its_rate_and_never_loses(device: str, work: Work) -> None:
    on = sheet(PROFILES[device])
    for dtype in ("fp16", "int8"):
        dense, sparse = timed(device, work, dtype=dtype).network, timed(device, work, dtype=dtype, sparse=True).network
        most = on.rate(dtype, sparse=True) / on.rate(dtype)
        assert most == pytest.approx(2, rel=0.01)
        assert dense / most * (1 - 1e-9) <= sparse <= dense * (1 + 1e-9)


def test_a_kernel_costs_its_start_and_a_network_its_floor() -> None:
    tiny = Work("w", "pointwise", reads=1, writes=1)
    for device in ("a100-sxm-40gb", "agx-orin-64gb", "rpi5"):
        start = next(iter(fitted(PROFILES[device]).values()))["launch_us"] * 1e-6
        found = timed(device, *[tiny] * 7)
        assert found.launch == pytest.approx([start] * 7)
        assert (found.total >= start).all()
        assert found.network == pytest.approx(7 * start, rel=0.01)
    for device in ("galaxy-s24", "iphone-14-pro", "iphone-12"):
        floors = fitted(PROFILES[device])
        floor = floors.get("fp16", next(iter(floors.values())))["floor_ms"] * 1e-3
        assert timed(device, tiny).network == pytest.approx(floor, rel=0.01)


@pytest.mark.parametrize("device", DEVICES)
def test_large_products_stay_below_the_peak(device: str) -> None:
    """No law says that arithmetic beats the sheet by more than the fit's own share."""
    work = _product("linear", 8192, 8192, 8192)
    on = sheet(PROFILES[device])
    achieved = work.macs / timed(device, work).total[0]
    assert 0.1 < achieved / on.rate("fp16") < 1.15


def test_concatenations_are_partly_elided_and_order_does_not_matter() -> None:
    some = [
        _product("conv", 3136, 64, 576),
        Work("w", "concat", reads=10**6, writes=10**6),
        _product("linear", 1, 9, 9),
    ]
    for device in DEVICES:
        forward, backward = timed(device, *some), timed(device, *reversed(some))
        assert forward.total == pytest.approx(backward.total[::-1])
        copy = timed(device, replace(some[1], kind="copy")).total[0]
        assert forward.total[1] <= copy * (1 + 1e-9)


def test_the_gpu_law_meets_measured_products() -> None:
    """1893 products of an A100 from one row to 32768: what the tile constants come from."""
    from edgecompile.cost.products import ratios

    rows, found = ratios()
    assert len(found) == 1893
    error = abs(found - 1)
    assert sorted(error)[len(error) // 2] < 0.12
    assert sorted(error)[int(0.9 * len(error))] < 0.30
    large = found[rows > 1024]
    assert 0.9 < sorted(large)[len(large) // 2] < 1.1
