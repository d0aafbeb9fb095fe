"""How much accuracy a candidate loses against its teacher on the same samples, and what the data can prove.

Two percentages on the same samples are not compared as if they were independent: only samples on which the
two differ say anything (McNemar 1947).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from edgecompile.measure.statistics import Floats, binomial

_ERROR = 0.05
_Z_ONE_SIDED = 1.6448536269514722
_Z_TWO_SIDED = 1.959963984540054
_RESAMPLES = 4000


@dataclass(frozen=True)
class Drop:
    """Teacher's score less the candidate's in percent points; `low` to `high` is the 95 % interval.

    `bound_pp` is what the drop stays under with 95 % confidence (one-sided, so usually under `high`).
    """

    value_pp: float
    low: float
    high: float
    bound_pp: float
    samples: int

    def certifies(self, limit_pp: float) -> bool:
        """Whether the data prove a drop of at most `limit_pp` with 95 % confidence.

        Besides the bound, the samples must be many enough to have met a failure that costs `limit_pp`: what n
        samples never showed happens in up to 1 - 0.05 ** (1 / n), "three in n". So 1 point takes 299 samples.
        """
        unseen_pp = 100 * (1 - _ERROR ** (1 / self.samples))
        return self.bound_pp <= limit_pp and unseen_pp <= limit_pp


def paired_accuracy(correct_teacher: ArrayLike, correct_candidate: ArrayLike) -> Drop:
    """Drop in the share of correct samples, from two boolean vectors over the same samples.

    Interval: the score interval of Tango (1998, Statistics in Medicine 17:891), which excludes 0 exactly when
    McNemar's test rejects. Bound: the smaller of two upper limits, safe for few differences, useful for many:
    Clopper-Pearson (1934) on the samples that only the teacher gets right, and Tango's limit with a
    continuity correction of one sample.
    """
    teacher, candidate = _pair(correct_teacher, correct_candidate, bool)
    n = len(teacher)
    lost = int(np.sum(teacher & ~candidate))
    gained = int(np.sum(~teacher & candidate))
    high = _score_limit(lost, gained, n, _Z_TWO_SIDED, 0.0)
    low = -_score_limit(gained, lost, n, _Z_TWO_SIDED, 0.0)
    bound = min(_clopper_pearson(lost, n), _score_limit(lost, gained, n, _Z_ONE_SIDED, 1.0))
    return Drop(100 * (lost - gained) / n, 100 * low, 100 * high, 100 * bound, n)


def paired_scores(teacher: ArrayLike, candidate: ArrayLike, seed: int = 0) -> Drop:
    """Drop in the mean of per-sample scores (in percent, as 100 x cosine), by a seeded bootstrap."""
    before, after = _pair(teacher, candidate, np.float64)
    drops: Floats = before - after
    if not np.all(np.isfinite(drops)):
        raise ValueError(f"{int(np.sum(~np.isfinite(drops)))} of {len(drops)} scores are not finite")
    rng = np.random.default_rng(seed)
    n = len(drops)
    means = [drops[rng.integers(0, n, n)].mean() for _ in range(_RESAMPLES)]
    low, high, bound = np.quantile(means, [_ERROR / 2, 1 - _ERROR / 2, 1 - _ERROR])
    return Drop(float(drops.mean()), float(low), float(high), float(bound), n)


def _pair(one: ArrayLike, two: ArrayLike, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    first: np.ndarray = np.asarray(one, dtype)
    second: np.ndarray = np.asarray(two, dtype)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"two vectors over the same samples are compared, got {first.shape} and {second.shape}")
    return first, second


def _score_limit(lost: int, gained: int, n: int, z: float, correction: float) -> float:
    """The largest difference d = P(lost) - P(gained) that the score test at `z` does not reject."""
    observed = (lost - gained) / n

    def accepted(d: float) -> bool:
        # Most likely P(gained) given d, from Tango's quadratic; the variance of lost - gained follows.
        b = (2 * n - lost + gained) * d - lost - gained
        root = math.sqrt(max(b * b + 8 * n * gained * d * (1 - d), 0.0))
        variance = n * (2 * (root - b) / (4 * n) + d * (1 - d))
        return n * (d - observed) - correction <= z * math.sqrt(max(variance, 0.0))

    return _last(accepted, observed, 1.0)


def _clopper_pearson(events: int, n: int) -> float:
    """One-sided 95 % upper limit of a probability after `events` in n trials: exact."""
    if events == n:
        return 1.0
    return _last(lambda p: float(np.sum(binomial(n, p)[: events + 1])) > _ERROR, events / n, 1.0)


def _last(accepted: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that holds at `low` ceases to hold on the way to `high`: bisection, from above."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if accepted(middle) else (low, middle)
    return high
