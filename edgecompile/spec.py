"""Text and tables to frozen dataclasses, and back; the one place that checks options.

Pipeline text is a Python call list, `fold_bn, quantize(weights=int8, keep_float=("head.*",))`: bare words are strings,
everything else is a Python literal. It is read with `ast` and never evaluated.
"""

from __future__ import annotations

import ast
import dataclasses
import keyword
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from edgecompile.errors import SpecError, near

T = TypeVar("T")
_MAX_TEXT = 20_000


@dataclass(frozen=True)
class Call:
    """One word of a pipeline with its options, and where it stood in the text (0-based)."""

    name: str
    options: Mapping[str, Any]
    column: int = 0


def parse_calls(text: str, what: str = "pipeline") -> list[Call]:
    """`a, b(x=1)` as calls; raises `SpecError` that points at the place."""
    if len(text) > _MAX_TEXT:
        raise SpecError(f"{what}: {len(text)} characters, more than {_MAX_TEXT}: not a pipeline")
    if not text.strip():
        return []
    try:
        tree = ast.parse(f"[\n{text}\n]", mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        column = getattr(error, "offset", None) or 1
        message = getattr(error, "msg", str(error))
        raise SpecError(
            f"{what}: {message} at character {column}: {text.strip()!r}; write it as a, b(option=value)"
        ) from None
    return [_call(item, what) for item in cast(ast.List, tree.body).elts]


def _call(item: ast.expr, what: str) -> Call:
    column = item.col_offset
    match item:
        case ast.Name(id=name):
            return Call(name, {}, column)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            options: dict[str, Any] = {}
            for word in keywords:
                if word.arg is None or word.arg in options:
                    raise SpecError(
                        f"{what}: {name}: option {word.arg or '**'} given twice or as **; name each option once"
                    )
                options[word.arg] = _value(word.value, f"{what}: {name}.{word.arg}")
            return Call(name, options, column)
        case ast.Call(func=ast.Name(id=name)):
            raise SpecError(f"{what}: {name}: options need names, {name}(option=value)")
    raise SpecError(
        f"{what}: expected a word or word(option=value) at character {column + 1}, got {ast.unparse(item)!r}"
    )


def _value(item: ast.expr, where: str) -> Any:
    match item:
        case ast.Name(id=word):
            return word
        case ast.Tuple(elts=elts) | ast.List(elts=elts):
            return tuple(_value(e, where) for e in elts)
    try:
        return ast.literal_eval(item)
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise SpecError(
            f"{where}: {ast.unparse(item)!r} is not a constant; use a word, number, string or tuple"
        ) from None


def show_calls(calls: Iterable[Call]) -> str:
    """The text that `parse_calls` reads back to the same calls."""
    return ", ".join(
        call.name + (f"({', '.join(f'{k}={_show(v)}' for k, v in call.options.items())})" if call.options else "")
        for call in calls
    )


def _show(value: Any) -> str:
    if isinstance(value, str) and value.isidentifier() and value.isascii() and not keyword.iskeyword(value):
        return value
    if isinstance(value, tuple):
        return "(" + "".join(f"{_show(v)}, " for v in value).rstrip(" " if len(value) == 1 else ", ") + ")"
    return repr(value)


def make(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from options: names, types and choices are checked; `where` begins each error line."""
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls)) if f.init}
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in fields:
            raise SpecError(f"{where}: unknown option {name!r}{near(name, fields)}")
        values[name] = checked(value, hints[name], f"{where}.{name}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SpecError(f"{where}: needs {', '.join(missing)}")
    try:
        return cls(**values)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def options_of(value: Any) -> dict[str, Any]:
    """The options of a dataclass that differ from their defaults: what its text form shows."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        actual = getattr(value, f.name)
        if f.init and (type(actual) is not type(default) or actual != default):
            found[f.name] = actual
    return found


def checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` wants it, else a one-line `SpecError`. An int passes for a float, nothing else."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != any(
            isinstance(a, bool) and a == value for a in arguments
        ):
            raise SpecError(f"{where}: {value!r} is not one of the choices{near(str(value), map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        tables = [a for a in arguments if dataclasses.is_dataclass(a)] if isinstance(value, Mapping) else []
        if len(tables) == 1:  # what is wrong inside says more than that none of the types fits
            return checked(value, tables[0], where)
        for option in arguments:
            try:
                return checked(value, option, where)
            except SpecError:
                continue
        words = [a for a in arguments if typing.get_origin(a) is Literal]
        if isinstance(value, str) and len(words) == 1 and str not in arguments:
            return checked(value, words[0], where)  # which names the choices
        raise _mismatch(where, hint, value)
    if origin is tuple:
        if isinstance(value, (str, int, float)) and len(arguments) == 2 and arguments[1] is Ellipsis:
            value = (value,)
        if not isinstance(value, (tuple, list)):
            raise _mismatch(where, hint, value)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(checked(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise SpecError(f"{where}: expected {len(arguments)} values, got {len(value)}")
        return tuple(checked(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise _mismatch(where, hint, value)
        return {checked(k, arguments[0], where): checked(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return make(hint, value, where)
    if hint is None or hint is type(None):
        if value is not None:
            raise _mismatch(where, hint, value)
        return None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _mismatch(where, hint, value)
    return value


def _mismatch(where: str, hint: Any, value: Any) -> SpecError:
    name = getattr(hint, "__name__", None) if typing.get_origin(hint) is None else None
    shown = " ".join(repr(value).split())
    if len(shown) > _SHOWN:
        shown = f"{type(value).__name__} {shown[:_SHOWN]}..."
    return SpecError(f"{where}: expected {name or str(hint).replace('typing.', '')}, got {shown}")


_SHOWN = 120
"""Letters of a value that an error quotes."""
_DURATION_MS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
_SIZE_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Latency:
    """`4ms`, `p99:4ms` or `60%` of the teacher: one of `ms` and `percent` is set."""

    text: str
    ms: float | None
    percent: float | None
    quantile: float = 0.5


def parse_latency(text: str) -> Latency:
    """A latency budget; raises `SpecError`."""
    match = re.fullmatch(r"\s*(?:p(\d{1,2}(?:\.\d+)?):)?\s*(\d+(?:\.\d+)?)\s*(ns|us|ms|s|%)\s*", text)
    if not match or float(match[2]) <= 0:
        raise SpecError(
            f"--max-latency {text!r}: expected a time or a share of the teacher, such as 4ms, p99:4ms or 60%"
        )
    quantile = float(match[1]) / 100 if match[1] else 0.5
    if not 0 < quantile < 1:
        raise SpecError(f"--max-latency {text!r}: the percentile must lie between 0 and 100, such as p99:4ms")
    number = float(match[2])
    if match[3] == "%":
        return Latency(text, None, number, quantile)
    return Latency(text, number * _DURATION_MS[match[3]], None, quantile)


def parse_duration(text: str, where: str) -> float:
    """`20m`, `90s` or `1h` in seconds; raises `SpecError` that begins with `where`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h)\s*", text)
    if not match or float(match[1]) <= 0:
        raise SpecError(f"{where} {text!r}: expected a time such as 20m, 90s or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def parse_drop(text: str) -> float:
    """`1pp` or `1%`, both percent points of the score, as a number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(pp|%)\s*", text)
    if not match:
        raise SpecError(f"--max-drop {text!r}: expected percent points of the score, such as 1pp or 0.5%")
    return float(match[1])


def parse_size(text: str) -> tuple[int | None, float | None]:
    """`4MB` as bytes (powers of ten; MiB for two), or `30%` of the teacher: `(bytes, percent)`, one of them None."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|KiB|MiB|GiB|%)\s*", text)
    if not match or float(match[1]) <= 0:
        raise SpecError(f"--max-size {text!r}: expected a size or a share of the teacher, such as 4MB, 512KiB or 30%")
    if match[2] == "%":
        return None, float(match[1])
    return int(float(match[1]) * _SIZE_BYTES[match[2]]), None
