"""report.json: the published schema, what it refuses, and that nothing is lost on the way back."""

from __future__ import annotations

import dataclasses
import json
import math
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest

from edgecompile.errors import InputError
from edgecompile.report import Figure, Model, Report, Rounds, StepRow, model
from edgecompile.report.json_form import json_schema

ISSUE_KEYS = {
    "target",
    "device",
    "pipeline",
    "exit_code",
    "artifacts",
    "latency_ms",
    "teacher_latency_ms",
    "score",
    "decisions",
    "steps",
    "versions",
}


def edited(report: Report, **fields: Any) -> str:
    return json.dumps(json.loads(report.to_json()) | fields)


def test_a_report_comes_back_equal_and_satisfies_the_schema(report: Report) -> None:
    text = report.to_json()
    assert Report.from_json(text) == report
    assert Report.from_json(text.encode()).to_json() == text
    body = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.Draft202012Validator(json_schema()).validate(body)
    assert set(body) >= ISSUE_KEYS
    assert body["steps"][0]["pass"] == "fold_bn"
    assert "pass_" not in text


def test_the_smallest_report_satisfies_the_schema() -> None:
    small = Report("0.1.0", Model("m"), "host", "host-cpu", "", 2)
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads(small.to_json()))
    assert Report.from_json(small.to_json()) == small


def test_the_schema_names_the_fields_of_the_dataclasses_and_no_others() -> None:
    schema = json_schema()
    for name, described in {**schema["$defs"], "Report": schema}.items():
        fields = [field.name.rstrip("_") for field in dataclasses.fields(getattr(model, name))]
        expected = (["schema_version"] if name == "Report" else []) + fields
        assert list(described["properties"]) == expected == described["required"], name


def test_every_dataclass_in_the_report_is_described() -> None:
    assert set(json_schema()["$defs"]) == {kind.__name__ for kind in _reachable(Report)} - {"Report"}


def _reachable(kind: Any) -> set[type]:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return {kind}.union(*(_reachable(hint) for hint in get_type_hints(kind).values()))
    nested = get_args(kind) if get_origin(kind) is tuple or isinstance(kind, UnionType) else ()
    return set().union(*(_reachable(part) for part in nested))


def test_the_schema_refuses_what_it_should(report: Report) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    for path, value in (
        (("latency_ms", "kind"), "simulated"),
        (("exit_code",), "0"),
        (("schema_version",), "2.0"),
        (("score", "metric"), None),
    ):
        body = json.loads(report.to_json())
        inner = body
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        assert not validator.is_valid(body), path
        body = json.loads(report.to_json())
        del body[path[0]]
        assert not validator.is_valid(body), path


def test_the_same_report_gives_the_same_bytes_whatever_the_order_of_its_mappings(report: Report) -> None:
    turned = dataclasses.replace(report, versions=dict(reversed(list(report.versions.items()))))
    assert turned.to_json() == report.to_json()
    assert report.to_json().isascii()


def test_numbers_that_are_not_finite_are_left_out_with_a_note(report: Report) -> None:
    odd = dataclasses.replace(
        report,
        latency_ms=Figure(math.nan, 1.0, 2.0),
        teacher_latency_ms=Figure(8.0, 7.0, math.inf, "predicted"),
        rounds=Rounds((1.0, math.nan), (2.0,)),
        steps=(StepRow("prune", seconds=-math.inf, stats={"gap": math.nan}),),
    )
    body = json.loads(odd.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert body["latency_ms"] is None
    assert body["teacher_latency_ms"] == {"value": 8.0, "low": 7.0, "high": None, "kind": "predicted"}
    assert body["rounds"] == {"teacher_ms": [1.0], "artifact_ms": [2.0]}
    assert body["notes"] == [
        "calibrated on 100 crops of 12 photographs",
        "latency_ms is not finite and was left out",
        "teacher_latency_ms.high is not finite and was left out",
        "rounds.teacher_ms is not finite and was left out",
        "steps[0].seconds is not finite and was left out",
        "steps[0].stats.gap is not finite and was left out",
    ]
    assert Report.from_json(odd.to_json()).to_json() == odd.to_json()


def test_numpy_scalars_are_written_as_numbers_and_tensors_are_a_bug(report: Report) -> None:
    step = StepRow("prune", stats={"kept": np.int64(3), "share": np.float32(0.5)})
    body = json.loads(dataclasses.replace(report, steps=(step,)).to_json())
    assert body["steps"][0]["stats"] == {"kept": 3, "share": 0.5}
    with pytest.raises(TypeError, match=r"report field machine\.x holds a ndarray, which JSON cannot"):
        dataclasses.replace(report, machine={"x": np.zeros(2)}).to_json()


def test_a_file_name_that_is_no_text_is_written_escaped(report: Report) -> None:
    named = dataclasses.replace(report, model=Model("net\udcff.onnx"))
    assert Report.from_json(named.to_json()).model.name == "net\\udcff.onnx"


def test_a_later_minor_version_is_read_and_its_new_fields_ignored(report: Report) -> None:
    assert Report.from_json(edited(report, schema_version="1.7", energy_mj=3)) == report


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.json: not a report of edgecompile: Input data was truncated"),
        ("[1]", "r.json: no schema_version; it was not written by `edgecompile build`"),
        ('{"schema_version": 1}', "r.json: no schema_version; it was not written by `edgecompile build`"),
        (
            '{"schema_version": "2.0"}',
            "r.json: schema_version '2.0' cannot be read (this edgecompile reads 1.x); rebuild it "
            "or use the edgecompile that wrote it",
        ),
        (
            '{"schema_version": "1.0"}',
            "r.json: not a report of edgecompile: Object missing required field `edgecompile`",
        ),
        ("[" * 100_000, "r.json: nested too deeply to be a report"),
        ('{"schema_version": "1.0", "steps": ' + "[" * 100_000, "r.json: nested too deeply to be a report"),
        ('{"x": NaN}', "r.json: not a report of edgecompile: JSON is malformed: invalid character (byte 6)"),
        (b'{"\xff": 1}', "r.json: not a report of edgecompile: "),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str | bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Report.from_json(text, "r.json")
    assert str(caught.value) == message or (text[:1] == b"{" and str(caught.value).startswith(message))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("exit_code", "0", "Expected `int`, got `str` - at `$.exit_code`"),
        ("steps", [3], "Expected `object`, got `int` - at `$.steps[0]`"),
        ("steps", "none", "Expected `array`, got `str` - at `$.steps`"),
        (
            "latency_ms",
            {"value": 1, "kind": "guessed"},
            "Invalid enum value 'guessed' - at `$.latency_ms.kind`",
        ),
    ],
)
def test_a_wrong_type_is_named_with_its_place(report: Report, field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Report.from_json(edited(report, **{field: value}))
    assert str(caught.value) == f"report.json: not a report of edgecompile: {message}"


def test_an_enormous_file_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InputError, match=r"64000001 bytes is over the limit of 64000000 for a report"):
        Report.from_json(b" " * 64_000_001)
