"""`explain`, `list`, `compare` and `doctor`: the verbs that only look."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from edgecompile import errors

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_(
    json_: Json = False,
) -> int:
    """List the teachers, passes, targets, deployments and devices that are known."""
    from edgecompile.cli.progress import table
    from edgecompile.device import DeviceProfile
    from edgecompile.models import MODELS
    from edgecompile.passes import PASSES
    from edgecompile.targets import DEPLOYMENTS, TARGETS

    rows: list[tuple[str, str, str]] = [
        *(("model", name, _first_line(where)) for name, where in sorted(MODELS.items())),
        *(("pass", name, _first_line(where)) for name, where in sorted(PASSES.items())),
        *(("target", name, _first_line(where)) for name, where in sorted(TARGETS.items())),
        *(("deployment", name, ", ".join(parts)) for name, parts in sorted(DEPLOYMENTS.items())),
        *(("device", name, DeviceProfile.load(name).title) for name in DeviceProfile.names()),
    ]
    if json_:
        sys.stdout.write(
            json.dumps([dict(zip(("kind", "name", "about"), row, strict=True)) for row in rows], indent=2) + "\n"
        )
    else:
        table([(k, n, a) for k, n, a in rows], ("kind", "name", "what it is"))
    return errors.OK


def _first_line(where: str) -> str:
    """The first docstring line of `module:Class`, read from the source: listing everything imports nothing heavy."""
    import ast
    import importlib.util

    module, _, name = where.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    with open(spec.origin, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            text = ast.get_docstring(node) if isinstance(node, ast.ClassDef) else ast.get_docstring(tree)
            return (text or "").splitlines()[0] if text else ""
    return ""


def explain(
    name: Annotated[
        str, typer.Argument(help="A pass, a target, an operator such as conv2d, or a rule such as EC-IN-012.")
    ],
    json_: Json = False,
) -> int:
    """Explain a pass, a target, an operator or a safety rule."""
    from edgecompile.ingest import RULES as INGEST
    from edgecompile.models.hf_folder import RULES as FOLDER
    from edgecompile.passes import PASSES
    from edgecompile.targets import TARGETS

    rules = {**INGEST, **FOLDER}
    kind, text = "", ""
    if name.upper() in rules:
        kind, text = "rule", rules[name.upper()]
    elif name in PASSES:
        kind, text = "pass", _class_text(PASSES[name])
    elif name in TARGETS:
        kind, text = "target", _class_text(TARGETS[name])
    else:
        text = _operator(name, TARGETS)
        kind = "operator"
    if not text:
        raise errors.SpecError(f"explain: nothing is called {name!r}{errors.near(name, [*PASSES, *TARGETS, *rules])}")
    if json_:
        sys.stdout.write(json.dumps({"kind": kind, "name": name, "text": text}, indent=2) + "\n")
    else:
        print(f"{name} ({kind})\n\n{text}")
    return errors.OK


def _class_text(where: str) -> str:
    import dataclasses
    import inspect

    from edgecompile.reference import load_function

    cls = load_function(where)
    lines = [inspect.getdoc(cls) or "", "", "Options:"]
    options = dataclasses.fields(cls)
    lines += [f"  {f.name}: {f.type} = {f.default!r}" for f in options if f.init] or ["  none"]
    return "\n".join(lines)


def _operator(name: str, targets: dict[str, str]) -> str:
    """What every target's table says of an operator."""
    from edgecompile.reference import load_function

    lines = []
    for word, where in targets.items():
        target: Any = load_function(where)()
        for op, rule in target.quantizable().items():
            if name in (str(op), str(op).removeprefix("aten.").removesuffix(".default"), op._opname):
                weight = f", weight {rule.weight} per channel of axis {rule.axis}" if rule.weight else ""
                lines.append(
                    f"{word}: {op} runs in integers over {', '.join(rule.operands)}{weight};"
                    f" its result is {rule.output}"
                )
    return "\n".join(lines)


def compare(
    a: Annotated[str, typer.Argument(help="A report.json, or the output folder of a build.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    json_: Json = False,
) -> int:
    """Compare two builds: latency, size, score, pipeline, decisions and versions."""
    import dataclasses
    from pathlib import Path

    from rich.console import Console

    from edgecompile.report import Report, differences, render_comparison
    from edgecompile.report.compare import caveats

    reports = []
    for name in (a, b):
        path = Path(name) / "report.json" if Path(name).is_dir() else Path(name)
        try:
            reports.append(Report.from_json(path.read_bytes(), str(path)))
        except OSError as error:
            raise errors.InputError(
                f"{path}: cannot be read: {error.strerror}; give a report.json or the folder of a build"
            ) from None
    one, two = reports
    if json_:
        rows = [dataclasses.asdict(d) for d in differences(one, two)]
        sys.stdout.write(json.dumps({"differences": rows, "caveats": list(caveats(one, two))}, indent=2) + "\n")
    else:
        render_comparison(one, two, Console())
    return errors.OK


def doctor(json_: Json = False) -> int:
    """Check this machine: versions that clash, missing extras with the command that installs them, CPU features."""
    from edgecompile.cli.doctor import findings
    from edgecompile.cli.progress import table

    rows = findings()
    if json_:
        sys.stdout.write(
            json.dumps([dict(zip(("state", "what", "found", "do"), row, strict=True)) for row in rows], indent=2) + "\n"
        )
    else:
        table([tuple(row) for row in rows], ("", "what", "found", "what to do"))
    return errors.UNSUPPORTED if any(row[0] == "FAIL" for row in rows) else errors.OK
