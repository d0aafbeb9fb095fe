"""spec: text to calls and back, option checking, budgets."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompile.errors import SpecError
from edgecompile.spec import (
    Call,
    checked,
    make,
    options_of,
    parse_calls,
    parse_drop,
    parse_latency,
    parse_size,
    show_calls,
)

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda s: s not in ("if", "in", "is", "or", "as", "not", "for")
)
SCALARS = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text(max_size=12),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
CALLS = st.lists(st.builds(Call, NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=4)


@given(CALLS)
def test_text_and_back(calls: list[Call]) -> None:
    """What is shown is read back to the same calls: type and value of each option."""
    back = parse_calls(show_calls(calls))
    assert [(c.name, dict(c.options)) for c in back] == [(c.name, dict(c.options)) for c in calls]
    assert [[type(v) for v in c.options.values()] for c in back] == [
        [type(v) for v in c.options.values()] for c in calls
    ]


@given(st.text(max_size=60))
def test_any_text_gives_calls_or_a_spec_error(text: str) -> None:
    """No text gives another error than SpecError."""
    with contextlib.suppress(SpecError):
        assert isinstance(parse_calls(text), list)


def test_bare_words_lines_and_comments() -> None:
    text = """fold_bn,  # first
    quantize(weights=int8, keep_float=("head.*",)),"""
    assert parse_calls(text) == [
        Call("fold_bn", {}, 0),
        Call("quantize", {"weights": "int8", "keep_float": ("head.*",)}, 4),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a(1)", "pipeline: a: options need names, a(option=value)"),
        ("a(x=f())", "pipeline: a.x: 'f()' is not a constant; use a word, number, string or tuple"),
        ("a(x=1, **y)", "pipeline: a: option ** given twice or as **; name each option once"),
        ("a, 1", "pipeline: expected a word or word(option=value) at character 4, got '1'"),
        ("a.b", "pipeline: expected a word or word(option=value) at character 1, got 'a.b'"),
    ],
)
def test_pipeline_errors(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_calls(text)
    assert str(caught.value) == message


def test_an_error_quotes_the_beginning_of_a_long_value_in_one_line() -> None:
    with pytest.raises(SpecError) as caught:
        make(Options, {"ratio": "a line\n" * 1000}, "prune")
    assert str(caught.value).startswith("prune.ratio: expected float, got str 'a line")
    assert len(str(caught.value)) < 200


def test_nothing_is_run() -> None:
    """Calls inside options are refused, not evaluated."""
    with pytest.raises(SpecError):
        parse_calls("a(x=__import__('os').system('true'))")


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Options:
    """Stands for a pass, a target and a profile."""

    ratio: float
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    pair: tuple[int, int] = (1, 2)
    maybe: int | None = None
    flag: bool = False
    inner: Inner = field(default_factory=Inner)


def test_options_are_checked_and_shown_where_they_differ() -> None:
    made = make(Options, {"ratio": 1, "names": "x", "inner": {"size": 3}, "maybe": None}, "prune")
    assert made == Options(1.0, names=("x",), inner=Inner(3))
    assert isinstance(made.ratio, float)
    assert options_of(made) == {"ratio": 1.0, "names": ("x",), "inner": Inner(3)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ration": 0.3},
            "prune: unknown option 'ration'; did you mean ratio? (known: flag, inner, kind, maybe, names, pair, ratio)",
        ),
        ({}, "prune: needs ratio"),
        ({"ratio": "x"}, "prune.ratio: expected float, got 'x'"),
        ({"ratio": True}, "prune.ratio: expected float, got True"),
        ({"ratio": 1, "kind": "c"}, "prune.kind: 'c' is not one of the choices (known: a, b)"),
        ({"ratio": 1, "flag": 1}, "prune.flag: expected bool, got 1"),
        ({"ratio": 1, "maybe": 1.5}, "prune.maybe: expected int | None, got 1.5"),
        ({"ratio": 1, "pair": (1,)}, "prune.pair: expected 2 values, got 1"),
        ({"ratio": 1, "names": (1,)}, "prune.names[0]: expected str, got 1"),
        ({"ratio": 1, "inner": {"sized": 1}}, "prune.inner: unknown option 'sized'; did you mean size? (known: size)"),
    ],
)
def test_option_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make(Options, options, "prune")
    assert str(caught.value) == message


def test_true_is_not_the_number_one() -> None:
    with pytest.raises(SpecError):
        checked(True, Literal[1], "x")
    assert checked(1, Literal[1], "x") == 1


def test_latency_budgets() -> None:
    assert (parse_latency("4ms").ms, parse_latency("250us").ms, parse_latency("1.5 s").ms) == (4.0, 0.25, 1500.0)
    share = parse_latency("60%")
    assert (share.ms, share.percent, share.quantile) == (None, 60.0, 0.5)
    assert parse_latency("p99:4ms").quantile == 0.99
    for text in ("4", "ms", "-4ms", "0ms", "p0:4ms", "4 m", "p99", ""):
        with pytest.raises(SpecError, match="--max-latency"):
            parse_latency(text)


def test_drop_and_size_budgets() -> None:
    assert (parse_drop("1pp"), parse_drop("0.5%"), parse_drop("0pp")) == (1.0, 0.5, 0.0)
    assert (parse_size("4MB"), parse_size("512KiB"), parse_size("30%")) == (
        (4_000_000, None),
        (524_288, None),
        (None, 30.0),
    )
    for text in ("1", "pp", "-1pp"):
        with pytest.raises(SpecError, match="--max-drop"):
            parse_drop(text)
    for text in ("4", "4mb", "0MB", "x%"):
        with pytest.raises(SpecError, match="--max-size"):
            parse_size(text)
