"""Budgets to verdicts and exit codes: what passes, what is missed, and what cannot be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgecompile import errors
from edgecompile.building.options import Budgets
from edgecompile.measure import Drop, Interval, Samples, median_ms, meets, quantile_ms
from edgecompile.report import Budget

Answer = Literal["pass", "miss", "inconclusive"]
_CODES = {"latency": errors.LATENCY, "drop": errors.ACCURACY, "size": errors.SIZE}


@dataclass(frozen=True)
class Limit:
    """A latency limit in milliseconds at a quantile, once the teacher's own latency is known."""

    ms: float
    quantile: float


def latency_limit(budgets: Budgets, teacher: Interval | None) -> Limit | None:
    """The latency budget in milliseconds; a share is of the teacher's median, measured in the same rounds."""
    asked = budgets.latency
    if asked is None:
        return None
    if asked.ms is not None:
        return Limit(asked.ms, asked.quantile)
    if teacher is None or asked.percent is None:
        return None
    return Limit(teacher.value * asked.percent / 100, asked.quantile)


def latency_of(samples: Samples, quantile: float) -> Interval | None:
    """The median of round medians, or a percentile over all calls (None while they are too few)."""
    return median_ms(samples) if quantile == 0.5 else quantile_ms(samples, quantile)


def latency_answer(samples: Mapping[str, Samples], budgets: Budgets) -> Answer:
    """Whether the artifact's latency holds, with the teacher's share taken from the same rounds."""
    teacher = median_ms(samples["teacher"]) if "teacher" in samples else None
    limit = latency_limit(budgets, teacher)
    if limit is None:
        return "pass"
    found = latency_of(samples["artifact"], limit.quantile)
    return "inconclusive" if found is None else meets(found, limit.ms)


def latency_budget(samples: Mapping[str, Samples], budgets: Budgets) -> Budget | None:
    """The row of the report for the latency budget, None when there is none."""
    if budgets.latency is None:
        return None
    limit = latency_limit(budgets, median_ms(samples["teacher"]) if "teacher" in samples else None)
    found = latency_of(samples["artifact"], budgets.latency.quantile) if "artifact" in samples else None
    answer = latency_answer(samples, budgets) if found is not None and limit is not None else "inconclusive"
    reachable = f"{found.high:.3g} ms was reached" if answer == "miss" and found else ""
    if answer == "inconclusive":
        reachable = "too noisy to tell on this machine now: close other programs and run again"
    return Budget(
        "latency",
        budgets.latency.text,
        limit.ms if limit else None,
        "ms",
        found.value if found else None,
        answer,
        found.low if found else None,
        found.high if found else None,
        reachable,
    )


def drop_budget(
    drop: Drop | None, budgets: Budgets, strict: bool, asked: str, why: str = "no evaluation data: give --eval"
) -> Budget | None:
    """The row for the accuracy budget: the observed drop decides, and with `strict` the data must prove it."""
    if budgets.drop_pp is None:
        return None
    if drop is None:
        return Budget(
            "drop",
            asked,
            budgets.drop_pp,
            "pp",
            None,
            "inconclusive",
            reachable=why,
        )
    answer: Answer = "pass" if drop.value_pp <= budgets.drop_pp + 1e-9 else "miss"
    reachable = f"{drop.value_pp:.2f} pp was the least" if answer == "miss" else ""
    if answer == "pass" and strict and not drop.certifies(budgets.drop_pp):
        answer = "inconclusive"
        reachable = (
            f"{drop.samples} samples cannot prove {budgets.drop_pp:g} pp: give more with --eval, or leave --strict out"
        )
    return Budget("drop", asked, budgets.drop_pp, "pp", drop.value_pp, answer, drop.low, drop.high, reachable)


def size_budget(size_bytes: int, teacher_bytes: int, budgets: Budgets, asked: str) -> Budget | None:
    """The row for the size budget, None when there is none."""
    limit = budgets.size_bytes
    if budgets.size_percent is not None:
        limit = int(teacher_bytes * budgets.size_percent / 100)
    if limit is None:
        return None
    answer: Answer = "pass" if size_bytes <= limit else "miss"
    reachable = f"{size_bytes / 1e6:.3g} MB was reached" if answer == "miss" else ""
    return Budget("size", asked, float(limit), "bytes", float(size_bytes), answer, reachable=reachable)


def codes_of(rows: Sequence[Budget]) -> tuple[int, ...]:
    """The exit codes that the budgets earned, each once."""
    codes = {
        _CODES[row.kind] if row.verdict == "miss" else errors.INCONCLUSIVE for row in rows if row.verdict != "pass"
    }
    return tuple(sorted(codes))
