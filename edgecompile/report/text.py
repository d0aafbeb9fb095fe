"""The report on a terminal: a verdict, one table from teacher to artifact, and what stands behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeVar

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, OverflowMethod
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgecompile.report.json_form import as_written
from edgecompile.report.model import Figure, Report, StepRow, latency_change, like_for_like
from edgecompile.report.plain import (
    budget_interval,
    change,
    decimals,
    least,
    megabytes,
    number,
    plain,
    quantity,
    short_json,
    size,
)

WIDE = 110
"""From this width on, the reason of a step has a column of its own."""

NARROW = 72
"""Below this width intervals are left out: a number that is cut would be a wrong number."""

_Item = TypeVar("_Item")
ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
_VERDICT_STYLE = {"pass": "bold green", "miss": "bold red", "inconclusive": "bold yellow"}
_SHOWN = 12
"""Decisions, refusals and notes beyond this many are counted, not printed: the JSON has them all."""


def render(report: Report, console: Console) -> None:
    """Print the report; fits 80 columns, uses ASCII alone where the terminal's encoding is not UTF-8.

    Names from the model or its files are printed as plain text: no markup of rich, no escape sequences.
    """
    report, ascii_only = as_written(report), console.options.ascii_only
    _print(console, _headline(report, ascii_only))
    _print(console, Text(plain(_setting(report), 400, ascii_only), style="dim"))
    if report.steps or report.latency_ms:
        console.print(_steps(report, console.width, ascii_only))
    else:
        console.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for key, line in _facts(report, console.width >= WIDE, ascii_only):
        facts.add_row(key, line)
    console.print(Padding(facts, (0, 0, 0, 1)))


def _print(console: Console, line: Text) -> None:
    console.print(line, highlight=False, overflow="fold")


def _headline(report: Report, ascii_only: bool) -> Text:
    """`PASS  efficientnet_lite0 -> host  4.10 ms (teacher 8.92 ms)  -54 %`."""
    good = "bold green" if report.exit_code == 0 else "bold yellow" if report.exit_code == 7 else "bold red"
    arrow = "->" if ascii_only else "→"
    name, target = (plain(text, 60, ascii_only) for text in (report.model.name, report.target))
    line = Text.assemble((report.verdict, good), f"  {name} {arrow} {target}")
    if report.latency_ms:
        line.append(f"  {number(report.latency_ms.value)} ms", style="bold")
        if report.latency_ms.kind != "measured":
            line.append(f" {report.latency_ms.kind}")
    if report.latency_ms and report.teacher_latency_ms:
        line.append(f" (teacher {number(report.teacher_latency_ms.value)} ms)")
    ratio = latency_change(report)
    if ratio:
        line.append(f"  {change(ratio.value)}", style="bold")
    return line


def _setting(report: Report) -> str:
    threads = f", {report.threads} thread{'s' * (report.threads != 1)}" if report.threads else ""
    shapes = ", ".join(f"{i.name} {'x'.join(map(str, i.shape))} {i.dtype}" for i in report.inputs)
    parts = (
        f"device {report.device}, batch {report.batch}{threads}",
        shapes,
        f"exit code {report.exit_code}",
    )
    return "; ".join(part for part in parts if part)


def _steps(report: Report, width: int, ascii_only: bool) -> Table:
    """One row for the teacher, each step and the artifact; each column with its own number of decimals."""
    wide, narrow = width >= WIDE, width < NARROW
    table = _empty_table(_fit(report.score.metric if report.score else "score", ascii_only), width, ascii_only)
    teacher, steps, score = report.teacher_latency_ms, report.steps, report.score
    times = (teacher, report.latency_ms, *(step.latency_after for step in steps))
    digits = decimals(least(time.value for time in times if time))
    smallest = least((report.teacher_size_bytes, report.size_bytes, *(step.size_after for step in steps)))

    def add(name: Text, latency: Figure | None, ratio: float | None, size_bytes: int | None,
            percent: float | None, outcome: Text, style: str = "") -> None:  # fmt: skip
        bought = (number(ratio, like=1.0), megabytes(size_bytes, smallest), number(percent, like=1.0))
        table.add_row(
            name, *_latency_cells(latency, digits, narrow), *bought, *([outcome] if wide else []), style=style
        )

    add(Text("teacher", style="bold"), teacher, 1.0 if teacher else None, report.teacher_size_bytes,
        score.teacher if score else None, Text())  # fmt: skip
    for step in steps:
        add(_label(step, wide, ascii_only), step.latency_after, like_for_like(report, step), step.size_after,
            step.score_after, _outcome(step, ascii_only), "" if step.kept else "dim")  # fmt: skip
    ratio = latency_change(report)
    add(Text("artifact", style="bold"), report.latency_ms, ratio.value if ratio else None, report.size_bytes,
        score.artifact if score else None, Text(), "bold")  # fmt: skip
    return table


def _cut(ascii_only: bool) -> OverflowMethod:
    """The mark of rich for a cell that was cut is not ASCII."""
    return "crop" if ascii_only else "ellipsis"


def _empty_table(score_heading: str, width: int, ascii_only: bool) -> Table:
    wide, cut = width >= WIDE, _cut(ascii_only)
    lines = ASCII_HEAD if ascii_only else SIMPLE_HEAD
    table = Table(box=lines, safe_box=False, padding=(0, 0, 0, 1), expand=wide)
    table.add_column("step", overflow="fold", min_width=14, ratio=2 if wide else None)
    table.add_column("ms", justify="right", no_wrap=True, overflow=cut)
    if width >= NARROW:
        table.add_column("interval", justify="right", no_wrap=True, overflow=cut)
    table.add_column("figure", no_wrap=True, overflow=cut)
    for heading in ("ratio", "MB", score_heading):
        table.add_column(Text(heading), justify="right", no_wrap=True, overflow=cut)
    if wide:
        table.add_column("outcome", overflow="fold", ratio=3)
    return table


def _fit(metric: str, ascii_only: bool) -> str:
    return plain(metric, 9, ascii_only) + " %"


def _latency_cells(latency: Figure | None, digits: int, narrow: bool) -> tuple[str, ...]:
    """Value, interval (not when `narrow`) and kind."""
    if latency is None:
        return ("", "") if narrow else ("", "", "")
    like = 10.0 ** (2 - digits)
    low, high = (number(bound, like) or "?" for bound in (latency.low, latency.high))
    bounds = "" if latency.low is None and latency.high is None else f"{low}-{high}"
    return (number(latency.value, like), *([] if narrow else [bounds]), latency.kind)


def _label(step: StepRow, wide: bool, ascii_only: bool) -> Text:
    """The passes of a row: all of a short group, the first and the last of a long one."""
    label = plain(_short_label(step), ascii_only=ascii_only)
    return Text(label if wide or step.kept else f"{label} (undone)")


def _short_label(step: StepRow) -> str:
    several = len(step.group) > 3
    return f"{step.group[0]} to {step.group[-1]} ({len(step.group)} passes)" if several else step.label


def _outcome(step: StepRow, ascii_only: bool) -> Text:
    reason = plain(step.reason, 300, ascii_only)
    return Text(("kept" if step.kept else "undone") + (f": {reason}" if reason else ""))


def _facts(report: Report, wide: bool, ascii_only: bool) -> Iterator[tuple[str, Text]]:
    """The lines below the table, each with its key; only what is known."""

    def line(text: str, style: str = "", limit: int = 400) -> Text:
        return Text(plain(text, limit, ascii_only), style=style)

    for budget in report.budgets:
        found = " ".join(part for part in (quantity(budget.found, budget.unit), budget_interval(budget)) if part)
        limit = quantity(budget.limit, budget.unit)
        asked = f"{budget.asked} = {limit}" if "%" in budget.asked else budget.asked
        reachable = f"; reachable: {budget.reachable}" if budget.reachable else ""
        verdict = Text(budget.verdict, style=_VERDICT_STYLE[budget.verdict])
        yield "budget", verdict + line(f": {budget.kind} at most {asked}, found {found}{reachable}")
    if not wide:
        for step in report.steps:
            if not step.kept:
                yield "undone", line(f"{step.label}: {step.reason or 'no reason given'}")
    for step in report.steps:
        shown = () if step.group else step.notes  # what a run of exact passes left alone is in the JSON and the page
        for note in _first(shown):
            yield "note", line(f"{step.label}: {note}")
        yield from _rest("note", len(shown))
    if report.score:
        yield "score", line(_score_line(report))
    if report.verify:
        yield "verify", line(_verify_line(report))
    for refusal in _first(report.refusals):
        yield "refused", line(f"{refusal.where}: {refusal.text} ({refusal.rule})", style="red")
    yield from _rest("refused", len(report.refusals))
    for build in report.builds:
        latency = f", {number(build.latency_ms.value)} ms {build.latency_ms.kind}" if build.latency_ms else ""
        primary = "" if build.primary else ", not bound by the budgets"
        yield (
            "build",
            line(f"{build.deployment}: exit code {build.exit_code}{latency}{primary}, see {build.report}"),
        )
    for file in report.artifacts:
        yield "artifact", line(f"{file.path}, {size(file.size_bytes)}, sha256 {file.sha256[:16]}")
    if report.pipeline or report.steps:
        yield "pipeline", line(report.pipeline or "(exact passes only)", limit=1000)
    for choice in _first(report.decisions):
        yield (
            "decided",
            line(f"{choice.key} = {short_json(choice.value)}" + (f": {choice.why}" if choice.why else "")),
        )
    yield from _rest("decided", len(report.decisions))
    for note in _first(report.notes):
        yield "note", line(note)
    yield from _rest("note", len(report.notes))


def _score_line(report: Report) -> str:
    score = report.score
    if score is None:
        return ""
    parts = [f"{score.metric} {_percent(score.artifact)} (teacher {_percent(score.teacher)})"]
    if score.low is not None and score.high is not None:
        parts.append(f"95 % interval {score.low:.2f}-{score.high:.2f}")
    parts.append(f"{score.kind} on {score.samples} samples")
    if score.certified is not None:
        parts.append("the budget is certified" if score.certified else "too few to certify the budget")
    return ", ".join(parts) + (f"; {score.note}" if score.note else "")


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} %"


def _verify_line(report: Report) -> str:
    found = report.verify
    if found is None:
        return ""
    if found.max_abs_error == 0:
        return f"{found.samples} samples: outputs equal to the teacher's, bit for bit"
    parts = [f"{found.samples} samples"]
    for name, value, unit in (
        ("largest error", found.max_abs_error, ""),
        ("mean error", found.mean_abs_error, ""),
        ("signal to noise", found.snr_db, " dB"),
    ):
        if value is not None:
            parts.append(f"{name} {value:.3g}{unit}")
    return ", ".join(parts + ([f"drifts first at {found.first_drift}"] if found.first_drift else []))


def _first(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
    return items[:_SHOWN]


def _rest(key: Literal["refused", "decided", "note"], count: int) -> Iterator[tuple[str, Text]]:
    if count > _SHOWN:
        yield key, Text(f"and {count - _SHOWN} more, all in report.json", style="dim")
