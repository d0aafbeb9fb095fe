"""Latency where the artifact cannot run: predictions in place of measurements, and their own rule for a budget."""

from __future__ import annotations

from collections.abc import Callable

from edgecompile.building.options import Budgets
from edgecompile.building.verdicts import Answer, latency_limit
from edgecompile.device import DeviceProfile
from edgecompile.measure import Interval
from edgecompile.program import Program
from edgecompile.report import Budget, Figure
from edgecompile.target import Target

Predict = Callable[[Program], Figure]
_EFFECT = 0.98
"""A predicted gain of less than 2 % is none."""


def predictor(device: DeviceProfile, batch: int, target: Target) -> Predict:
    """What a program takes on a device at a batch, as `edgecompile estimate` says.

    Unvalidated for a target whose runtime is not the one that the device's figures are of.
    """
    from edgecompile.cost.estimate import estimate

    foreign = target.runtime not in device.runtime

    def predict(program: Program) -> Figure:
        found = estimate(program, device, batch=batch).latency_ms
        return Figure(found.value, found.low, found.high, "unvalidated" if foreign else found.kind)

    return predict


def interval(figure: Figure) -> Interval:
    """A figure as the interval that a price holds."""
    low, high = (figure.value if bound is None else bound for bound in (figure.low, figure.high))
    return Interval(figure.value, low, high)


def pays(before: Figure, after: Figure) -> tuple[bool, str]:
    """Whether a lossy step is predicted to be worth it, and why."""
    found = after.value / before.value
    what = f"{found:.3f}x of the latency before ({after.kind})"
    return (True, f"faster: {what}") if found < _EFFECT else (False, f"it does not pay here: {what}")


def latency_budget(artifact: Figure, teacher: Figure, budgets: Budgets) -> Budget | None:
    """The row of the report: passes with the interval's upper end, misses with its lower, says so in between.

    What no measured latency backs is inconclusive whatever it says.
    """
    limit = latency_limit(budgets, interval(teacher))
    if budgets.latency is None or limit is None:
        return None
    found = interval(artifact)
    answer: Answer = "pass" if found.high <= limit.ms else "miss" if found.low > limit.ms else "inconclusive"
    if artifact.kind == "unvalidated":
        answer = "inconclusive"
    reachable = ""
    if answer == "miss":
        reachable = f"{found.low:.3g} ms at best is predicted"
    elif answer == "inconclusive":
        reachable = f"{found.low:.3g}-{found.high:.3g} ms is {artifact.kind}: measure it with edgecompile profile"
    return Budget(
        "latency", budgets.latency.text, limit.ms, "ms", found.value, answer, found.low, found.high, reachable
    )
