"""The report as one page: no scripts, no network, dark and light, phone and paper."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

from edgecompile.report import charts
from edgecompile.report.json_form import as_written
from edgecompile.report.model import (
    Figure,
    LayerDrift,
    Report,
    StepRow,
    latency_change,
    like_for_like,
)
from edgecompile.report.plain import (
    budget_interval,
    change,
    interval,
    least,
    megabytes,
    number,
    plain,
    quantity,
    short_json,
    size,
)

if TYPE_CHECKING:
    import jinja2

_SHOWN = 200
"""Rows of a list on the page; those beyond are counted and left to the JSON: the page stays small."""

_LAYERS = 60


def render_html(report: Report) -> str:
    """The whole page as text; the same report gives the same bytes. Every foreign name is escaped."""
    return environment().get_template("page.html").render(_view(as_written(report)))


def render_frame(report: Report) -> str:
    """The page inside a sandboxed frame, for notebooks."""
    page = html.escape(render_html(report), quote=True)
    return (
        f'<iframe sandbox="" title="edgecompile report" srcdoc="{page}" '
        'style="width:100%;height:720px;border:1px solid #8884;border-radius:8px"></iframe>'
    )


@dataclass(frozen=True)
class Row:
    """One row from teacher to artifact, ready for the page."""

    name: str
    outcome: str
    reason: str
    latency: Figure | None
    ratio: float | None
    size_bytes: int | None
    score: float | None
    bar: str
    style: str


def environment() -> jinja2.Environment:
    import jinja2
    from markupsafe import Markup

    def load(name: str) -> str:
        return resources.files("edgecompile.report").joinpath(name).read_text(encoding="utf-8")

    def shown(value: Any) -> Any:
        """Every text of the page passes here, so hidden characters of foreign names cannot reach it."""
        return plain(value, 2000) if isinstance(value, str) and not isinstance(value, Markup) else value

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _view(report: Report) -> dict[str, Any]:
    from markupsafe import Markup

    times = [figure for step in report.steps for figure in (step.latency_before, step.latency_after)]
    times += [report.latency_ms, report.teacher_latency_ms]
    ends = [end for figure in times if figure for end in (figure.value, figure.high)]
    scale = charts.scale_from_zero(ends)
    sizes = charts.scale_from_zero(
        [report.teacher_size_bytes, report.size_bytes, *(s.size_after for s in report.steps)], 1.0
    )
    rows = _rows(report, scale)
    return {
        "report": report,
        "ratio": latency_change(report),
        "tone": {0: "pass", 7: "inconclusive"}.get(report.exit_code, "miss"),
        "rows": rows,
        "least_ms": least(row.latency.value for row in rows if row.latency),
        "least_bytes": least(row.size_bytes for row in rows),
        "has_times": bool(ends),
        "axis": Markup(charts.axis(scale)),
        "size_bar": lambda value, style: Markup(charts.bar(sizes, value, style)),
        "gauge": lambda budget: Markup(charts.described_gauge(budget)),
        "strips": _strips(report),
        "drift": _drift(report),
        "machine": _pairs(report.machine),
        "versions": _pairs(report.versions),
        "preprocessing": _pairs(report.preprocessing),
        "shown": _SHOWN,
        "markup": Markup,
        "number": number,
        "one_decimal": partial(number, like=10.0),
        "two_decimals": partial(number, like=1.0),
        "interval": interval,
        "megabytes": megabytes,
        "size": size,
        "change": lambda value: change(value).replace("-", "−"),
        "quantity": quantity,
        "budget_interval": budget_interval,
        "short_json": short_json,
    }


def _rows(report: Report, scale: charts.Scale) -> list[Row]:
    score, change_of = report.score, latency_change(report)
    teacher = Row(
        "teacher", "", "", report.teacher_latency_ms, 1.0 if report.teacher_latency_ms else None,
        report.teacher_size_bytes, score.teacher if score else None,
        charts.waterfall(scale, None, report.teacher_latency_ms, "total"), "end",
    )  # fmt: skip
    artifact = Row(
        "artifact", "", "", report.latency_ms, change_of.value if change_of else None,
        report.size_bytes, score.artifact if score else None,
        charts.waterfall(scale, None, report.latency_ms, "total"), "end",
    )  # fmt: skip
    return [teacher, *(_step_row(report, step, scale) for step in report.steps), artifact]


def _step_row(report: Report, step: StepRow, scale: charts.Scale) -> Row:
    before, after = step.latency_before, step.latency_after
    style = "undone"
    if step.kept and before and after:
        style = "gain" if after.value <= before.value else "loss"
    elif step.kept:
        style = "total"
    return Row(
        step.label,
        "kept" if step.kept else "undone",
        step.reason,
        after,
        like_for_like(report, step),
        step.size_after,
        step.score_after,
        charts.waterfall(scale, before.value if before else None, after, style),
        "" if step.kept else "gone",
    )


def _strips(report: Report) -> list[tuple[str, str]]:
    """Label and chart of the timing rounds of each side, and the axis; empty when no rounds were kept."""
    if not report.rounds:
        return []
    sides = [("teacher", report.rounds.teacher_ms), ("artifact", report.rounds.artifact_ms)]
    values = [value for _, side in sides for value in side]
    if not values:
        return []
    scale = charts.scale_around(values)
    drawn = [(name, charts.described_strip(scale, side, name)) for name, side in sides if side]
    return [*drawn, ("ms", charts.axis(scale))]


def _drift(report: Report) -> list[tuple[LayerDrift, str, bool]]:
    """Each layer, its bar, whether it is the first that drifts; of very many layers, the worst."""
    if not report.verify:
        return []
    layers: Sequence[LayerDrift] = report.verify.layers
    if len(layers) > _LAYERS:
        worst = sorted(layers, key=lambda layer: float("inf") if layer.snr_db is None else layer.snr_db)[:_LAYERS]
        layers = [layer for layer in layers if layer in worst]
    scale = charts.scale_from_zero([layer.snr_db for layer in layers], 1.0)
    first = report.verify.first_drift
    return [
        (
            layer,
            charts.bar(scale, layer.snr_db, "loss" if layer.layer == first else "gain", 10),
            layer.layer == first,
        )
        for layer in layers
    ]


def _pairs(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, short_json(mapping[key])) for key in sorted(mapping)]
