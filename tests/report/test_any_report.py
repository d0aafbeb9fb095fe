"""Whatever a build reports, its JSON is valid and reads back, and terminal and page stay sound."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from edgecompile.report import Report, render, render_comparison, render_html
from edgecompile.report.json_form import json_schema

ATTACKS = (
    "</script><b>",
    "[red]",
    "[/]",
    "\x1b[2J",
    "a\u202eb",
    '"><i',
    "{{ 1 }}",
    "layer." * 60,
    "日本" * 60,
)
TEXTS = st.one_of(st.text(st.characters(exclude_categories=()), max_size=8), st.sampled_from(ATTACKS))
FLOATS = st.one_of(st.floats(), st.floats(0, 100))
FREE = st.dictionaries(TEXTS, st.one_of(TEXTS, FLOATS, st.booleans(), st.lists(FLOATS, max_size=2)), max_size=2)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field of this type, at the edges of what the type allows."""
    arguments = get_args(hint)
    match get_origin(hint) or hint:
        case kind if kind is Literal:
            return st.sampled_from(arguments)
        case kind if kind is UnionType:
            return st.one_of(*map(values, arguments))
        case kind if kind is tuple:
            return st.lists(values(arguments[0]), max_size=3).map(tuple)
        case kind if kind is Mapping:
            return FREE if arguments[1] is Any else st.dictionaries(TEXTS, TEXTS, max_size=2)
        case type() as kind if dataclasses.is_dataclass(kind):
            hints = get_type_hints(kind).items()
            positive = st.integers(1, 64)
            return st.builds(kind, **{k: positive if k in ("batch", "threads") else values(h) for k, h in hints})
    simple = {str: TEXTS, float: FLOATS, int: st.integers(0, 255), bool: st.booleans(), NoneType: st.none()}
    return simple[hint]


REPORTS = values(Report)
quick = settings(
    max_examples=60,
    derandomize=True,
    phases=[Phase.generate],  # a report is so big that shrinking one takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@quick
@given(REPORTS)
def test_the_json_satisfies_the_schema_and_reads_back(report: Report) -> None:
    text = report.to_json()
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads(text))
    assert Report.from_json(text).to_json() == text


@quick
@given(REPORTS, st.sampled_from(["utf-8", "ascii"]), st.sampled_from([80, 120]))
def test_the_terminal_is_never_attacked_nor_overrun(report: Report, encoding: str, width: int) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, width=width)
    render(report, console)
    render_comparison(report, dataclasses.replace(report, pipeline="x", exit_code=1), console)
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069]", text)
    assert max(cell_len(line) for line in text.split("\n")) <= width
    assert report.verdict in text


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not any(name.startswith("on") or name == "src" for name, _ in attrs)
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"rect", "line", "circle"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@quick
@given(REPORTS)
@pytest.mark.slow
def test_the_page_is_well_formed_and_holds_no_foreign_tag(report: Report) -> None:
    page = render_html(report)
    tags = Tags(page)
    assert tags.open == []
    assert not {"script", "b", "i", "img", "iframe"} & tags.seen
    assert "nan%" not in page
    assert "inf%" not in page
    assert render_html(report) == page
