"""How far the predictor is from measured latencies that it was not fitted on, beside two baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from edgecompile.cost.columns import Floats
from edgecompile.cost.fit import PARENTS, calibration, fit, fit_names, predicted_ms
from edgecompile.cost.predict import Fitted
from edgecompile.cost.reference import Row, works

LEVEL = 0.9
_FEW = 4
"""With fewer families than this, one architecture is left out at a time instead of one family."""

_OWN = 10

Predictor = Callable[[Sequence[Row]], Callable[[Row], float]]
"""Fits on some rows, gives the latency in ms of any other."""


@dataclass(frozen=True)
class Line:
    """One line of the table: a device in a dtype. Errors are shares of the measured latency, each row's group left out.

    `spread` is the factor by which a 90 % interval reaches up and down; `coverage` the share of rows inside one made
    without their group. `macs_median` and `bytes_median` are the median errors of the two baselines.
    """

    fit: str
    dtype: str
    groups: int
    n: int
    median: float
    p90: float
    spearman: float
    coverage: float
    spread: float
    macs_median: float
    macs_p90: float
    bytes_median: float
    bytes_p90: float


def grouped(data: Sequence[Row]) -> Callable[[Row], str]:
    """The group that is left out with a row: its family, its architecture where there are few families."""
    by_family = len({r.family for r in data}) >= _FEW
    return lambda r: r.family if by_family else r.architecture


def left_out(data: Sequence[Row], predictor: Predictor) -> Floats:
    """Predicted latency of every row in ms, by a predictor fitted on all groups but the row's."""
    group = grouped(data)
    found = np.zeros(len(data))
    for out in sorted({group(r) for r in data}):
        predict = predictor([r for r in data if group(r) != out])
        for index, row in enumerate(data):
            if group(row) == out:
                found[index] = predict(row)
    return found


def law(name: str, start: Fitted | None = None) -> Predictor:
    """The law of a fit as a predictor."""

    def predictor(data: Sequence[Row]) -> Callable[[Row], float]:
        parameters = fit(data, start)
        return lambda row: predicted_ms(row, parameters)

    return predictor


def baseline(columns: Callable[[Row], Sequence[float]]) -> Predictor:
    """A sum of a few counts with factors above 0 for each dtype, fitted to relative errors."""

    def predictor(data: Sequence[Row]) -> Callable[[Row], float]:
        from scipy.optimize import nnls

        found = {}
        for dtype in {r.dtype for r in data}:
            some = [r for r in data if r.dtype == dtype]
            matrix = np.array([columns(r) for r in some]) / np.array([[r.latency_ms] for r in some])
            found[dtype] = nnls(matrix, np.ones(len(some)))[0]
        some_dtype = next(iter(found))
        return lambda row: float(np.dot(columns(row), found.get(row.dtype, found[some_dtype]))) or 1e-9

    return predictor


def _macs(row: Row) -> Sequence[float]:
    return (1.0, sum(w.macs for w in works(row.network)) * row.batch / 1e9)


def _bytes(row: Row) -> Sequence[float]:
    return (*_macs(row), sum(w.reads + w.writes for w in works(row.network)) * row.batch / 1e9)


def validate(names: Sequence[str] = (), parameters: Mapping[str, Fitted] | None = None) -> list[Line]:
    """The table, a line for every fit and dtype and one for all dtypes together; `names` chooses fits."""
    lines: list[Line] = []
    residuals: dict[str, tuple[list[Row], Floats]] = {}
    known = dict(parameters or {})
    for name in names or fit_names():
        data = calibration(fit=name)
        if (parent := PARENTS.get(name)) and parent not in known:
            known[parent] = fit(calibration(fit=parent))
        start = known.get(parent or "")
        residuals[name] = (data, left_out(data, law(name, start)))
    for name, (data, found) in residuals.items():
        others = [left_out(data, baseline(columns)) for columns in (_macs, _bytes)]
        dtypes = sorted({r.dtype for r in data})
        for dtype in ("all", *dtypes) if len(dtypes) > 1 else dtypes:
            chosen = np.array([dtype in ("all", r.dtype) for r in data])
            lines.append(_line(name, dtype, data, found, others, chosen))
    return lines


def _line(
    name: str, dtype: str, data: Sequence[Row], found: Floats, others: Sequence[Floats], chosen: NDArray[np.bool_]
) -> Line:
    measured = np.array([r.latency_ms for r in data])
    log = np.abs(np.log(found / measured))
    group = grouped(data)
    # the intervals of a dtype with many rows are its own, those of others the device's
    basis = chosen if dtype != "all" and chosen.sum() >= _OWN else np.ones(len(data), dtype=bool)
    inside = []
    for row, error, counts in zip(data, log, chosen, strict=True):
        if counts:
            rest = np.array([group(r) != group(row) for r in data])
            rest = rest & basis if (rest & basis).sum() >= _OWN else rest
            inside.append(error <= np.log(_spread(log[rest])))
    return Line(
        name,
        dtype,
        len({group(r) for r, c in zip(data, chosen, strict=True) if c}),
        int(chosen.sum()),
        *_errors(found[chosen], measured[chosen]),
        _spearman(found[chosen], measured[chosen]),
        float(np.mean(inside)),
        _spread(log[basis]),
        *(e for other in others for e in _errors(other[chosen], measured[chosen])),
    )


def _errors(found: Floats, measured: Floats) -> tuple[float, float]:
    error = np.abs(found / measured - 1)
    return float(np.median(error)), float(np.quantile(error, 0.9))


def _spearman(found: Floats, measured: Floats) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(found, measured)[0]) if len(found) > 2 else float("nan")


def _spread(log_errors: Floats) -> float:
    """The factor that holds 90 % of such errors: the conformal quantile, (n + 1) in place of n."""
    n = len(log_errors)
    level = min(1.0, LEVEL * (n + 1) / n)
    return float(np.exp(np.quantile(log_errors, level, method="higher")))


def as_rows(lines: Sequence[Line]) -> list[dict[str, object]]:
    """Lines as plain dicts, figures rounded as they are stored; None for a correlation of too few rows."""

    def stored(value: object) -> object:
        return (round(value, 4) if math.isfinite(value) else None) if isinstance(value, float) else value

    return [{k: stored(v) for k, v in asdict(line).items()} for line in lines]


def pooled_coverage(lines: Sequence[Line]) -> float:
    """The share of all rows inside their interval, each row once: in the line of its own dtype."""
    several = {line.fit for line in lines if line.dtype == "all"}
    own = [line for line in lines if line.dtype != "all" or line.fit not in several]
    return sum(line.coverage * line.n for line in own) / sum(line.n for line in own)
