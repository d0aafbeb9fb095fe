"""What targets share on the way out: weights that must be numbers, and folders that are filled whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from edgecompile.program import Program, op_name
from edgecompile.rewrite import layer


def not_numbers(program: Program) -> list[str]:
    """Weights with NaN, and learned ones with infinity (a constant may be a mask of it), a reason each."""
    reasons = []
    for name, value in program.weights().items():
        if not value.is_floating_point() or value.element_size() == 1:
            continue  # of eight bits: made by a pass, whose scales are looked at
        learned = isinstance(value, torch.nn.Parameter)
        bad = int((~value.isfinite() if learned else value.isnan()).sum())
        if bad:
            words = "NaN or infinite" if learned else "NaN"
            reasons.append(f"{name}: {bad} of {value.numel()} values are {words}: train or export it again")
    return reasons


def float8(program: Program, name: str) -> list[str]:
    """Nodes that make FP8 numbers, for a target that has none: a reason each."""
    reasons = []
    for node in program.graph.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor) and value.dtype == torch.float8_e4m3fn:
            reasons.append(
                f"{layer(node)}: {op_name(node)} ({node.name}) is in FP8, which {name} does not take: "
                "tensorrt with sm=89, 90 or 120 does, or quantize(weights=int8)"
            )
    return reasons


def data_dependent(program: Program) -> list[str]:
    """Nodes whose shape depends on the data, a reason each; a batch that is not fixed yet is none."""
    reasons = []
    for node in program.graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and free_unbacked_symbols(value):
            reasons.append(f"{layer(node)}: {op_name(node)} ({node.name}) has a shape that depends on the data")
    return reasons


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` whose content moves up at the end; with an error nothing is left of it."""
    made = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        yield made
        for item in sorted(made.iterdir()):
            item.replace(folder / item.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
