"""`edgecompile inspect`: what a model is made of, and what a target would refuse of it."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from edgecompile import errors


def inspect(
    model: Annotated[
        str, typer.Argument(help="A name from `edgecompile list`, module:function, .pt2, .onnx or a folder.")
    ],
    target: Annotated[str, typer.Option("--target", help="Whose refusals to list.")] = "host",
    weights: Annotated[str | None, typer.Option("--weights", help="Weights for a module:function model.")] = None,
    input: Annotated[
        list[str] | None, typer.Option("--input", help="An input's shape, NAME=1x3x224x224:float32.")
    ] = None,
    fix: Annotated[list[str] | None, typer.Option("--fix", help="Make an input of an ONNX file a constant.")] = None,
    trust_model: Annotated[bool, typer.Option("--trust-model", help="Let a model file run its own code.")] = False,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Print the whole program.")] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Print the text form and statistics of MODEL, and everything that the target would refuse (exit 5)."""
    from collections import Counter
    from pathlib import Path

    from edgecompile.building.options import deployment
    from edgecompile.models.loaders import load
    from edgecompile.pass_manager import parse_one
    from edgecompile.program import op_name
    from edgecompile.targets import DEPLOYMENTS, TARGETS

    (call, *_), _ = deployment(target, None, DEPLOYMENTS)[0]
    where: Any = parse_one(call, TARGETS, "--target")
    teacher = load(
        model,
        weights=Path(weights) if weights else None,
        inputs=tuple(input or ()),
        image=None,
        fix=tuple(fix or ()),
        trust=trust_model,
    )
    program = teacher.program
    calls = Counter(op_name(n) for n in program.graph.graph.nodes if n.op == "call_function")
    tensors = program.weights()
    refusals = where.refuse(program)
    facts = {
        "name": teacher.name,
        "digest": teacher.digest,
        "interface": list(program.interface),
        "operators": dict(calls.most_common()),
        "parameters": sum(t.numel() for t in tensors.values() if t.is_floating_point()),
        "weight_bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "batch": program.batch or "dynamic",
        "notes": list(dict.fromkeys((*program.notes, *teacher.notes))),
        "refused": refusals,
    }
    if json_:
        sys.stdout.write(json.dumps({**facts, "text": str(program)} if text else facts, indent=2) + "\n")
    else:
        if text:
            print(program)
        print(
            f"{facts['name']}: {facts['parameters']:,} parameters,"
            f" {facts['weight_bytes'] / 1e6:.2f} MB, batch {facts['batch']}"
        )
        print("operators: " + ", ".join(f"{count} {word}" for word, count in calls.most_common()))
        for note in facts["notes"]:
            print(f"note: {note}")
        for reason in refusals:
            print(f"refused by {target}: {reason}")
    return errors.UNSUPPORTED if refusals else errors.OK
