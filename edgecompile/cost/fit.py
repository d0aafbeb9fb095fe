"""Fit the few parameters of a device's latency law to measured latencies of whole networks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from edgecompile.cost.columns import COMPUTES_IN, Floats, columns
from edgecompile.cost.laws import LAWS, PARAMETERS
from edgecompile.cost.predict import SHARED, Fitted, seconds, sheet
from edgecompile.cost.reference import Row, rows, works
from edgecompile.cost.work import Work
from edgecompile.device import DeviceProfile

# the fit that another shrinks to: the same law on a better measured relative
PARENTS = {"agx-orin": "a100"}
_FREE, _RELATED, _TIED = 0.8, 0.4, 0.3
"""Standard deviations in log space: a device's parameters around where its law starts, around another device's fit,
and a dtype's around those of the dtype that it computes in."""
_ERROR = 0.15


def fit_names() -> list[str]:
    """Every fit that has calibration rows, parents first."""
    names = dict.fromkeys(profile(r.device).fit for r in calibration())
    return sorted(names, key=lambda n: (n in PARENTS, n))


@cache
def profile(name: str) -> DeviceProfile:
    """A shipped profile."""
    return DeviceProfile.load(name)


def calibration(split: str = "calibration", fit: str = "") -> list[Row]:
    """The rows of a split whose device belongs to a fit; all where none is named."""
    return [r for r in rows() if r.split == split and (not fit or profile(r.device).fit == fit)]


@dataclass(frozen=True)
class Point:
    """A measured network: its operators on the whole batch, where it ran, and what it took."""

    works: tuple[Work, ...]
    device: DeviceProfile
    dtype: str
    latency_ms: float
    family: str
    sparse: bool = False


def point(row: Row) -> Point:
    """A row of the shipped table as a point."""
    return Point(
        _batched(row.network, row.batch), profile(row.device), row.dtype, row.latency_ms, row.family, row.sparse
    )


def predicted_ms(row: Row, parameters: Fitted) -> float:
    """What the law says of a row."""
    one = point(row)
    return seconds(one.works, one.device, one.dtype, parameters, sparse=one.sparse).network * 1e3


@cache
def _batched(network: str, batch: int) -> tuple[Work, ...]:
    return tuple(w.at(batch) for w in works(network))


def fit(data: Sequence[Row], start: Fitted | None = None) -> Fitted:
    """Parameters that predict `data` best: least squares of log errors, robust, families weighing alike.

    A shrinkage in log space holds each near `start` (where the law starts by default), so that a few rows, or one bad
    row, move it little. Laws with parameters a dtype fit fp16 first and tie what computes in it to it.
    """
    points = [point(r) for r in data]
    law = points[0].device.law
    begin = dict(start or {SHARED: PARAMETERS[law]})
    first = begin.get(SHARED) or next(iter(begin.values()))
    if law != "hexagon":
        return {SHARED: solve(points, first, _RELATED if start else _FREE)}
    found: dict[str, Mapping[str, float]] = {}
    for dtype in sorted({p.dtype for p in points}, key=lambda d: (d != "fp16", d)):
        some = [p for p in points if p.dtype == dtype]
        tied = found.get(COMPUTES_IN.get(dtype, ""))
        found[dtype] = solve(some, tied or first, _TIED if tied else _FREE)
    return found


def solve(data: Sequence[Point], start: Mapping[str, float], deviation: float) -> dict[str, float]:
    """The parameters of one dtype, or of all; `deviation` of the prior around `start`, in log space."""
    from scipy.optimize import least_squares

    names = list(start)
    origin = np.log([start[n] for n in names])
    target = np.log([p.latency_ms for p in data])
    count = Counter(p.family for p in data)
    weight = np.array([1 / math.sqrt(count[p.family]) for p in data])
    weight /= math.sqrt(float((weight**2).mean()))
    prepared = [(columns(p.works, p.dtype), sheet(p.device), p) for p in data]

    def residuals(x: Floats) -> Floats:
        parameters = dict(zip(names, np.exp(x), strict=True))
        found = [LAWS[p.device.law](c, on, {p.dtype: parameters}, p.sparse).network for c, on, p in prepared]
        errors = np.log(np.array(found) * 1e3) - target
        return np.concatenate([weight * errors / _ERROR, (x - origin) / deviation])

    solution = least_squares(residuals, origin, loss="soft_l1")
    return {n: float(f"{v:.4g}") for n, v in zip(names, np.exp(solution.x), strict=True)}
