"""Side-by-side timing, its statistics, paired accuracy, and the machine that was measured."""

from edgecompile.measure.accuracy import Drop, paired_accuracy, paired_scores
from edgecompile.measure.machine import fingerprint, machine
from edgecompile.measure.statistics import (
    Interval,
    median_ms,
    meets,
    needed_samples,
    quantile_ms,
    ratio,
    verdict,
)
from edgecompile.measure.timing import Samples, interleave, settle

__all__ = [
    "Drop",
    "Interval",
    "Samples",
    "fingerprint",
    "interleave",
    "machine",
    "median_ms",
    "meets",
    "needed_samples",
    "paired_accuracy",
    "paired_scores",
    "quantile_ms",
    "ratio",
    "settle",
    "verdict",
]
