"""The histogram observer against brute force: counts, growth, least squared error, least divergence."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgecompile.errors import PassError
from edgecompile.passes._observers import BINS, Grid, Histogram, HistogramObserver, chosen_range, divergence
from edgecompile.passes._torchao import QuantizationSpec

U8, S8 = Grid(0, 255, False), Grid(-128, 127, True)
GENERATOR = torch.Generator().manual_seed(0)


def gaussian() -> Tensor:
    return torch.randn(20_000, generator=GENERATOR) * 3 + 1


def heavy_tailed() -> Tensor:
    normal = torch.randn(20_000, generator=GENERATOR)
    return normal / torch.rand(20_000, generator=GENERATOR).sqrt()


DATA: dict[str, Callable[[], Tensor]] = {
    "gaussian": gaussian,
    "heavy_tailed": heavy_tailed,
    "relu_like": lambda: gaussian().relu(),
    "heavy_relu": lambda: heavy_tailed().relu(),
    "far_from_zero": lambda: torch.rand(20_000, generator=GENERATOR) + 100,
    "negative": lambda: -gaussian().abs(),
}


def histogram(*batches: Tensor) -> Histogram:
    found = Histogram()
    for batch in batches:
        found.add(batch)
    return found


def rounded(x: np.ndarray, grid: Grid, low: float, high: float) -> np.ndarray:
    scale, zero = grid.parameters(low, high)
    return (np.clip(np.rint(x / scale) + zero, grid.smallest, grid.largest) - zero) * scale


def error(x: Tensor, grid: Grid, low: float, high: float) -> float:
    values = x.double().numpy()
    return float(((values - rounded(values, grid, low, high)) ** 2).sum())


def least_error(x: Tensor, grid: Grid) -> float:
    """The least error over a grid of ranges and a finer one around its best, tried on the values themselves."""
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    both = not grid.symmetric and low < 0 < high

    def search(shares: np.ndarray) -> tuple[float, float, float]:
        pairs = [(a, b) for a in shares for b in (shares if both else [a])]
        return min((error(x, grid, low * a, high * b), a, b) for a, b in pairs)

    best, a, b = search(np.geomspace(1 / 32, 1, 30))
    low, high = low * a, high * b
    return min(best, search(np.linspace(0.9, 1.1, 15))[0])


@pytest.mark.parametrize("grid", [U8, S8], ids=["u8", "s8"])
@pytest.mark.parametrize("name", DATA)
def test_mse_is_within_two_percent_of_the_best_range_there_is(name: str, grid: Grid) -> None:
    x = DATA[name]()
    low, high = chosen_range(histogram(*x.split(3000)), grid, "mse")
    assert error(x, grid, low, high) <= 1.02 * least_error(x, grid)
    assert low <= 0 <= high


@pytest.mark.parametrize("grid", [U8, S8], ids=["u8", "s8"])
@pytest.mark.parametrize("method", ["mse", "entropy"])
@pytest.mark.parametrize("value", [0.0, 3.7, -2.5, 1e-3, 1e20])
def test_constant_data_are_held_exactly(value: float, method: str, grid: Grid) -> None:
    x = torch.full((100,), value)
    low, high = chosen_range(histogram(x, x), grid, method)
    assert np.allclose(rounded(x.double().numpy(), grid, low, high), value, rtol=1e-6)


def test_mse_clips_heavy_tails_and_keeps_flat_data_whole() -> None:
    x, four_bits = gaussian(), Grid(0, 15, False)
    low, high = chosen_range(histogram(x), four_bits, "mse")
    assert error(x, four_bits, low, high) < 0.8 * error(x, four_bits, x.min().item(), x.max().item())
    flat = torch.linspace(-1, 1, 10_001)
    low, high = chosen_range(histogram(flat), U8, "mse")
    assert (low, high) == pytest.approx((-1, 1), rel=0.01)


def reference_threshold(counts: list[int], levels: int) -> int:
    """The procedure of the TensorRT slides, step by step, for data that are not negative."""
    best, chosen = math.inf, len(counts)
    for end in range(levels, len(counts) + 1):
        reference = [float(c) for c in counts[:end]]
        reference[-1] += sum(counts[end:])
        groups: dict[int, list[int]] = {}
        for index in range(end):
            groups.setdefault(index * levels // end, []).append(index)
        candidate = [0.0] * end
        for members in groups.values():
            filled = [i for i in members if counts[i]]
            for i in filled:
                candidate[i] = sum(counts[j] for j in members) / len(filled)
        if not any(candidate):
            continue
        mass = sum(candidate)
        candidate = [1e-4 * mass if p and not q else q for p, q in zip(reference, candidate, strict=True)]
        total, mass = sum(reference), sum(candidate)
        found = sum(
            p / total * math.log(p / total / (q / mass)) for p, q in zip(reference, candidate, strict=True) if p
        )
        if found < best:
            best, chosen = found, end
    return chosen


@settings(max_examples=20)
@given(seed=st.integers(0, 2**20), levels=st.sampled_from([8, 16]), tail=st.floats(0.1, 3))
def test_entropy_chooses_what_the_reference_chooses(seed: int, levels: int, tail: float) -> None:
    generator = np.random.default_rng(seed)
    bins = np.minimum((np.abs(generator.standard_t(tail + 0.5, 3000)) * 8).astype(int), 95)
    counts = np.bincount(bins)
    width = 2.0**-3
    x = torch.from_numpy((bins + 0.5) * width).float()
    found = Histogram()
    found.counts[: len(counts)] = counts
    found.exponent, found.low, found.high = -3, x.min().item(), x.max().item()
    _, high = chosen_range(found, Grid(0, levels - 1, False), "entropy")
    assert high == min(reference_threshold(counts.tolist(), levels) * width, x.max().item())


def test_divergence_is_zero_where_every_level_is_one_bin_and_nothing_is_clipped() -> None:
    counts = np.arange(1, 257)
    assert divergence(counts, 0, 256, 256) == 0
    assert divergence(counts, 0, 256, 64) > 0
    assert divergence(np.array([0, 0, 5, 7]), 0, 2, 2) == math.inf


@pytest.mark.parametrize("grid", [U8, S8], ids=["u8", "s8"])
def test_entropy_clips_outliers_but_not_all(grid: Grid) -> None:
    x = torch.cat([gaussian(), torch.tensor([300.0, -300.0])])
    low, high = chosen_range(histogram(x), grid, "entropy")
    assert 5 < high < 150
    assert -150 < low < -5
    assert error(x[:-2], grid, low, high) < error(x[:-2], grid, -300, 300)


batches_of = st.lists(
    st.tuples(st.integers(0, 2**20), st.integers(0, 200), st.floats(-18, 18), st.floats(-3, 3)), min_size=1, max_size=6
)


def draw(recipe: list[tuple[int, int, float, float]]) -> list[Tensor]:
    return [
        ((torch.randn(n, generator=torch.Generator().manual_seed(seed)) + shift) * 2.0**power).relu_()
        if seed % 3 == 0
        else (torch.randn(n, generator=torch.Generator().manual_seed(seed)) + shift) * 2.0**power
        for seed, n, power, shift in recipe
    ]


@settings(max_examples=60)
@given(recipe=batches_of)
def test_nothing_is_lost_and_the_order_of_batches_does_not_matter(recipe: list[tuple[int, int, float, float]]) -> None:
    batches = draw(recipe)
    whole, grown, turned = histogram(torch.cat(batches)), histogram(*batches), histogram(*reversed(batches))
    assert grown.total == sum(b.numel() for b in batches)
    for other in (grown, turned):
        assert (other.first, other.exponent, other.zeros) == (whole.first, whole.exponent, whole.zeros)
        assert np.array_equal(other.counts, whole.counts)
    x = torch.cat(batches).double().numpy()
    inside, _ = np.histogram(x[x != 0], whole.edges)  # numpy counts the last edge in, which no value reaches
    assert np.array_equal(inside, whole.counts)
    if whole.counts.any():
        filled = np.flatnonzero(whole.counts)
        reach = max(filled[-1] + 1 + whole.first, 0) - min(filled[0] + whole.first, 0)
        assert BINS // 2 - 1 <= reach <= BINS or whole.exponent == -120


def test_non_finite_activations_are_an_error_that_says_so() -> None:
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(PassError, match="an activation is NaN or infinite on the calibration data"):
            histogram(torch.tensor([1.0, value]))
    empty = histogram(torch.empty(0, 3))
    assert empty.total == 0
    assert chosen_range(empty, U8, "mse") == (0, 0)


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_the_observer_keeps_torchaos_contract(method: str) -> None:
    activation = QuantizationSpec(
        torch.uint8, HistogramObserver.with_args(method=method), 0, 255, torch.per_tensor_affine
    )
    observer = activation.observer_or_fake_quant_ctr.with_args(
        dtype=torch.uint8, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine
    )()
    assert isinstance(observer, nn.Module)
    x = gaussian()
    assert torch.equal(observer(x), x)
    scale, zero = observer.calculate_qparams()
    assert (scale.dtype, zero.dtype, scale.shape, zero.shape) == (torch.float32, torch.int64, (1,), (1,))
    assert 0 < int(zero) < 255
    positive = HistogramObserver(method=method, dtype=torch.uint8, quant_min=0, quant_max=255)
    positive(x.abs() + 1)
    assert int(positive.calculate_qparams()[1]) == 0
    signed = HistogramObserver(
        method=method, dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_symmetric
    )
    signed(x)
    assert int(signed.calculate_qparams()[1]) == 0
