"""Two reports side by side: what differs in latency, size, score, pipeline and decisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgecompile.report.model import Figure, Report
from edgecompile.report.plain import change, interval, number, plain, short_json, size
from edgecompile.report.text import ASCII_HEAD


@dataclass(frozen=True)
class Difference:
    """One thing of two reports: its text in each and, where the two differ, what that means."""

    what: str
    a: str
    b: str
    change: str = ""


def differences(a: Report, b: Report) -> tuple[Difference, ...]:
    """Latency, size and score always; everything else only where it differs."""
    rows = [
        Difference("latency", _time(a.latency_ms), _time(b.latency_ms), _latency_change(a.latency_ms, b.latency_ms)),
        _size_row("size", a.size_bytes, b.size_bytes),
        _score_row(a, b),
        *_differing(a, b),
        *_decisions(a, b),
        *_steps(a, b),
        *_versions(a, b),
    ]
    return tuple(row for row in rows if row.a or row.b)


def caveats(a: Report, b: Report) -> tuple[str, ...]:
    """What a reader must know before trusting the comparison."""
    found = []
    if a.latency_ms and b.latency_ms:
        if a.latency_ms.kind != b.latency_ms.kind:
            found.append(f"A's latency is {a.latency_ms.kind}, B's is {b.latency_ms.kind}: they do not compare")
        elif a.latency_ms.kind == "measured":
            found.append("the latencies are of two runs; only rounds taken side by side can prove a difference")
    if a.machine != b.machine:
        found.append("the builds ran on machines that differ")
    if a.score and b.score and (a.score.metric, a.score.samples) != (b.score.metric, b.score.samples):
        found.append("the scores are of different metrics or samples")
    return tuple(found)


def render_comparison(a: Report, b: Report, console: Console) -> None:
    """Print `differences` as a table and `caveats` below it."""
    ascii_only = console.options.ascii_only
    table = Table(box=ASCII_HEAD if ascii_only else SIMPLE_HEAD, safe_box=False, padding=(0, 0, 0, 1))
    table.add_column("", style="bold", overflow="fold")
    for heading in ("A", "B", "change"):
        table.add_column(heading, overflow="fold")
    for row in differences(a, b):
        table.add_row(*(Text(plain(cell, 300, ascii_only)) for cell in (row.what, row.a, row.b, row.change)))
    console.print(table)
    notes = Table.grid(padding=(0, 2))
    notes.add_column(style="bold", no_wrap=True)
    notes.add_column(overflow="fold")
    for caveat in caveats(a, b):
        notes.add_row("note", Text(plain(caveat, 300, ascii_only)))
    console.print(Padding(notes, (0, 0, 0, 1)))


def _time(latency: Figure | None) -> str:
    if latency is None:
        return "unknown"
    parts = (number(latency.value), "ms", interval(latency, latency.value), latency.kind)
    return " ".join(part for part in parts if part)


def _latency_change(a: Figure | None, b: Figure | None) -> str:
    if a is None or b is None or a.value <= 0 or a.kind != b.kind:
        return ""
    shift = change(b.value / a.value)
    bounds = (a.low, a.high, b.low, b.high)
    if None in bounds:
        return shift
    apart = (a.high or 0) < (b.low or 0) or (b.high or 0) < (a.low or 0)
    return shift if apart else f"{shift}, intervals overlap"


def _size_row(what: str, a: int | None, b: int | None) -> Difference:
    shift = change(b / a) if a and b is not None and a != b else ""
    return Difference(what, size(a) or "unknown", size(b) or "unknown", shift)


def _score_row(a: Report, b: Report) -> Difference:
    ours, theirs = (report.score.artifact if report.score else None for report in (a, b))
    shift = ""
    if (
        ours is not None
        and theirs is not None
        and ours != theirs
        and a.score
        and b.score
        and a.score.metric == b.score.metric
    ):
        shift = f"{theirs - ours:+.2f} pp"
    return Difference("score", _score(a), _score(b), shift)


def _score(report: Report) -> str:
    score = report.score
    return "unknown" if score is None or score.artifact is None else f"{score.artifact:.2f} % {score.metric}"


def _differing(a: Report, b: Report) -> Iterator[Difference]:
    for what, ours, theirs in (
        ("verdict", a.verdict, b.verdict),
        ("model", f"{a.model.name} {a.model.hash[:12]}", f"{b.model.name} {b.model.hash[:12]}"),
        ("target", a.target, b.target),
        ("device", a.device, b.device),
        ("batch", str(a.batch), str(b.batch)),
        ("threads", str(a.threads), str(b.threads)),
        ("seed", str(a.seed), str(b.seed)),
        ("pipeline", a.pipeline or "(exact passes only)", b.pipeline or "(exact passes only)"),
        ("preprocessing", short_json(dict(a.preprocessing)), short_json(dict(b.preprocessing))),
    ):
        if ours != theirs:
            yield Difference(what, ours, theirs)


def _decisions(a: Report, b: Report) -> Iterator[Difference]:
    ours, theirs = ({choice.key: choice.value for choice in report.decisions} for report in (a, b))
    yield from _changed("decided ", ours, theirs)


def _steps(a: Report, b: Report) -> Iterator[Difference]:
    ours, theirs = (
        {step.label: "kept" if step.kept else f"undone: {step.reason}" for step in report.steps} for report in (a, b)
    )
    yield from _changed("pass ", ours, theirs)


def _versions(a: Report, b: Report) -> Iterator[Difference]:
    yield from _changed("", dict(a.versions), dict(b.versions))
    if a.edgecompile != b.edgecompile:
        yield Difference("edgecompile", a.edgecompile, b.edgecompile)


def _changed(prefix: str, a: dict[str, str], b: dict[str, str]) -> Iterator[Difference]:
    for key in dict.fromkeys([*a, *b]):
        if a.get(key) != b.get(key):
            yield Difference(prefix + key, a.get(key, "absent"), b.get(key, "absent"))
