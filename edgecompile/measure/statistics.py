"""From samples to intervals and verdicts: what may be said of a latency, and when nothing may."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecompile.measure.timing import FEWEST_ROUNDS, Samples

Verdict = Literal["faster", "slower", "same", "inconclusive"]
Answer = Literal["pass", "miss", "inconclusive"]
Floats = NDArray[np.float64]

CONFIDENCE = 0.99
_RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval, in the value's unit."""

    value: float
    low: float
    high: float


def median_ms(samples: Samples) -> Interval:
    """Median over rounds of the round's median, in ms per call; bootstrap 99 % interval over rounds."""
    medians = _round_medians(samples)
    low, high = _bootstrap(medians)
    return Interval(float(np.median(medians)) * 1e3, low * 1e3, high * 1e3)


def ratio(candidate: Samples, baseline: Samples) -> Interval:
    """Candidate's time over the baseline's: median over rounds of the ratio of medians, 99 % interval.

    Both must come from the same rounds: a disturbance of a whole round falls on both and cancels.
    """
    if len(candidate.rounds) != len(baseline.rounds):
        raise ValueError(f"not the same rounds: {len(candidate.rounds)} and {len(baseline.rounds)}")
    logs = np.log(_round_medians(candidate) / _round_medians(baseline))
    low, high = _bootstrap(logs)
    return Interval(math.exp(float(np.median(logs))), math.exp(low), math.exp(high))


def quantile_ms(samples: Samples, q: float) -> Interval | None:
    """The q-quantile (0.99 for p99) of single calls in ms, with a 99 % order-statistic interval.

    None when there are fewer than `needed_samples(q)`. The interval asks nothing of the distribution but that
    samples are independent (binomial count of samples below it; David and Nagaraja, Order Statistics).
    """
    if samples.calls_per_sample != 1:
        raise ValueError(
            "a quantile of means over several calls is not one of calls: time them with sample_s=0, "
            f"not {samples.calls_per_sample} calls a sample"
        )
    ordered = np.sort(np.array(samples.raw())) * 1e3
    if len(ordered) < needed_samples(q):
        return None
    below = np.cumsum(binomial(len(ordered), q))  # below[k]: at most k samples under the quantile
    tail = (1 - CONFIDENCE) / 2
    first = int(np.searchsorted(below, tail, side="right"))  # the largest l with P(fewer than l below) <= tail
    last = int(np.searchsorted(below, 1 - tail))  # the smallest u - 1 with P(at least u below) <= tail
    value = ordered[math.ceil(q * len(ordered)) - 1]
    return Interval(float(value), float(ordered[first - 1]), float(ordered[last]))


def needed_samples(q: float) -> int:
    """How many samples the interval of a q-quantile needs: never under 1000, more for q beyond 0.995."""
    tail = (1 - CONFIDENCE) / 2
    return max(1000, math.ceil(math.log(tail) / math.log(max(q, 1 - q))))


def verdict(ratio: Interval, min_effect: float = 0.02) -> Verdict:
    """What a ratio says: beyond the smallest effect that counts, within it, or nothing yet."""
    if ratio.high < 1 - min_effect:
        return "faster"
    if ratio.low > 1 + min_effect:
        return "slower"
    if 1 - min_effect <= ratio.low and ratio.high <= 1 + min_effect:
        return "same"
    return "inconclusive"


def meets(measured: Interval, limit: float) -> Answer:
    """Whether a measured value keeps an upper limit: its whole interval must, or must not."""
    if measured.high <= limit:
        return "pass"
    return "miss" if measured.low > limit else "inconclusive"


def binomial(n: int, p: float) -> Floats:
    """Probabilities of 0..n successes in n trials, 0 < p < 1."""
    k = np.arange(1, n + 1)
    choose = np.concatenate(([0.0], np.cumsum(np.log((n - k + 1) / k))))
    k = np.arange(n + 1)
    probabilities: Floats = np.exp(choose + k * math.log(p) + (n - k) * math.log1p(-p))
    return probabilities


def _round_medians(samples: Samples) -> Floats:
    return np.array([np.median(seconds) for seconds in samples.rounds])


def _bootstrap(values: Floats) -> tuple[float, float]:
    """Percentile bootstrap of the median (Efron 1979), the same for the same values."""
    if len(values) < FEWEST_ROUNDS:
        raise ValueError(f"a 99 % interval needs at least {FEWEST_ROUNDS} rounds, got {len(values)}")
    picks = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(values[picks], axis=1), [tail, 1 - tail])
    return float(low), float(high)
