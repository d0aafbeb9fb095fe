"""How far an artifact's outputs are from the teacher's, and what passes for equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

_FLOAT32, _HALF, _HALF_COSINE, _HALF_NORM = 1e-4, 5e-3, 0.9999, 0.01
_INT8_COSINE, _INT8_HOST = 0.99, 0.002
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Distance:
    """The worst over outputs: largest difference over the largest value, cosine, ratio of lengths less one."""

    error: float
    cosine: float
    norm: float


def distance(ours: Sequence[tuple[Array, ...]], theirs: Sequence[tuple[Array, ...]]) -> Distance:
    """Over runs of several outputs each; raises `ValueError` where number or shapes of outputs are not the same."""
    worst = Distance(0.0, 1.0, 0.0)
    for index, (mine, wanted) in enumerate(zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)):
        for one, other in zip(mine, wanted, strict=True):
            if one.shape != other.shape:
                raise ValueError(f"output {index}: shape {list(one.shape)}, the teacher's is {list(other.shape)}")
        found = _apart(*(np.concatenate([a.astype(np.float64).ravel() for a in arrays]) for arrays in (mine, wanted)))
        worst = Distance(
            max(worst.error, found.error), min(worst.cosine, found.cosine), max(worst.norm, found.norm, key=abs)
        )
    return worst


def _apart(one: Array, other: Array) -> Distance:
    finite = np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True) or not np.isfinite(one[finite]).all():
        return Distance(float("inf"), 0.0, float("inf"))
    one, other = one[finite], other[finite]
    gap, largest = float(np.abs(one - other).max(initial=0.0)), float(np.abs(other).max(initial=0.0))
    lengths = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    if lengths[1] == 0:
        return Distance(0.0, 1.0, 0.0) if gap == 0 else Distance(float("inf"), 0.0, float("inf"))
    cosine = float(one @ other) / (lengths[0] * lengths[1]) if lengths[0] else 0.0
    return Distance(gap / largest, min(cosine, 1.0), lengths[0] / lengths[1] - 1)


def judge(found: Distance, mode: str, dtype: str, host: float | None = None) -> tuple[Literal["equal", "differs"], str]:
    """Whether outputs pass for equal, and what they were held to where they do not.

    INT8: a cosine of 0.99, or as good as INT8 on this host within 0.002 (`host` is its cosine). float32: an error of
    1e-4. Narrower floats: an error of 5e-3, or a cosine of 0.9999 at a length within 1 %.
    """
    if mode == "int8":
        least = _INT8_COSINE if host is None else min(_INT8_COSINE, host - _INT8_HOST)
        good = found.cosine >= least
        return ("equal", "") if good else ("differs", f"cosine {found.cosine:.4f} is below {least:.4f}")
    if dtype == "fp32":
        good = found.error <= _FLOAT32
        return ("equal", "") if good else ("differs", f"error {found.error:.2g} is above {_FLOAT32:g}")
    good = found.error <= _HALF or (found.cosine >= _HALF_COSINE and abs(found.norm) <= _HALF_NORM)
    said = (
        f"error {found.error:.2g} is above {_HALF:g}, and cosine {found.cosine:.6f} or length {found.norm:+.2g} is off"
    )
    return ("equal", "") if good else ("differs", said)
