"""Charts of the page as inline SVG: lengths in percent of the width, so only the drawing stretches.

Each function returns finished SVG text. Colours are classes of the page's style sheet, so that dark and light
apply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgecompile.report.model import Budget, Figure
from edgecompile.report.plain import number, quantity

_GOLDEN_RATIO = 0.6180339887498949
_DOTS = 150
_HUGE = 1e300  # beyond it the room at the end of a scale would be infinite


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` laid out over the width of a chart."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Position in percent, kept within the chart."""
        span = self.high - self.low
        return round(100 * min(1.0, max(0.0, (value - self.low) / span if span > 0 else 0.0)), 2)

    def ticks(self, most: int = 5) -> list[float]:
        """At most `most` round values (1, 2 or 5 times a power of ten apart) within the scale."""
        rough = (self.high - self.low) / most
        if not rough > 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((m * power for m in (1, 2, 5, 10) if m * power >= rough), 10 * power)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale_from_zero(values: Sequence[float | None], room: float = 1.04) -> Scale:
    """A scale that starts at zero and holds all `values`."""
    known = [min(value, _HUGE) for value in values if value is not None]
    return Scale(0.0, (max(known, default=1.0) or 1.0) * room)


def scale_around(values: Sequence[float]) -> Scale:
    """A scale that holds all `values` with a little room at both ends."""
    low, high = max(min(values), -_HUGE), min(max(values), _HUGE)
    room = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    return Scale(low - room, high + room)


def waterfall(scale: Scale, before: float | None, after: Figure | None, style: str) -> str:
    """One row of a waterfall: a bar from `before` (or zero) to `after`, with the interval of `after`.

    `style` is `total`, `gain`, `loss` or `undone`; a figure that was not measured is pale with a dashed edge.
    """
    if after is None:
        return svg(22, "")
    start, end = scale.at(before or 0.0), scale.at(after.value)
    width = max(abs(end - start), 0.35)
    soft = "" if after.kind == "measured" else " soft"
    parts = [
        tag(
            "rect",
            x=f"{min(start, end):.2f}%",
            y=5,
            width=f"{width:.2f}%",
            height=12,
            rx=2,
            class_=f"{style}{soft}",
        )
    ]
    if after.low is not None and after.high is not None:
        parts.append(_whisker(scale, after.low, after.high, 11))
    return svg(22, "".join(parts))


def axis(scale: Scale) -> str:
    """The axis of a chart with round tick marks."""
    ticks = scale.ticks()
    return svg(20, "".join(_tick(scale.at(value), f"{value:g}") for value in (round(tick, 9) for tick in ticks)))


def bar(scale: Scale, value: float | None, style: str, height: int = 6) -> str:
    """One plain bar from zero."""
    if value is None:
        return ""
    width = max(scale.at(value), 0.35)
    return svg(height, tag("rect", x=0, y=0, width=f"{width:.2f}%", height=height, rx=2, class_=style))


def gauge(budget: Budget) -> str:
    """A budget: the room up to the limit, the limit as a line, what was found as a dot with its interval.

    Empty without a limit.
    """
    if budget.limit is None:
        return ""
    ends = [budget.limit, budget.found, budget.high]
    low = min(0.0, *(value for value in (budget.found, budget.low) if value is not None), 0.0)
    scale = Scale(low, scale_from_zero(ends, 1.18).high)
    limit = scale.at(budget.limit)
    parts = [
        tag("rect", x=0, y=8, width=f"{limit:.2f}%", height=10, class_="room"),
        tag("rect", x=f"{limit:.2f}%", y=8, width=f"{100 - limit:.2f}%", height=10, class_="beyond"),
    ]
    if budget.low is not None and budget.high is not None:
        left, right = scale.at(budget.low), scale.at(budget.high)
        parts.append(
            tag(
                "rect",
                x=f"{left:.2f}%",
                y=10,
                width=f"{max(right - left, 0.5):.2f}%",
                height=6,
                rx=3,
                class_="span",
            )
        )
    parts.append(tag("line", x1=f"{limit:.2f}%", x2=f"{limit:.2f}%", y1=3, y2=23, class_="limit"))
    if budget.found is not None:
        parts.append(tag("circle", cx=f"{scale.at(budget.found):.2f}%", cy=13, r=5, class_=f"dot {budget.verdict}"))
    anchor = "end" if limit > 70 else "start" if limit < 30 else "middle"
    label = f"limit {quantity(budget.limit, budget.unit)}"
    parts.append(tag("text", label, x=f"{limit:.2f}%", y=37, text_anchor=anchor, class_="tick"))
    return svg(42, "".join(parts))


def strip(scale: Scale, values: Sequence[float], style: str) -> str:
    """Each timing round as a dot, their median as a line; dots are spread upwards only to be told apart."""
    shown = values if len(values) <= _DOTS else [values[i * len(values) // _DOTS] for i in range(_DOTS)]
    parts = [
        tag(
            "circle",
            cx=f"{scale.at(value):.2f}%",
            cy=round(6 + 24 * ((i * _GOLDEN_RATIO) % 1), 1),
            r=3.2,
            class_=style,
        )
        for i, value in enumerate(shown)
    ]
    if values:
        ordered = sorted(values)
        middle = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
        parts.append(
            tag(
                "line",
                x1=f"{scale.at(middle):.2f}%",
                x2=f"{scale.at(middle):.2f}%",
                y1=1,
                y2=35,
                class_="mid",
            )
        )
    return svg(36, "".join(parts))


def described(svg: str, text: str) -> str:
    """The chart with a description for those who cannot see it (charts are hidden from readers otherwise)."""
    return svg.replace('aria-hidden="true"', f'role="img" aria-label="{escape(text)}"', 1)


def _whisker(scale: Scale, low: float, high: float, y: int) -> str:
    left, right = f"{scale.at(low):.2f}%", f"{scale.at(high):.2f}%"
    ends = "".join(tag("line", x1=x, x2=x, y1=y - 4, y2=y + 4, class_="whisker") for x in (left, right))
    return tag("line", x1=left, x2=right, y1=y, y2=y, class_="whisker") + ends


def _tick(at: float, label: str) -> str:
    anchor = "start" if at < 3 else "end" if at > 97 else "middle"
    mark = tag("line", x1=f"{at:.2f}%", x2=f"{at:.2f}%", y1=0, y2=4, class_="axis")
    return mark + tag("text", label, x=f"{at:.2f}%", y=16, text_anchor=anchor, class_="tick")


def svg(height: int, content: str) -> str:
    return f'<svg width="100%" height="{height}" aria-hidden="true" focusable="false">{content}</svg>'


def tag(name: str, content: str = "", **attributes: str | float) -> str:
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items())
    return f"<{name}{pairs}>{escape(content)}</{name}>" if content else f"<{name}{pairs}/>"


def described_gauge(budget: Budget) -> str:
    """The gauge of a budget with its figures as its description."""
    found = quantity(budget.found, budget.unit)
    return described(gauge(budget), f"{budget.kind} {found}, limit {quantity(budget.limit, budget.unit)}")


def described_strip(scale: Scale, values: Sequence[float], style: str) -> str:
    """The strip of one side's rounds with their number and range as its description."""
    text = f"{len(values)} rounds of the {style} from {number(min(values))} to {number(max(values))} ms"
    return described(strip(scale, values, style), text)
