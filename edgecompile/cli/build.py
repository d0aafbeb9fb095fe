"""`edgecompile build`: one flag for each field of BuildOptions, so that flags, keywords and TOML cannot drift apart."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecompile.building.options import BESIDE, BuildOptions, options_from, read_toml
from edgecompile.errors import EdgeCompileError, SpecError

if TYPE_CHECKING:
    from edgecompile.report import Report

CONFIG = "edgecompile.toml"


def command() -> Callable[..., Any]:
    """The verb, with a signature made from the fields of `BuildOptions`."""
    parameters = [
        _parameter(
            "model",
            Annotated[
                str | None,
                typer.Argument(help="A name from `edgecompile list`, module:function, .pt2, .onnx or a folder."),
            ],
            None,
        ),
        *(_flag(f) for f in dataclasses.fields(BuildOptions)),
        _parameter(
            "config",
            Annotated[
                str | None,
                typer.Option("--config", help=f"A TOML file with a [build] table (default: {CONFIG} when there)."),
            ],
            None,
        ),
        _parameter(
            "dump",
            Annotated[str | None, typer.Option("--dump", help="Write the program after each pass into this folder.")],
            None,
        ),
        _parameter("verbose", Annotated[bool, typer.Option("--verbose", "-v", help="Say what each pass did.")], False),
        _parameter(
            "json_", Annotated[bool, typer.Option("--json", help="Print report.json instead of the table.")], False
        ),
    ]

    def run(**values: Any) -> int:
        return _build(**values)

    run.__doc__ = "Build MODEL for a target under its budgets; the report says what was measured."
    setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010  (mypy knows of no such attribute)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(option: dataclasses.Field[Any]) -> inspect.Parameter:
    """None means 'not given', so that the TOML file and the defaults can tell."""
    kind = typing.get_type_hints(BuildOptions)[option.name]
    shown = "" if option.default in (None, False, ()) else f" [default: {option.default}]"
    flag = "--" + option.name.replace("_", "-")
    text = option.metadata["help"] + shown
    if typing.get_origin(kind) is tuple:
        return _parameter(option.name, Annotated[list[str] | None, typer.Option(flag, help=text)], None)
    if kind is bool:
        both = f"{flag}/--no-{option.name.replace('_', '-')}"  # the second overrides the TOML file
        return _parameter(option.name, Annotated[bool | None, typer.Option(both, help=text)], None)
    number = kind is int or int in typing.get_args(kind)
    plain: Any = int if number else str
    return _parameter(option.name, Annotated[plain | None, typer.Option(flag, help=text)], None)


def _build(model: str | None, config: str | None, dump: str | None, verbose: bool, json_: bool, **flags: Any) -> int:
    from edgecompile.building.other_reports import failed
    from edgecompile.building.run import build
    from edgecompile.cli.progress import Observers, printing, progress, warn
    from edgecompile.store import Cache

    beside = {"model": model, "dump": dump, "verbose": verbose or None, "json": json_ or None}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in {**beside, **flags}.items() if v not in (None, [])}
    name, options, shown = resolve(given, config)
    observers = Observers(Path(shown["dump"]) if "dump" in shown else None, shown.get("verbose", False))
    json_ = shown.get("json", False)
    try:
        with progress() as tell:
            report = build(name, options, progress=tell, observers=(observers,), cache=Cache(warn=warn))
    except EdgeCompileError as error:
        if json_:
            _print(failed(name, options, error), Path(options.out), json_)
        raise
    with printing():
        _print(report, Path(options.out), json_)
    return report.exit_code


def resolve(given: dict[str, Any], config: str | None) -> tuple[str, BuildOptions, dict[str, Any]]:
    """Flags over the TOML file over the defaults; the model, its options, and what to show of the build."""
    path = Path(config) if config else Path(CONFIG)
    table = {**(read_toml(path) if config or path.is_file() else {}), **given}
    shown = {key: table.pop(key) for key in BESIDE if key in table}
    if not shown.get("model"):
        raise SpecError(f"build: no model: name one (edgecompile list shows them) or set model in {CONFIG}")
    return shown["model"], options_from(table, "build"), shown


def _print(report: Report, out: Path, json_: bool) -> None:
    if json_:
        sys.stdout.write(report.to_json())
        return
    from rich.console import Console

    from edgecompile.report import render

    render(report, Console(soft_wrap=False))
    if not report.dry_run:
        print(f"report    {out / 'report.html'}")
