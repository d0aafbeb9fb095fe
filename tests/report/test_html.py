"""The page: well-formed, loads nothing, shows every name and number, escapes every foreign name."""

from __future__ import annotations

import dataclasses
import html
import re
from html.parser import HTMLParser

import pytest

from edgecompile.report import Decision, LayerDrift, Model, Refusal, Report, StepRow, Verify, render_html

_VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Tags with attributes and visible text; fails on a tag that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def check_isolated(text: str) -> Page:
    """No script, no handler, no reference but the empty icon, at most 300 kB."""
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "img", "object", "embed", "base", "form", "use", "image", "a"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"src", "srcset", "xlink:href", "style", "action"}, (tag, name)
            assert name != "href" or value == "data:,"
    assert not re.search(r"url\(|@import", text.split("</style>")[0])
    assert len(text.encode()) < 300_000
    return page


def test_the_page_is_well_formed_and_loads_nothing(report: Report) -> None:
    check_isolated(render_html(report))
    check_isolated(render_html(Report("0.1.0", Model("m"), "host", "host-cpu", "", 2)))


def test_the_same_report_gives_the_same_page(report: Report) -> None:
    assert render_html(report) == render_html(Report.from_json(report.to_json()))


def test_the_page_shows_every_name_and_number(report: Report) -> None:
    shown = Page(render_html(report)).text
    for wanted in (
        "PASS efficientnet_lite0 → host host-cpu, batch 1, 2 threads, exit code 0",
        "−54 % 4.10 ms [4.06, 4.14] measured teacher 8.92 ms measured",
        "−74 % 4.91 MB teacher 18.6 MB",
        "not certified 98.67 % [96.60, 99.60] measured, 300 samples teacher 100.00 % crops of 12 photographs",
        "27.3 dB signal to noise, 300 samples largest error 1.84, mean 0.112",
        "latency at most 60% pass limit 5.35 ms found 4.10 ms [4.06, 4.14]",
        "drop at most 2pp pass limit 2.00 pp found 1.33 pp [0.40, 3.40]",
        "size at most 5MB pass limit 5.00 MB found 4.91 MB",
        "teacher 8.92 [8.81, 9.03] measured 1.00 18.61 100.00",
        "fold_bn, fold_constants kept 8.30 [7.05, 9.96] predicted 0.88 18.39 100.00",
        "quantize kept 4.00 [3.40, 4.80] predicted 0.43 4.91 98.67",
        "prune undone: no gain on host: 3.98 ms against 4.00 ms, and 3.2 pp lost 3.98 [3.38, 4.78]",
        "artifact 4.10 [4.06, 4.14] measured 0.46 4.91 98.67",
        "Artifact over teacher: 0.46 [0.45, 0.47].",
        "blocks.0.project 45.0 dB blocks.1.project 39.0 dB blocks.2.project 33.0 dB blocks.3.project 27.0 dB",
        "The first that drifts is blocks.2.project.",
        "head.topk top-k over a dynamic axis EC-OP-001",
        "tvm not bound by the budgets 0 5.02 measured 5.00 98.50 tvm/report.json",
        "runtime onnxruntime 4.10 ms against 5.02 ms of TVM tvm_ms 5.02",
        "calibrated on 100 crops of 12 photographs",
        f"host/model.onnx onnx 4.91 MB {'9f' * 32}",
        f"pipeline {report.pipeline}",
        "4,652,008 parameters, 385,000,000 MACs",
        "image 1x3x224x224 float32",
        "image mean 0.498, 0.498, 0.498",
        "features avx2, fma",
        "onnxruntime 1.32.0",
    ):
        assert wanted in shown, wanted


def test_the_page_can_be_read_without_seeing_it(report: Report) -> None:
    tags = Page(render_html(report)).tags
    assert ("html", {"lang": "en"}) in tags
    assert [tag for tag, _ in tags].count("h1") == 1
    ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
    sections = [attributes["aria-labelledby"] for tag, attributes in tags if tag == "section"]
    assert set(sections) == ids
    assert len(ids) == len(sections)
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert all("aria-label" in a or a.get("aria-hidden") == "true" for tag, a in tags if tag == "svg")
    assert [tag for tag, _ in tags].count("figure") == [tag for tag, _ in tags].count("figcaption") == 6


def test_a_prediction_is_drawn_unlike_a_measurement(report: Report) -> None:
    bars = [a["class"] for tag, a in Page(render_html(report)).tags if tag == "rect" and a.get("height") == "12"]
    assert bars == ["total", "gain soft", "gain soft", "undone soft", "total"]


ATTACKS = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</style><b>",
    "<!--",
    "]]>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;",
    "a\u202egpj\x1b[31m\n\x00",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_foreign_names_stay_text(report: Report, attack: str) -> None:
    score = dataclasses.replace(report.score, metric=attack, note=attack) if report.score else None
    attacked = dataclasses.replace(
        report,
        model=Model(attack, attack),
        target=attack,
        device=attack,
        pipeline=attack,
        score=score,
        budgets=tuple(dataclasses.replace(budget, asked=attack, reachable=attack) for budget in report.budgets),
        inputs=tuple(dataclasses.replace(spec, name=attack, dtype=attack) for spec in report.inputs),
        artifacts=tuple(dataclasses.replace(file, path=attack, kind=attack) for file in report.artifacts),
        steps=(*report.steps, StepRow(attack, False, attack)),
        verify=Verify(3, 1.0, 0.1, 20.0, attack, (LayerDrift(attack, 3.0),)),
        refusals=(Refusal(attack, attack, attack),),
        decisions=(Decision(attack, attack, attack, {attack: attack}),),
        notes=(attack,),
        preprocessing={attack: attack},
        machine={attack: attack},
        versions={attack: attack},
        golden=attack,
        edgecompile=attack,
    )
    page = check_isolated(render_html(attacked))
    visible = "agpj" if "\x1b" in attack else attack
    assert page.text.count(visible) >= 30
    assert not {"\x1b", "\u202e", "\x00"} & set("".join(page.words))
    plain = Page(render_html(dataclasses.replace(report, refusals=report.refusals)))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}


def test_a_huge_report_stays_a_small_page(report: Report) -> None:
    long = "layer." * 50
    huge = dataclasses.replace(
        report,
        steps=report.steps * 30,
        notes=(long,) * 5000,
        decisions=tuple(Decision(f"{long}{i}", "8", "because") for i in range(5000)),
        verify=Verify(9, 1.0, 0.1, 20.0, None, tuple(LayerDrift(f"{long}{i}", 60 - i / 100) for i in range(3000))),
    )
    shown = check_isolated(render_html(huge)).text
    assert shown.count("and 4800 more, all in report.json") == 2
    assert "The 60 of 3000 layers that drift most." in shown


def test_a_notebook_shows_the_page_in_a_sandboxed_frame(report: Report) -> None:
    frame = report._repr_html_()
    page = Page(frame)
    ((tag, attributes),) = page.tags
    assert (tag, attributes["sandbox"]) == ("iframe", "")
    assert attributes["srcdoc"] == render_html(report)
    assert html.escape("<script>") not in frame


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_every_text_colour_stands_out_from_its_ground(report: Report, scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", render_html(report), re.S)
    assert len(blocks) == 3
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[scheme]))
    assert len(colours) == 15
    for text, ground in [
        *((text, ground) for text in ("ink", "muted", "good", "bad", "warn") for ground in ("page", "card")),
        *((text, f"{text}-tint") for text in ("good", "bad", "warn")),
    ]:
        light, dark = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
