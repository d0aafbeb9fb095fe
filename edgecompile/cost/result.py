"""What an estimate says: the latency, a row an operator, and where the figures come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Bound = Literal["compute", "memory", "launch"]


@dataclass(frozen=True)
class OperatorRow:
    """One fused operator. Times in microseconds; `share` of the unit's peak rate that its arithmetic achieves."""

    name: str
    layer: str
    op: str
    dtype: str
    us: float
    low_us: float
    high_us: float
    bound: Bound
    unit: str
    macs: int
    bytes: int
    share: float
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latency:
    """A latency in milliseconds with its 90 % interval; `kind` says how it came about."""

    value: float
    low: float
    high: float
    kind: Literal["measured", "predicted", "unvalidated"]


@dataclass(frozen=True)
class Fallback:
    """A node that the device's main unit cannot run, and the unit that takes it."""

    node: str
    layer: str
    op: str
    unit: str
    reason: str


@dataclass(frozen=True)
class Estimate:
    """What a program takes on a device. The rows, the last of which is the network's start, add up to the latency.

    `validated` is True, or the reason why no measured latency backs the figure; `memory_mb` is the peak of weights and
    activations together.
    """

    device: str
    dtype: str
    batch: int
    latency_ms: Latency
    validated: bool | str
    rows: tuple[OperatorRow, ...]
    memory_mb: float
    evidence: str
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()


def as_json(found: Estimate) -> dict[str, Any]:
    """The estimate as `--json` prints it."""
    latency = found.latency_ms
    return {
        "device": found.device,
        "dtype": found.dtype,
        "batch": found.batch,
        "latency_ms": {k: _round(getattr(latency, k)) for k in ("value", "low", "high")} | {"kind": latency.kind},
        "validated": found.validated,
        "evidence": found.evidence,
        "memory_mb": _round(found.memory_mb),
        "rows": [
            {k: _round(v) if isinstance(v, float) else v for k, v in vars(row).items()} | {"nodes": list(row.nodes)}
            for row in found.rows
        ],
        "fallbacks": [vars(f) for f in found.fallbacks],
        "notes": list(found.notes),
    }


def _round(value: float) -> float:
    return float(f"{value:.5g}") if math.isfinite(value) else value
