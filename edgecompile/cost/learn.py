"""How fast a new device is learnt: the error on the rest after a few of its networks were measured."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from edgecompile.cost.fit import Point, calibration, fit_names, point, solve
from edgecompile.cost.laws import LAWS, PARAMETERS
from edgecompile.cost.predict import SHARED, Fitted, seconds
from edgecompile.cost.reference import Row

COUNTS = (0, 3, 5, 10)
_TRIALS = 20
_PRIOR = 0.5


def curve(names: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """For each fit treated as a new device: number of measured networks -> median error on all others.

    It starts from the specification sheet and where its law starts, or, for a law with another device, that one's
    fit; every count is the median of 20 random choices of networks, every one a row of a network and dtype.
    """
    found = {}
    for name in names or fit_names():
        data = calibration(fit=name)
        start = _start(name, data[0])
        rng = random.Random(0)
        row: dict[str, float] = {}
        for count in COUNTS:
            if count + 2 > len({(r.network, r.dtype) for r in data}):
                continue
            trials = [_trial(data, start, count, rng) for _ in range(_TRIALS if count else 1)]
            row[str(count)] = float(np.median(trials))
        found[name] = row
    return found


def _start(name: str, row: Row) -> Fitted:
    law = point(row).device.law
    for other in fit_names():
        data = calibration(fit=other)
        if other != name and point(data[0]).device.law == law:
            return {SHARED: solve([point(r) for r in data], PARAMETERS[law], 0.8)}
    assert law in LAWS
    return {SHARED: PARAMETERS[law]}


def _trial(data: Sequence[Row], start: Fitted, count: int, rng: random.Random) -> float:
    pairs = sorted({(r.network, r.dtype) for r in data})
    measured = set(rng.sample(pairs, count))
    some = [point(r) for r in data if (r.network, r.dtype) in measured]
    parameters = {SHARED: solve(some, start[SHARED], _PRIOR)} if some else start
    rest = [r for r in data if (r.network, r.dtype) not in measured]
    return float(np.median([_error(point(r), parameters) for r in rest]))


def _error(one: Point, parameters: Fitted) -> float:
    return abs(
        seconds(one.works, one.device, one.dtype, parameters, sparse=one.sparse).network * 1e3 / one.latency_ms - 1
    )
