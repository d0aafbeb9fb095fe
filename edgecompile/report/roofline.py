"""An estimate as one page: a roofline, where the time goes, what falls back, every operator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from edgecompile.cost.predict import sheet
from edgecompile.report import charts
from edgecompile.report.charts import svg, tag
from edgecompile.report.html import environment
from edgecompile.report.plain import number, plain, size

if TYPE_CHECKING:
    from edgecompile.cost.laws import Sheet
    from edgecompile.cost.result import Estimate, OperatorRow
    from edgecompile.device import DeviceProfile

_TABLE = 200
_LAYERS = 40
_DOTS = 600
"""Operators drawn at most, the longest: beyond, dots hide each other and the page grows."""
_LEAST_US = 1e-3
"""Operators that a law prices at nothing have no place on a logarithmic axis."""
_DECADES = 7
_HEIGHT = 380
_FOOT = 22
STYLES = {"compute": "gain", "memory": "loss", "launch": "total"}
"""What bounds an operator -> the colour of its dot, a class of the style sheet."""


@dataclass(frozen=True)
class Axes:
    """Both axes of a roofline in powers of ten: operations a byte, and operations a second."""

    across: charts.Scale
    up: charts.Scale

    def x(self, intensity: float) -> float:
        """Position in percent of the width."""
        return self.across.at(_log(intensity))

    def y(self, rate: float) -> float:
        """Position in pixels from the top."""
        return round(_HEIGHT * (1 - self.up.at(_log(rate)) / 100), 1)


@dataclass(frozen=True)
class Share:
    """A part of the whole time, with its bar."""

    name: str
    us: float
    percent: float
    bar: str


def page(name: str, found: Estimate, profile: DeviceProfile) -> str:
    """The whole page as text; the same estimate gives the same bytes. Every foreign name is escaped."""
    from markupsafe import Markup

    unit = found.rows[-1].unit
    on = sheet(profile, unit if unit in profile.units else "")
    total = sum(row.us for row in found.rows)
    longest = set(sorted(range(len(found.rows)), key=lambda i: -found.rows[i].us)[:_TABLE])
    tone = {"measured": "pass", "predicted": "pass", "unvalidated": "inconclusive"}[found.latency_ms.kind]
    drawn = [r for r in found.rows if r.bytes and r.us >= _LEAST_US]
    products, others = [r for r in drawn if r.macs], [r for r in drawn if not r.macs]
    hidden = sum(bool(r.bytes) for r in found.rows) - min(len(products), _DOTS) - min(len(others), _DOTS)
    return (
        environment()
        .get_template("roofline.html")
        .render(
            name=name,
            found=found,
            profile=profile,
            unit=unit,
            tone=tone,
            roofline=Markup(roofline(products, on)) if products else "",
            strip=Markup(movers(others, on)) if others else "",
            undrawn=hidden,
            kinds=shares(((row.op, row.us) for row in found.rows), total),
            bounds=shares(((row.bound, row.us) for row in found.rows), total, STYLES),
            layers=shares(((row.layer or row.name, row.us) for row in found.rows), total, most=_LAYERS),
            rows=[row for i, row in enumerate(found.rows) if i in longest],
            macs=sum(row.macs for row in found.rows),
            bytes=sum(row.bytes for row in found.rows),
            styles=STYLES,
            shown=_TABLE,
            markup=Markup,
            number=number,
            size=size,
            percent=percent,
        )
    )


def percent(share: float) -> str:
    """A share as a percentage with one digit behind the point below ten."""
    return f"{100 * share:.{1 if share < 0.0995 else 0}f} %"


def shares(
    parts: Iterable[tuple[str, float]], total: float, styles: Mapping[str, str] | None = None, most: int = 1000
) -> list[Share]:
    """Times summed by name, the longest first; those beyond `most` in one last row."""
    sums: dict[str, float] = {}
    for name, us in parts:
        sums[name] = sums.get(name, 0.0) + us
    ordered = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) > most:
        rest = ordered[most:]
        ordered = [*ordered[:most], (f"{len(rest)} more", sum(us for _, us in rest))]
    scale = charts.scale_from_zero([us for _, us in ordered], 1.0)
    return [
        Share(name, us, us / total if total else 0.0, charts.bar(scale, us, (styles or {}).get(name, "total"), 10))
        for name, us in ordered
    ]


def roofline(rows: Sequence[OperatorRow], on: Sheet) -> str:
    """Operators with products as dots under the memory slope and the peak of every dtype in use, both axes logarithmic.

    A dot is the larger the more of the time it takes, and has its figures as a tooltip.
    """
    rows = _longest(rows)
    rates: dict[float, list[str]] = {}
    for dtype in sorted({row.dtype for row in rows}):
        if peak := 2 * on.rate(dtype):
            rates.setdefault(peak, []).append(dtype)
    axes = _axes(rows, on, max(rates, default=0.0))
    parts = [*_grid(axes), *_roof(axes, on.bandwidth, rates)]
    most = max(row.us for row in rows)
    for row in sorted(rows, key=lambda r: -r.us):
        parts.append(_dot(axes.x(_intensity(row)), axes.y(_rate(row)), row, most, _text(_rate(row), "op/s")))
    said = f"roofline of {len(rows)} operators: operations a second against operations a byte"
    return charts.described(svg(_HEIGHT + _FOOT, "".join(parts)), said)


def movers(rows: Sequence[OperatorRow], on: Sheet) -> str:
    """Operators without products by the bytes a second that they move, beside the memory's bandwidth."""
    rows = _longest(rows)
    memory = _log(on.bandwidth)
    speeds = [row.bytes / _seconds(row) for row in rows]
    low, high = min(map(_log, speeds)), max(map(_log, speeds))
    scale = charts.Scale(
        max(math.floor(min(low, memory - 0.3)), math.floor(memory) - 4),
        min(math.ceil(max(high, memory + 0.3)), math.ceil(memory) + 2),
    )
    limit = scale.at(memory)
    parts = [tag("line", x1=f"{limit}%", x2=f"{limit}%", y1=0, y2=44, class_="roof")]
    parts.append(_label(limit, 58, f"memory {_text(on.bandwidth, 'B/s')}"))
    most = max(row.us for row in rows)
    for i, (row, speed) in enumerate(zip(rows, speeds, strict=True)):
        parts.append(_dot(scale.at(_log(speed)), round(8 + 28 * ((i * 0.618) % 1), 1), row, most, _text(speed, "B/s")))
    for power in (scale.low, scale.high):
        if abs(scale.at(power) - limit) > 25:
            parts.append(_label(scale.at(power), 58, _text(10.0**power, "B/s")))
    return charts.described(svg(64, "".join(parts)), f"bytes a second of {len(rows)} operators without products")


def _axes(rows: Sequence[OperatorRow], on: Sheet, peak: float) -> Axes:
    across = [*(_log(_intensity(row)) for row in rows)]
    if peak:
        across.append(_log(2 * peak / on.bandwidth))
    up = [*(_log(_rate(row)) for row in rows), *([_log(peak)] if peak else [])]
    right, top = math.ceil(max(across)), math.ceil(max(up) + 0.1)
    left, bottom = math.floor(min(across)), math.floor(min(up) - 0.1)
    return Axes(
        charts.Scale(max(left, right - _DECADES), max(right, left + 1)),
        charts.Scale(max(bottom, top - _DECADES), top),
    )


def _grid(axes: Axes) -> list[str]:
    parts = []
    for power in range(int(axes.up.low), int(axes.up.high) + 1):
        y = axes.y(10.0**power)
        parts.append(tag("line", x1="0%", x2="100%", y1=y, y2=y, class_="rule"))
        if axes.up.low < power < axes.up.high:
            parts.append(tag("text", _text(10.0**power, "op/s"), x=0, y=y - 4, class_="tick"))
    for power in range(int(axes.across.low), int(axes.across.high) + 1):
        x = axes.x(10.0**power)
        parts.append(tag("line", x1=f"{x}%", x2=f"{x}%", y1=0, y2=_HEIGHT, class_="rule"))
        parts.append(_label(x, _HEIGHT + 16, f"{10.0**power:g}" + (" op/byte" if power == axes.across.high else "")))
    return parts


def _roof(axes: Axes, bandwidth: float, rates: Mapping[float, Sequence[str]]) -> list[str]:
    """The slope of the memory up to the highest peak, and a line for each peak from where it meets the slope."""
    top = max(rates, default=10.0**axes.up.high)
    # where the slope enters the drawing: at its left edge or at its bottom
    start = max(10.0**axes.across.low, 10.0**axes.up.low / bandwidth)
    end = top / bandwidth
    parts = []
    if end > start:
        x1, y1, x2, y2 = axes.x(start), axes.y(start * bandwidth), axes.x(end), axes.y(top)
        parts.append(tag("line", x1=f"{x1}%", y1=y1, x2=f"{x2}%", y2=y2, class_="roof"))
        at = math.sqrt(start * end)
        parts.append(
            tag(
                "text",
                f"memory {_text(bandwidth, 'B/s')}",
                x=f"{axes.x(at):.2f}%",
                y=axes.y(at * bandwidth) - 8,
                text_anchor="end",
                class_="roof",
            )
        )
    for peak, dtypes in rates.items():
        y = axes.y(peak)
        parts.append(tag("line", x1=f"{axes.x(peak / bandwidth)}%", x2="100%", y1=y, y2=y, class_="roof"))
        said = f"{', '.join(dtypes)} {_text(peak, 'op/s')}"
        parts.append(tag("text", said, x="100%", y=y - 6, text_anchor="end", class_="roof"))
    return parts


def _dot(x: float, y: float, row: OperatorRow, most: float, achieved: str) -> str:
    layer = f" ({plain(row.layer, 80)})" if row.layer else ""
    said = (
        f"{plain(row.name, 80)}{layer}: {row.op}, {row.dtype}, {number(row.us)} us, bound by {row.bound}, {achieved}, "
        f"on the {plain(row.unit, 40)}"
    )
    radius = round(2.5 + 6 * math.sqrt(row.us / most if most else 0.0), 1)
    place = f'cx="{x}%" cy="{y}" r="{radius}"'
    return f'<circle {place} class="dot {STYLES[row.bound]}"><title>{escape(said)}</title></circle>'


def _longest(rows: Sequence[OperatorRow]) -> list[OperatorRow]:
    return sorted(rows, key=lambda row: -row.us)[:_DOTS]


def _seconds(row: OperatorRow) -> float:
    return max(row.us * 1e-6, 1e-12)


def _intensity(row: OperatorRow) -> float:
    return 2 * row.macs / row.bytes


def _rate(row: OperatorRow) -> float:
    return 2 * row.macs / _seconds(row)


def _log(value: float) -> float:
    return math.log10(max(value, 1e-30))


def _text(value: float, unit: str) -> str:
    """`42.6 Top/s`: three significant digits and the prefix that suits them."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale * 0.9995:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _label(at: float, y: float, text: str) -> str:
    anchor = "start" if at < 6 else "end" if at > 94 else "middle"
    return tag("text", text, x=f"{at}%", y=y, text_anchor=anchor, class_="tick")
