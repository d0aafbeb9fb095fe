"""Two reports side by side."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console

from edgecompile.report import (
    Decision,
    Difference,
    Figure,
    Model,
    Report,
    StepRow,
    differences,
    render_comparison,
)
from edgecompile.report.compare import caveats


def test_a_report_does_not_differ_from_itself(report: Report) -> None:
    rows = differences(report, report)
    assert [row.what for row in rows] == ["latency", "size", "score"]
    assert all(row.a == row.b for row in rows)
    assert rows[0] == Difference(
        "latency",
        "4.10 ms [4.06, 4.14] measured",
        "4.10 ms [4.06, 4.14] measured",
        "+0.0 %, intervals overlap",
    )
    assert rows[1].change == rows[2].change == ""


def test_every_difference_is_listed_with_its_size(report: Report) -> None:
    other = dataclasses.replace(
        report,
        latency_ms=Figure(3.28, 3.2, 3.3),
        size_bytes=4_420_000,
        score=dataclasses.replace(report.score, artifact=97.0) if report.score else None,
        pipeline="fold_bn",
        exit_code=4,
        decisions=(Decision("runtime", "tvm"), Decision("rounds", "60")),
        steps=(*report.steps[:2], StepRow("prune", True)),
        versions={**report.versions, "onnxruntime": "1.33.0"},
        edgecompile="0.2.0",
    )
    prune = "undone: no gain on host: 3.98 ms against 4.00 ms, and 3.2 pp lost"
    assert [(row.what, row.a, row.b, row.change) for row in differences(report, other)] == [
        ("latency", "4.10 ms [4.06, 4.14] measured", "3.28 ms [3.20, 3.30] measured", "-20 %"),
        ("size", "4.91 MB", "4.42 MB", "-10 %"),
        ("score", "98.67 % agreement", "97.00 % agreement", "-1.67 pp"),
        ("verdict", "PASS", "ACCURACY MISSED", ""),
        ("pipeline", report.pipeline, "fold_bn", ""),
        ("decided runtime", "onnxruntime", "tvm", ""),
        ("decided rounds", "absent", "60", ""),
        ("pass prune", prune, "kept", ""),
        ("onnxruntime", "1.32.0", "1.33.0", ""),
        ("edgecompile", "0.1.0", "0.2.0", ""),
    ]


def test_what_cannot_be_compared_is_said(report: Report) -> None:
    guess = Figure(4.0, 3.5, 4.5, "predicted")
    other = dataclasses.replace(report, latency_ms=guess, machine={"processor": "other"})
    assert differences(report, other)[0].change == ""
    assert caveats(report, other) == (
        "A's latency is measured, B's is predicted: they do not compare",
        "the builds ran on machines that differ",
    )
    other = dataclasses.replace(report, score=dataclasses.replace(report.score, samples=20) if report.score else None)
    assert caveats(report, other) == (
        "the latencies are of two runs; only rounds taken side by side can prove a difference",
        "the scores are of different metrics or samples",
    )


def test_reports_of_failed_builds_compare_too(report: Report) -> None:
    failed = Report("0.1.0", Model("m"), "host", "host-cpu", "", 2)
    assert [(row.a, row.b) for row in differences(failed, report)][:3] == [
        ("unknown", "4.10 ms [4.06, 4.14] measured"),
        ("unknown", "4.91 MB"),
        ("unknown", "98.67 % agreement"),
    ]
    assert caveats(failed, failed) == ()


def test_the_table_fits_and_holds_foreign_names_as_text(report: Report) -> None:
    other = dataclasses.replace(report, pipeline="[red]\x1b[2J", decisions=(Decision("a\u202eb[/]", "x"),))
    file = io.StringIO()
    render_comparison(report, other, Console(file=file, width=80))
    text = file.getvalue()
    assert "[red]" in text
    assert "decided ab[/]" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert max(map(len, text.splitlines())) <= 80
