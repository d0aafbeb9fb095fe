"""Activation ranges from one histogram: least squared error (`mse`) or least divergence (`entropy`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecompile.errors import PassError
from edgecompile.passes._torchao import UniformQuantizationObserverBase

BINS = 2048
_SMALLEST_EXPONENT = -120
_SMOOTH = 1e-4
_SWEEP = 2.0 ** (-np.arange(97) / 12)  # fractions of a range that are tried: 1 down to 1/256, twelve an octave

Floats = NDArray[np.float64]


@dataclass
class Histogram:
    """Counts on a grid of at most 2048 bins whose width is a power of two, doubled when the data outgrow it.

    Bin `k` holds the values in [k w, (k + 1) w). Bins of one grid pair up to bins of the next exactly, so the result
    depends neither on the order of the batches nor on where they were cut. Exact zeros, which every grid of integers
    holds exactly, are counted apart: behind a ReLU they would drown the rest.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    first: int = 0
    exponent: int = _SMALLEST_EXPONENT
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum()) + self.zeros

    @property
    def edges(self) -> Floats:
        """The 2049 edges of the bins."""
        return np.asarray((self.first + np.arange(BINS + 1)) * 2.0**self.exponent, np.float64)

    def add(self, values: Tensor) -> None:
        """Count a batch; raises `PassError` when it holds NaN or infinity."""
        values = values.detach().flatten().double()
        if not values.numel():
            return
        low, high = (v.item() for v in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise PassError("quantize: an activation is NaN or infinite on the calibration data: mend either of them")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(min(self.low, 0.0), max(self.high, 0.0))
        inside = values[values != 0]
        self.zeros += values.numel() - inside.numel()
        bins = torch.floor(inside * 2.0**-self.exponent).long() - self.first
        self.counts += torch.bincount(bins, minlength=BINS).numpy()

    def _cover(self, low: float, high: float) -> None:
        """Grow the grid until it holds [low, high], which holds zero."""
        exponent = self.exponent
        while math.floor(high * 2.0**-exponent) - math.floor(low * 2.0**-exponent) >= BINS:
            exponent += 1
        first = math.floor(low * 2.0**-exponent)
        filled = np.flatnonzero(self.counts)
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, ((filled + self.first) >> (exponent - self.exponent)) - first, self.counts[filled])
        self.counts, self.first, self.exponent = counts, first, exponent


class HistogramObserver(UniformQuantizationObserverBase):  # type: ignore[misc]
    """An observer in torchao's contract; `method` chooses the range when calibration is over.

    `mse` takes the range with the least squared rounding and clipping error, the values of a bin being spread evenly
    over it. `entropy` takes the clipping threshold with the least Kullback-Leibler divergence between the clipped
    histogram and its quantized form (S. Migacz, 8-bit Inference with TensorRT, 2017). Zero is in every range. Unsigned
    ranges are asymmetric, with zero point 0 for data without negative values; signed ones are symmetric.
    """

    def __init__(self, method: Literal["mse", "entropy"] = "mse", **options: Any) -> None:
        super().__init__(**options)
        self.method = method
        self.histogram = Histogram()

    def forward(self, x: Tensor) -> Tensor:
        """Count, and pass on."""
        self.histogram.add(x)
        return x

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int64), one element each."""
        symmetric = self.qscheme == torch.per_tensor_symmetric
        grid = Grid(int(self.quant_min), int(self.quant_max), symmetric)
        scale, zero = grid.parameters(*chosen_range(self.histogram, grid, self.method))
        return torch.tensor([scale], dtype=torch.float32), torch.tensor([zero], dtype=torch.int64)


@dataclass(frozen=True)
class Grid:
    """The integers that a range is laid on."""

    smallest: int
    largest: int
    symmetric: bool

    def parameters(self, low: float, high: float) -> tuple[float, int]:
        """Scale and zero point of a range that holds zero; scale 1 for an empty one."""
        if self.symmetric:
            scale, zero = max(-low / -self.smallest, high / self.largest), 0
        else:
            scale = (high - low) / (self.largest - self.smallest)
            zero = self.smallest + round(-low / scale) if scale > 0 else self.smallest
        return (scale if scale > float(np.finfo(np.float32).tiny) else 1.0), zero


def chosen_range(histogram: Histogram, grid: Grid, method: str) -> tuple[float, float]:
    """The range (low <= 0 <= high) that the method chooses; the whole one for constant data."""
    if not histogram.counts.any():
        return 0.0, 0.0
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if np.count_nonzero(histogram.counts) == 1:
        return low, high
    choose = _least_error if method == "mse" else _least_divergence
    return choose(histogram, grid, low, high)


def _least_error(histogram: Histogram, grid: Grid, low: float, high: float) -> tuple[float, float]:
    """Both ends shrunk together, then each by itself, in ever finer steps until nothing gets better."""
    edges = np.clip(histogram.edges, histogram.low, histogram.high)
    best, ends = math.inf, (low, high)
    both = np.array([1.0, 1.0])
    sides = [both] if grid.symmetric else [both, np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    for factors in (_SWEEP, 1 + np.linspace(-0.1, 0.1, 41), 1 + np.linspace(-0.01, 0.01, 21)):
        better = True
        while better:
            better = False
            for side in sides:
                tried = np.stack([ends[0] * factors ** side[0], ends[1] * factors ** side[1]], 1)
                tried = np.clip(tried, low, high)
                errors = squared_error(histogram.counts, edges, grid, tried)
                found = int(np.argmin(errors))
                if errors[found] < best * (1 - 1e-6):
                    better = better or len(sides) > 1
                    best, ends = float(errors[found]), (float(tried[found, 0]), float(tried[found, 1]))
    return ends


def squared_error(counts: NDArray[np.int64], edges: Floats, grid: Grid, ranges: Floats) -> Floats:
    """The summed squared error of each range, [ranges], values spread evenly over their bins.

    Exact: the integral over a bin is the difference of a closed form at its edges.
    """
    filled = np.flatnonzero(counts)
    left, right, weight = edges[filled], edges[filled + 1], counts[filled]
    errors = np.empty(len(ranges))
    for index, (low, high) in enumerate(ranges):
        scale, zero = grid.parameters(float(low), float(high))
        bottom, top = (grid.smallest - zero) * scale, (grid.largest - zero) * scale
        width = right - left
        thin = width <= 1e-9 * np.maximum(np.abs(left), np.abs(right))
        spread = _integral(right, scale, bottom, top) - _integral(left, scale, bottom, top)
        mean = spread / np.where(thin, 1.0, width)
        at = left[thin]
        mean[thin] = (at - np.clip(np.rint(at / scale) * scale, bottom, top)) ** 2
        errors[index] = mean @ weight
    return errors


def _integral(x: Floats, scale: float, bottom: float, top: float) -> Floats:
    """An antiderivative of (x - Q(x))^2: scale^3 / 12 a step inside the range, a cube outside."""
    inside = np.clip(x, bottom, top)
    steps = np.rint(inside / scale)
    within = steps * scale**3 / 12 + (inside - steps * scale) ** 3 / 3
    return np.asarray(within + (x - inside) ** 3 / 3)


def _least_divergence(histogram: Histogram, grid: Grid, low: float, high: float) -> tuple[float, float]:
    """Clip both sides at the threshold of least divergence; the whole range when none is better."""
    width = 2.0**histogram.exponent
    levels = grid.largest - grid.smallest + 1
    filled = np.flatnonzero(histogram.counts) + histogram.first
    first, last = min(int(filled[0]), 0), max(int(filled[-1]) + 1, 0)
    most = max(-first, last)
    counts = np.zeros(2 * most, np.int64)  # bin k at most + k
    counts[filled + most] = histogram.counts[filled - histogram.first]
    best, threshold = math.inf, most
    for tried in range(1, most + 1):
        start, end = (-tried, tried) if grid.symmetric else (max(first, -tried), min(last, tried))
        if end - start < levels:
            continue
        found = divergence(counts, start + most, end + most, levels)
        if found < best:
            best, threshold = found, tried
    return max(low, -threshold * width), min(high, threshold * width)


def divergence(counts: NDArray[np.int64], start: int, end: int, levels: int) -> float:
    """Kullback-Leibler divergence of a histogram clipped to the bins start..end from its quantized form.

    The clipped histogram has the values outside in its end bins; the quantized one has none of them, and spreads what
    falls on a level over the filled bins of that level. Where only the clipped one has mass (outliers behind a gap),
    the quantized one gets 1e-4 of its own, as in MXNet's calibration: the divergence would be infinite.
    """
    inside = counts[start:end]
    clipped = inside.astype(np.float64)
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[end:].sum()
    level = np.arange(len(inside)) * levels // len(inside)
    filled = inside > 0
    mass, share = np.bincount(level, inside, levels), np.bincount(level, filled, levels)
    spread = np.where(filled, mass[level] / np.maximum(share[level], 1), 0.0)
    if not inside.any():
        return math.inf
    held = clipped > 0
    spread[held & ~filled] = _SMOOTH * spread.sum()
    p, q = clipped[held] / clipped.sum(), spread[held] / spread.sum()
    return float(np.sum(p * np.log(p / q)))
