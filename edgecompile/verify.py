"""Verify: the emitted artifact, run in its runtime, against the teacher; and the first layer that drifts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgecompile.data import Outputs, snr_db
from edgecompile.program import Program
from edgecompile.rewrite import layer
from edgecompile.target import Run

DRIFT_DB = 15.0
"""Below this signal-to-noise ratio an output or layer is said to drift: the error is over a sixth of the signal."""

Tap = Callable[[Sequence[str], tuple[Tensor, ...]], Mapping[str, np.ndarray[Any, Any]]]
"""Names of nodes and inputs to the values that the artifact's runtime computes at those nodes, where it has them."""


@dataclass(frozen=True)
class Errors:
    """Errors of all float outputs against the teacher's; `snr_db` None when they are equal, NaN when not finite."""

    samples: int
    max_abs: float
    mean_abs: float
    snr_db: float | None


def output_errors(found: Outputs, teacher: Outputs) -> Errors:
    """Worst and mean absolute error and signal-to-noise ratio over the evaluation data."""
    worst, total, count, samples = 0.0, 0.0, 0, 0
    for ours, theirs in zip(found, teacher, strict=True):
        samples += len(theirs[0]) if theirs[0].ndim else 1
        for a, t in zip(ours, theirs, strict=True):
            if t.dtype.kind != "f":
                continue
            with np.errstate(invalid="ignore"):  # inf - inf; where the two are equal there is no error
                gap = np.where(a == t, 0.0, np.abs(a.astype(np.float64) - t.astype(np.float64)))
            worst = float(np.maximum(worst, gap.max(initial=0.0)))  # NaN wins, which Python's max would lose
            total, count = total + float(gap.sum()), count + gap.size
    if worst == 0.0:
        return Errors(samples, 0.0, 0.0, None)
    with np.errstate(invalid="ignore"):
        ratio = snr_db(found, teacher)
    return Errors(samples, worst, total / max(count, 1), math.nan if ratio is None else ratio)


def layer_drift(
    teacher: Program, program: Program, tap: Tap, run: Run, batches: Sequence[tuple[Tensor, ...]]
) -> list[tuple[str, float | None]]:
    """Signal-to-noise ratio in dB over some batches, layer by layer of the teacher that is found again in the artifact.

    `tap` and `run` are of the artifact made from `program`; what it returns goes by other names inside the file.
    The pairs come from provenance: a node of `program` whose origin is a node of the teacher with the same shape.
    """
    origins = {n.name: n for n in teacher.graph.graph.nodes if n.op == "call_function"}
    pairs = []
    for node in program.graph.graph.nodes:
        source = origins.get(str(node.meta.get("custom", {}).get("origin", "")))
        if (
            node.op == "call_function"
            and source is not None
            and "quantize" not in str(node.target)
            and _float(node)
            and _float(source)
        ):
            pairs.append((node.name, source))
    values, seen = [], []
    for inputs in batches:
        values.append(_values(teacher, {source.name for _, source in pairs}, inputs))
        ends = {n.name: value.numpy() for n, value in zip(program.outputs(), run(inputs), strict=True)}
        seen.append({**tap([name for name, _ in pairs], inputs), **ends})
    found: list[tuple[str, float | None]] = []
    for name, source in pairs:
        ours: Outputs = [(taps[name],) for taps in seen if name in taps]
        theirs: Outputs = [(kept[source.name],) for kept in values if source.name in kept]
        if not ours or [a.shape for (a,) in ours] != [t.shape for (t,) in theirs]:
            continue
        ratio = output_errors(ours, theirs).snr_db
        found.append((f"{layer(source)} ({source.name})", ratio))
    return found


def first_drift(layers: Sequence[tuple[str, float | None]], limit_db: float = DRIFT_DB) -> str | None:
    """The first layer after which the signal-to-noise ratio stays under the limit to the end, None when it does not."""
    first = None
    for name, ratio in layers:
        low = ratio is not None and not ratio >= limit_db
        first = (first or name) if low else None
    return first


def _float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1


def _values(program: Program, names: set[str], inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    runner = _Keep(program, names)
    with torch.no_grad():
        runner.run(*inputs)
    return runner.kept


class _Keep(fx.Interpreter):
    """Runs a program and keeps the values of the named nodes."""

    def __init__(self, program: Program, names: set[str]) -> None:
        super().__init__(program.graph)
        self.names, self.kept = names, dict[str, Any]()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        value = super().run_node(n)
        if n.name in self.names and isinstance(value, Tensor):
            self.kept[n.name] = value.detach().numpy().copy()
        return value
