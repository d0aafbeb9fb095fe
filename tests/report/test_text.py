"""The terminal table: its exact text at 80 columns, other terminals, names that attack them."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from edgecompile.report import Budget, Figure, Model, Report, StepRow, render
from edgecompile.report.plain import change, plain, short_json, size


def printed(report: Report, width: int = 80, encoding: str = "utf-8", **options: object) -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    render(report, Console(file=file, width=width, **options))  # type: ignore[arg-type]
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()


def test_the_report_at_80_columns(report: Report) -> None:
    assert (
        "\n".join(line.rstrip() for line in printed(report))
        == """\
PASS  efficientnet_lite0 → host  4.10 ms (teacher 8.92 ms)  -54 %
device host-cpu, batch 1, 2 threads; image 1x3x224x224 float32; exit code 0

  step                      ms   interval  figure     ratio     MB  agreement %
 ──────────────────────────────────────────────────────────────────────────────
  teacher                 8.92  8.81-9.03  measured    1.00  18.61       100.00
  fold_bn,                8.30  7.05-9.96  predicted   0.88  18.39       100.00
  fold_constants
  quantize                4.00  3.40-4.80  predicted   0.43   4.91        98.67
  prune (undone)          3.98  3.38-4.78  predicted   0.42   4.10        95.40
  artifact                4.10  4.06-4.14  measured    0.46   4.91        98.67

 budget    pass: latency at most 60% = 5.35 ms, found 4.10 ms [4.06, 4.14]
 budget    pass: drop at most 2pp, found 1.33 pp [0.40, 3.40]
 budget    pass: size at most 5MB, found 4.91 MB
 undone    prune: no gain on host: 3.98 ms against 4.00 ms, and 3.2 pp lost
 score     agreement 98.67 % (teacher 100.00 %), 95 % interval 96.60-99.60,
           measured on 300 samples, too few to certify the budget; crops of 12
           photographs
 verify    300 samples, largest error 1.84, mean error 0.112, signal to noise
           27.3 dB, drifts first at blocks.2.project
 refused   head.topk: top-k over a dynamic axis (EC-OP-001)
 build     tvm: exit code 0, 5.02 ms measured, not bound by the budgets, see
           tvm/report.json
 artifact  host/model.onnx, 4.91 MB, sha256 9f9f9f9f9f9f9f9f
 pipeline  fold_bn, fold_constants, quantize(weights=int8), prune(ratio=0.2)
 decided   runtime = onnxruntime: 4.10 ms against 5.02 ms of TVM
 note      calibrated on 100 crops of 12 photographs"""
    )


def test_at_120_columns_each_step_says_its_outcome_in_its_row(report: Report) -> None:
    lines = printed(report, 120)
    prune = next(index for index, line in enumerate(lines) if line.startswith("  prune"))
    assert "3.98  3.38-4.78  predicted   0.42   4.10        95.40  undone: no gain on host" in lines[prune]
    assert not any(line.startswith(" undone") for line in lines)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(report: Report, width: int) -> None:
    lines = printed(report, width)
    assert max(cell_len(line) for line in lines) <= width
    assert not any("…" in line for line in lines if width >= 80), "a cell was cut"


def test_an_ascii_terminal_gets_ascii_alone(report: Report) -> None:
    foreign = dataclasses.replace(report, model=Model("réseau→1"), notes=("größer",))
    lines = printed(foreign, encoding="ascii")
    assert lines[0] == r"PASS  r\xe9seau\u21921 -> host  4.10 ms (teacher 8.92 ms)  -54 %"
    assert r" note      gr\xf6\xdfer" in [line.rstrip() for line in lines]


def test_without_colour_when_told_so_and_when_not_a_terminal(report: Report) -> None:
    assert not any("\x1b" in line for line in printed(report))
    assert any("\x1b[1;32mPASS" in line for line in printed(report, force_terminal=True, color_system="standard"))
    plain_lines = printed(report, force_terminal=True, no_color=True)
    assert not any("32m" in line for line in plain_lines)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"NO_COLOR": "1"}])
def test_in_a_process_of_its_own(report: Report, environment: dict[str, str], tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "report.json")
    with open(path, "w") as file:
        file.write(report.to_json())
    code = (
        "import sys; from rich.console import Console; from edgecompile.report import Report, render;"
        "render(Report.from_json(open(sys.argv[1]).read()), Console())"
    )
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        env=inherited | {"PYTHONCOERCECLOCALE": "0"} | environment,
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout
    assert done.stdout.isascii() == ("LC_ALL" in environment)
    assert b"4.10  4.06-4.14  measured    0.46" in done.stdout
    assert max(len(line) for line in done.stdout.decode().splitlines()) <= 80


def test_a_missed_budget_says_what_was_reachable_and_a_prediction_says_that_it_is_one(report: Report) -> None:
    missed = dataclasses.replace(
        report,
        exit_code=3,
        latency_ms=Figure(4.1, 3.5, 4.9, "predicted"),
        latency_ratio=None,
        budgets=(Budget("latency", "3ms", 3.0, "ms", 4.1, "miss", 3.5, 4.9, "3.80 ms with prune(ratio=0.4)"),),
    )
    lines = [line.rstrip() for line in printed(missed)]
    # Measured against predicted is no ratio, so there is no percentage.
    assert lines[0] == "LATENCY MISSED  efficientnet_lite0 → host  4.10 ms predicted (teacher 8.92 ms)"
    shown = " budget    miss: latency at most 3ms, found 4.10 ms [3.50, 4.90]; reachable: 3.80 ms with"
    assert " ".join(" ".join(lines).split()).count(" ".join(shown.split()) + " prune(ratio=0.4)") == 1


def test_a_build_that_never_began_still_prints(report: Report) -> None:
    refused = Report("0.1.0", Model("m.onnx"), "host", "host-cpu", "", 8, refusals=report.refusals)
    assert [line.rstrip() for line in printed(refused)] == [
        "REFUSED  m.onnx → host",
        "device host-cpu, batch 1; exit code 8",
        "",
        " refused  head.topk: top-k over a dynamic axis (EC-OP-001)",
    ]


def test_long_lists_are_counted(report: Report) -> None:
    many = dataclasses.replace(report, notes=tuple(f"note {index}" for index in range(500)))
    lines = [line.strip() for line in printed(many)]
    assert "note      and 488 more, all in report.json" in lines
    assert len(lines) < 60


def test_a_long_group_of_passes_is_named_by_its_ends(report: Report) -> None:
    step = StepRow("fold_bn", group=("fold_bn", "fold_constants", "remove_identities", "cancel_transposes"))
    lines = printed(dataclasses.replace(report, steps=(step,)), 120)
    assert any(line.strip().startswith("fold_bn to") for line in lines)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("[bold red]x[/]", "[bold red]x[/]"),
        ("[/]", "[/]"),
        (":smile:", ":smile:"),
        ("a\nb\r\nc", "a b c"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;https://example.org\x07link\x1b]8;;\x07", "link"),
        ("\x9b2Jgone", "gone"),
        ("\x1b\x07x", "x"),
        ("a\u202egpj.exe", "agpj.exe"),
        ("zero\u200bwidth\u2066", "zerowidth"),
        ("line\u2028break", "line break"),
        ("\udcff", ""),
    ],
)
def test_foreign_names_are_text_and_nothing_else(report: Report, name: str, shown: str) -> None:
    assert plain(name) == shown
    attacked = dataclasses.replace(
        report,
        model=Model(f"<{name}>"),
        notes=(f"<{name}>",),
        steps=(StepRow(f"<{name}>", False, f"<{name}>"),),
        score=dataclasses.replace(report.score, metric=name) if report.score else None,
    )
    lines = printed(attacked, 120)
    wanted = "<\\udcff>" if name == "\udcff" else f"<{shown}>"  # JSON escapes what is no text
    assert sum(wanted in line for line in lines) >= 3
    assert not {"\x1b", "\x9b", "\u202e", "\u200b", "\u2028"} & set("".join(lines))


def test_a_name_of_a_megabyte_keeps_its_ends() -> None:
    shown = plain("begin" + "x" * 1_000_000 + "end", 40)
    assert shown.startswith("beginx")
    assert shown.endswith("xend")
    assert len(shown) == 40
    assert plain("e" * 50, 20, ascii_only=True) == "eeeeeeeee...eeeeeeee"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (812, "812 B"), (13_400, "13.4 kB"), (4_900_000, "4.90 MB"), (2_100_000_000, "2.10 GB")],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text


def test_changes_and_free_values() -> None:
    assert [change(ratio) for ratio in (0.46, 1.0, 1.004, 0.905, 2.5)] == [
        "-54 %",
        "+0.0 %",
        "+0.4 %",
        "-9.5 %",
        "+150 %",
    ]
    assert short_json({"a": [1, 0.25], "b": "x\ny"}) == "a 1, 0.25, b x y"
