"""What a parsing child hands back, held to the rules of a foreign `.pt2` before torch reads it."""

from __future__ import annotations

import json
from pathlib import Path

from edgecompile.ingest.limits import Gate, Limits
from edgecompile.ingest.rules import corrupt
from edgecompile.ingest.source import opened
from edgecompile.ingest.vet_pt2 import check_model
from edgecompile.ingest.vet_safetensors import vet_safetensors


def check_saved(folder: Path, limits: Limits = Limits()) -> None:  # noqa: B008
    """Check the graph and the weights of a saved program: operators, names, symbolic sizes, tensors.

    A child that a hostile file took over could write anything here. Raises `Refused` or `InputError`.
    """
    graph = folder / "graph.json"
    gate = Gate(graph, limits)
    gate.at_most("EC-IN-041", "bytes of JSON", "json_bytes", graph.stat().st_size, graph.name)
    try:
        model = json.loads(graph.read_bytes())
    except RecursionError:
        gate.forbid("EC-IN-006", graph.name, "bounded nesting", "deeply nested JSON", "nothing allows it")
    except ValueError as error:
        raise corrupt(gate.where, "not JSON") from error
    check_model(model, graph.name, gate)
    for name in ("weights.safetensors", "inputs.safetensors"):
        with opened(folder / name) as source:
            vet_safetensors(source, Gate(folder / name, limits))
