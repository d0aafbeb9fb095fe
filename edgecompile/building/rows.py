"""From steps and samples to the rows and figures of a report."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from edgecompile.measure import Interval, Samples, median_ms, ratio
from edgecompile.pass_manager import Price, Step
from edgecompile.report import Figure, Ratio, Rounds, Score, StepRow


def row_of(step: Step) -> StepRow:
    """A step of the pass manager as a row of the report."""
    names = tuple(p.name for p in step.passes)
    before, after = step.before, step.after
    return StepRow(
        names[0] if len(names) == 1 else "exact",
        step.kept,
        step.reason,
        names if len(names) > 1 else (),
        step.seconds,
        step.nodes,
        _price(before),
        _price(after),
        before.size_bytes if before else None,
        after.size_bytes if after else None,
        before.score if before else None,
        after.score if after else None,
        step.stats,
        step.notes,
    )


def _price(price: Price | None) -> Figure | None:
    if price is None or price.latency_ms is None:
        return None
    return Figure(price.latency_ms.value, price.latency_ms.low, price.latency_ms.high, price.kind)


def figure_of(samples: Samples | None) -> Figure | None:
    """The median over rounds with its interval."""
    if samples is None:
        return None
    found = median_ms(samples)
    return Figure(found.value, found.low, found.high)


def ratio_of(samples: Mapping[str, Samples]) -> Ratio | None:
    """Artifact over teacher, from rounds in which both ran."""
    if not samples:
        return None
    found: Interval = ratio(samples["artifact"], samples["teacher"])
    return Ratio(found.value, found.low, found.high)


def rounds_of(samples: Mapping[str, Samples]) -> Rounds | None:
    """The median of each round, in ms."""
    if not samples:
        return None
    medians = {k: tuple(1e3 * median(r) for r in s.rounds) for k, s in samples.items()}
    return Rounds(medians["teacher"], medians["artifact"])


def promised(latency: Figure | None, score: Score | None) -> dict[str, Any]:
    """What a manifest says of speed and score; a measured time is another at every build, and in the report alone."""
    said: dict[str, Any] = {}
    if latency is not None:
        predicted = {"ms": latency.value, "low_ms": latency.low, "high_ms": latency.high}
        said["latency"] = {"kind": latency.kind, **(predicted if latency.kind != "measured" else {})}
    if score is not None:
        said["score"] = {
            "metric": score.metric,
            "percent": score.artifact,
            "teacher_percent": score.teacher,
            "kind": score.kind,
            "samples": score.samples,
        }
    return said
