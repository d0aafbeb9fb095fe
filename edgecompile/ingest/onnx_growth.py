"""What follows from an ONNX graph's constants and functions: sizes, trips of loops, expanded nodes."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from edgecompile.errors import InputError
from edgecompile.ingest.limits import Gate
from edgecompile.ingest.rules import text_safe

Calls: TypeAlias = Mapping[str, Mapping[str, int]]
"""Function ('' for the graph) to the functions and operators in its body, with how often each occurs."""


@dataclass
class Scope:
    """The names of one graph or function: who made them, small constants, and how many elements they hold."""

    body: str
    made: set[str] = field(default_factory=set)
    constants: ChainMap[str, tuple[int, ...]] = field(default_factory=ChainMap)
    elements: ChainMap[str, int] = field(default_factory=ChainMap)


def growth(gate: Gate, operator: str, inputs: list[str], outputs: list[str], scope: Scope) -> None:
    """Sizes that follow from constants: ConstantOfShape, Expand, Tile (chains too), and Loop trip counts."""
    last = scope.constants.get(inputs[-1] if operator != "Loop" else inputs[0]) if inputs else None
    if operator == "Loop" and last and inputs[0]:
        gate.at_most("EC-IN-008", "trips of a Loop", "loop_trips", last[0], _label(outputs))
    if operator not in ("ConstantOfShape", "Expand", "Tile") or last is None or not outputs:
        return
    product = 1
    for size in last:
        product *= max(size, 0)
    source = scope.elements.get(inputs[0], 1) if len(inputs) > 1 else 1
    elements = product * source if operator == "Tile" else max(product, source if product else 0)
    gate.at_most("EC-IN-007", f"elements made by {operator}", "elements", elements, _label(outputs))
    scope.elements[outputs[0]] = elements


def _label(outputs: list[str]) -> str:
    return f"output '{text_safe(outputs[0])}'" if outputs else ""


def expansion(gate: Gate, called: Calls, own_nodes: Mapping[str, int]) -> None:
    """Node count with every function call replaced by its body; recursion is an error."""
    bodies: Mapping[str, Mapping[str, int]] = {
        body: {name: count for name, count in calls.items() if name in own_nodes and name}
        for body, calls in called.items()
    }
    done: dict[str, int] = {}
    stack: list[tuple[str, bool]] = [("", False)] + [(body, False) for body in bodies]
    open_now: set[str] = set()
    while stack:
        body, ready = stack.pop()
        if body in done:
            continue
        inner = bodies.get(body, {})
        if not ready:
            if body in open_now:
                raise InputError(f"{gate.where}: function '{text_safe(body)}' calls itself; export the model again")
            open_now.add(body)
            stack.append((body, True))
            stack += [(name, False) for name in inner if name not in done]
            continue
        total = own_nodes.get(body, 0) + sum(count * done[name] for name, count in inner.items())
        gate.at_most("EC-IN-005", "nodes with functions expanded", "nodes", total)
        done[body] = total
