"""What was measured on a device, and whether the device was steady enough for the figures to count."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from edgecompile.measure import Interval, Samples, median_ms, quantile_ms

PERCENTILES = (50, 90, 97, 99)
_FEWEST_ROUNDS = 8  # for the interval of a median, as in measure/statistics.py
_WIDEST = 0.10  # of the median: a 99 % interval beyond this proves little
_DROP = 0.95  # of the first clock: less is a device that throttles
_DRIFT = 1.05  # of the first times
_TREND_Z = 3.0  # Mann-Kendall, one false alarm in 700 steady runs


@dataclass(frozen=True)
class Row:
    """An operator's time per inference, and the processing unit that it ran on ("" where the tool does not say)."""

    name: str
    us: float
    unit: str = ""


@dataclass(frozen=True)
class Heard:
    """What a device said until it ended or was lost: seconds per call by round, and what was read between rounds."""

    rounds: Sequence[Sequence[float]] = ()
    clocks_mhz: Sequence[float] = ()
    temperatures_c: Sequence[float] = ()
    rows: Sequence[Row] = ()
    environment: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Measured:
    """Latency of an artifact on one device.

    `samples_ms` are single calls, a tuple a round. `percentiles` follow `measure.quantile_ms`: None below 1000 samples.
    `interval` is the median with its 99 % interval, None below 8 rounds. `why_partial` and `why_noisy` are empty
    when there is nothing to say.
    """

    device: str
    kind: str
    complete: bool
    why_partial: str
    rows: tuple[Row, ...]
    samples_ms: tuple[tuple[float, ...], ...]
    percentiles: Mapping[int, Interval | None]
    interval: Interval | None
    noisy: bool
    why_noisy: str
    environment: Mapping[str, object]
    notes: tuple[str, ...]

    @property
    def certified(self) -> bool:
        """Whether a budget may be judged by these figures: everything was measured, and the device was steady."""
        return self.complete and not self.noisy and self.interval is not None


def measured(device: str, kind: str, heard: Heard, why_partial: str = "") -> Measured:
    """The statistics of what a device said; `why_partial` is given when it was cut short."""
    rounds = tuple(tuple(seconds) for seconds in heard.rounds if seconds)
    samples = Samples(rounds)
    interval = median_ms(samples) if len(rounds) >= _FEWEST_ROUNDS else None
    why_noisy = unsteady(rounds, heard.clocks_mhz, interval)
    return Measured(
        device=device,
        kind=kind,
        complete=not why_partial,
        why_partial=why_partial,
        rows=tuple(heard.rows),
        samples_ms=tuple(tuple(s * 1e3 for s in seconds) for seconds in rounds),
        percentiles=MappingProxyType({p: quantile_ms(samples, p / 100) if rounds else None for p in PERCENTILES}),
        interval=interval,
        noisy=bool(why_noisy),
        why_noisy=why_noisy,
        environment=MappingProxyType(_with_extremes(heard)),
        notes=tuple(heard.notes),
    )


def unsteady(rounds: Sequence[Sequence[float]], clocks_mhz: Sequence[float], interval: Interval | None) -> str:
    """Why these rounds must not be certified: throttling, drift, spread or too few of them; "" when they may."""
    if interval is None:
        return f"too few rounds: {len(rounds)} of at least {_FEWEST_ROUNDS}"
    third = max(1, len(clocks_mhz) // 3)
    if len(clocks_mhz) >= _FEWEST_ROUNDS:
        first, last = max(clocks_mhz[:third]), max(clocks_mhz[-third:])
        if last < _DROP * first:
            return f"throttling: the clock fell from {first:.0f} to {last:.0f} MHz"
    medians = [statistics.median(seconds) for seconds in rounds]
    third = max(1, len(medians) // 3)
    drift = statistics.median(medians[-third:]) / statistics.median(medians[:third])
    if drift > _DRIFT and _trend(medians) > _TREND_Z:
        return f"throttling: times rose by {(drift - 1) * 100:.0f} % during the run"
    width = (interval.high - interval.low) / interval.value
    if width > _WIDEST:
        return f"spread: the 99 % interval of the median is {width * 100:.0f} % of it, more than {_WIDEST * 100:.0f} %"
    return ""


def _trend(values: Sequence[float]) -> float:
    """Mann and Kendall's z: far above 0 when values rise over time, whatever their distribution."""
    n = len(values)
    score = sum((b > a) - (b < a) for a, b in itertools.combinations(values, 2))
    return float(score / (n * (n - 1) * (2 * n + 5) / 18) ** 0.5) if n > 1 else 0.0


def _with_extremes(heard: Heard) -> dict[str, object]:
    found = dict(heard.environment)
    if heard.clocks_mhz:
        found["clock_mhz"] = [min(heard.clocks_mhz), max(heard.clocks_mhz)]
    if heard.temperatures_c:
        found["temperature_c"] = [min(heard.temperatures_c), max(heard.temperatures_c)]
    return found
