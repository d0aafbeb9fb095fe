"""Every option is a field once: as a keyword, as a flag, and as a key of edgecompile.toml."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompile.building.options import BESIDE, BuildOptions, deployment, options_from, read_toml
from edgecompile.cli.build import command, resolve
from edgecompile.errors import SpecError
from edgecompile.targets import DEPLOYMENTS

FIELDS = dataclasses.fields(BuildOptions)
SPECIAL: dict[str, Any] = {
    "golden": "synthetic",
    "max_latency": "60%",
    "max_drop": "1pp",
    "max_size": "30%",
    "tune": "20m",
    "train_budget": "10m",
    "preset": "fast",
}


def value_for(field: dataclasses.Field[Any]) -> Any:
    """A value of the field's type that is not its default."""
    kind = typing.get_type_hints(BuildOptions)[field.name]
    if field.name in SPECIAL:
        return SPECIAL[field.name]
    if kind is bool:
        return not field.default
    if kind is int or int in typing.get_args(kind):
        return 7
    return ("a", "b") if typing.get_origin(kind) is tuple else "some text"


def toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return "[" + ", ".join(map(toml, value)) + "]"
        case str():
            return f'"{value}"'
    return str(value)


def flag_of(field: dataclasses.Field[Any]) -> Any:
    """What typer is told: the words of the flag come first, where its default would be."""
    return inspect.signature(command()).parameters[field.name].annotation.__metadata__[0]


@pytest.mark.parametrize("kebab", [True, False])
@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_every_field_has_a_key(tmp_path: Path, field: dataclasses.Field[Any], kebab: bool) -> None:
    key = field.name.replace("_", "-") if kebab else field.name
    path = tmp_path / "edgecompile.toml"
    path.write_text(f'[build]\nmodel = "digits"\n{key} = {toml(value_for(field))}\n')
    model, options, _ = resolve({}, str(path))
    assert model == "digits"
    assert getattr(options, field.name) == value_for(field) != field.default
    others = [f for f in FIELDS if f.name != field.name]
    assert all(getattr(options, f.name) == f.default for f in others)


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_every_field_has_a_flag_that_overrides_its_key(tmp_path: Path, field: dataclasses.Field[Any]) -> None:
    path = tmp_path / "edgecompile.toml"
    path.write_text(f'[build]\nmodel = "digits"\n{field.name} = {toml(value_for(field))}\n')
    _, options, _ = resolve({"model": "minilm", field.name: field.default}, str(path))
    assert getattr(options, field.name) == field.default
    flag = flag_of(field)
    assert flag.default.split("/")[0] == "--" + field.name.replace("_", "-")
    assert flag.help.startswith(field.metadata["help"])


def test_a_switch_can_be_turned_off_again() -> None:
    for field in FIELDS:
        if field.type == "bool":
            assert flag_of(field).default.endswith(f"/--no-{field.name.replace('_', '-')}")


def test_what_is_shown_of_a_build_has_keys_too(tmp_path: Path) -> None:
    path = tmp_path / "edgecompile.toml"
    path.write_text('[build]\nmodel = "digits"\ndump = "texts"\nverbose = true\njson = true\n')
    assert resolve({}, str(path))[2] == {"model": "digits", "dump": "texts", "verbose": True, "json": True}
    assert resolve({"dump": "other"}, str(path))[2]["dump"] == "other"
    assert set(BESIDE) == {"model", "dump", "verbose", "json"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[build]\nsed = 1\n", "{path}:2: unknown key 'sed'; did you mean seed? (known: augment, batch, "),
        ("[build]\nseed = 1\nmax-latncy = '4ms'\n", "{path}:3: unknown key 'max_latncy'; did you mean max_latency?"),
        ("[build]\nbatch = 'four'\n", "{path}:2: build.batch: expected int, got 'four'"),
        ("[build]\n\nbatch = 0\n", "{path}:3: build: --batch 0: must be 1 or more"),
        ("[build]\nkeep-float = [1]\n", "{path}:2: build.keep_float[0]: expected str, got 1"),
        ("[build]\ngolden = 'date'\n", "{path}:2: build.golden: 'date' is not one of the choices; did you mean data?"),
        ("[build]\npreset = 'fst'\n", "{path}:2: build.preset: 'fst' is not one of the choices; did you mean fast?"),
        ("[build]\nmodel = 3\n", "{path}:2: build.model: expected str, got 3"),
        ("[build]\nout = 'a\\u0000b'\n".replace("'", '"'), "{path}:2: build: --out: holds a NUL character"),
        ("[build]\nseed = -1\n", "{path}:2: build: --seed -1: must lie between 0 and 2^63 - 1"),
        ("[built]\n", "{path}:1: unknown table 'built'; did you mean build? (known: build)"),
        ("build = 3\n", "{path}:1: unknown table 'build'; did you mean build? (known: build)"),
        ("[build\n", "{path}: not TOML: Expected ']' at the end of a table declaration (at line 1, column 7)"),
        ("[build]\nout = 'a'\nout = 'b'\n", "{path}: not TOML: Cannot overwrite a value (at line 3, column 10)"),
        ("", "build: no model: name one (edgecompile list shows them) or set model in edgecompile.toml"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "edgecompile.toml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        resolve({}, str(path))
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file or directory"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(SpecError, match="1000001 bytes, more than 1000000: not an"):
        read_toml(tmp_path / "big.toml")
    (tmp_path / "latin.toml").write_bytes(b"[build]\nout = '\xe9'\n")
    with pytest.raises(SpecError, match="not TOML: 'utf-8' codec"):
        read_toml(tmp_path / "latin.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(SpecError, match="not TOML"):
        read_toml(tmp_path / "deep.toml")


@settings(max_examples=200)
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda t: ("[build]\n" + t).encode("utf-8", "replace")))
def test_no_bytes_do_more_than_fail_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with contextlib.suppress(SpecError):
        resolve({}, str(path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threads": 0}, "--threads 0: must be 1 or more"),
        ({"threads": 5000}, "--threads 5000: more than 1024"),
        ({"batch": -3}, "--batch -3: must be 1 or more"),
        ({"seed": 2**63}, f"--seed {2**63}: must lie between 0 and 2^63 - 1"),
        ({"batch": True}, "build.batch: expected int, got True"),
        ({"out": None}, "build.out: expected str, got None"),
    ],
)
def test_values_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        options_from(values, "build")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_latency": "fast"}, "--max-latency 'fast': expected a time or a share of the teacher"),
        ({"max_latency": "0ms"}, "--max-latency '0ms'"),
        ({"max_latency": "p0:4ms"}, "the percentile must lie between 0 and 100"),
        ({"max_drop": "little"}, "--max-drop 'little': expected percent points of the score"),
        ({"max_size": "4"}, "--max-size '4': expected a size or a share of the teacher"),
    ],
)
def test_budgets_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match="--max") as caught:
        options_from(values, "build").budgets()
    assert message in str(caught.value)


@pytest.mark.runtimes
def test_deployments() -> None:
    (calls, device), *_ = deployment("host", None, DEPLOYMENTS)
    assert ([c.name for c in calls], device) == (["onnx", "tvm"], "host")
    (((call,), device),) = deployment("onnx(opset=18)@host", "mine.toml", DEPLOYMENTS)
    assert (call.name, dict(call.options), device) == ("onnx", {"opset": 18}, "mine.toml")
    with pytest.raises(SpecError, match=r"unknown deployment 'hots'; did you mean host\?"):
        deployment("hots", None, DEPLOYMENTS)
    with pytest.raises(SpecError, match="expected one artifact"):
        deployment("onnx, onnx@host", None, DEPLOYMENTS)
