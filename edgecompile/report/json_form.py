"""`report.json`: written so that every reader can read it, read back strictly (see `schema.json`)."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, cast

from edgecompile.errors import InputError
from edgecompile.report.model import Figure, Ratio, Report, Rounds

SCHEMA_VERSION = "1.0"
"""Major: a reader of the old cannot read the new. Minor: fields were added, and older readers ignore them."""

MAX_BYTES = 64_000_000


def to_json(report: Report) -> str:
    """The report as JSON text: fields in their order, free mappings sorted, ASCII only, a newline at the end.

    JSON has no NaN or infinity, so such a number becomes null, a figure around it too (a round is left out),
    and `notes` says where.
    """
    lost: list[str] = []
    body = {"schema_version": SCHEMA_VERSION, **_plain(report, "", lost)}
    body["notes"] += [f"{where} is not finite and was left out" for where in lost]
    return json.dumps(body, indent=2, allow_nan=False) + "\n"


def from_json(text: str | bytes, where: str = "report.json") -> Report:
    """Read a report; raises `InputError` for broken JSON, wrong types, or an unknown major schema version.

    Fields that this version does not know are ignored (a later minor version may have added them).
    """
    import msgspec

    size = len(text)
    if size > MAX_BYTES:
        raise InputError(f"{where}: {size} bytes is over the limit of {MAX_BYTES} for a report; is it a report?")
    try:
        body = msgspec.json.decode(text)
        _check_version(body, where)
        return msgspec.convert(_renamed(body), Report)
    except RecursionError:
        raise InputError(f"{where}: nested too deeply to be a report") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InputError(f"{where}: not a report of edgecompile: {error}") from None


def as_written(report: Report) -> Report:
    """The report as a reader of its JSON has it, so that the page and the terminal never say more, or NaN."""
    return from_json(to_json(report), "report")


def json_schema() -> dict[str, Any]:
    """The published JSON Schema (2020-12) of `report.json`."""
    text = resources.files("edgecompile.report").joinpath("schema.json").read_text(encoding="utf-8")
    return cast("dict[str, Any]", json.loads(text))


def _check_version(body: object, where: str) -> None:
    version = body.get("schema_version") if isinstance(body, dict) else None
    if not isinstance(version, str):
        raise InputError(f"{where}: no schema_version; it was not written by `edgecompile build`")
    ours = SCHEMA_VERSION.partition(".")[0]
    if version.partition(".")[0] != ours:
        raise InputError(
            f"{where}: schema_version {version[:20]!r} cannot be read (this edgecompile reads {ours}.x); "
            "rebuild it or use the edgecompile that wrote it"
        )


def _renamed(body: dict[str, Any]) -> dict[str, Any]:
    """`pass` is a keyword of Python, so the field is `pass_`."""
    steps = body.get("steps")
    if not isinstance(steps, list):
        return body
    return body | {
        "steps": [
            {("pass_" if key == "pass" else key): value for key, value in step.items()}
            if isinstance(step, dict)
            else step
            for step in steps
        ]
    }


def _plain(value: Any, where: str, lost: list[str]) -> Any:
    """`value` in JSON's own types; the paths of numbers that are not finite are added to `lost`."""
    match value:
        case None | bool():
            return value
        case str():
            # A file name may hold bytes that are no text (lone surrogates); JSON readers refuse those.
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case Figure() | Ratio() if not math.isfinite(value.value):
            lost.append(where)
            return None
        case Rounds():
            sides = {side: getattr(value, side) for side in ("teacher_ms", "artifact_ms")}
            lost += [f"{where}.{side}" for side, times in sides.items() if not all(map(math.isfinite, times))]
            return {side: [float(time) for time in times if math.isfinite(time)] for side, times in sides.items()}
        case numbers.Integral():
            return int(value)
        case numbers.Real() if math.isfinite(value):
            return float(value)
        case numbers.Real():
            lost.append(where)
            return None
        case Mapping():
            keys = sorted(value, key=str)
            return {_plain(str(key), where, lost): _plain(value[key], f"{where}.{key}", lost) for key in keys}
        case Sequence():
            return [_plain(item, f"{where}[{index}]", lost) for index, item in enumerate(value)]
        case _ if dataclasses.is_dataclass(value):
            return {
                field.name.rstrip("_"): _plain(_typed(value, field), f"{where}.{field.name}".strip("._"), lost)
                for field in dataclasses.fields(value)
            }
    raise TypeError(f"report field {where} holds a {type(value).__name__}, which JSON cannot")


def _typed(record: Any, field: dataclasses.Field[Any]) -> Any:
    """The field's value, whole numbers of float fields as floats, so that reading back changes no byte."""
    value = getattr(record, field.name)
    return float(value) if field.type in ("float", "float | None") and type(value) is int else value
