"""Fused operators as columns of numbers, and what a dtype makes of their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from edgecompile.cost.work import Kind, Work

Floats = NDArray[np.float64]

KINDS: tuple[Kind, ...] = get_args(Kind)
ACTIVATION_BYTES: dict[str, float] = {
    "fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "w8a16": 2, "w4a16": 2, "int8": 1, "fp8": 1,
    "int4": 0.5, "binary": 0.125,
}  # fmt: skip
WEIGHT_BYTES = {**ACTIVATION_BYTES, "w8a16": 1, "w4a16": 0.5}
COMPUTES_IN = {"w8a16": "fp16", "w4a16": "fp16"}
"""The dtype that compressed weights are multiplied in: they save bytes, and arithmetic nothing."""


@dataclass(frozen=True)
class Columns:
    """One entry a fused operator; sizes as in `Work`, `dtype` what each computes in."""

    kind: NDArray[np.int64]
    dtype: tuple[str, ...]
    macs: Floats
    m: Floats
    n: Floats
    k: Floats
    groups: Floats
    reads: Floats
    writes: Floats
    read_bytes: Floats
    write_bytes: Floats
    weight_bytes: Floats

    def is_(self, *kinds: Kind) -> NDArray[np.bool_]:
        """Which operators are of one of these kinds."""
        return np.isin(self.kind, [KINDS.index(k) for k in kinds])

    def where(self, of: dict[str, float]) -> Floats:
        """A number a dtype as one an operator."""
        return np.array([of[d] for d in self.dtype])


def columns(works: Sequence[Work], dtype: str, uniform: bool = True) -> Columns:
    """`uniform`: every operator computes in `dtype`; else those that read integers in int8, the others in `dtype`."""

    def column(name: str) -> Floats:
        return np.array([getattr(w, name) for w in works], dtype=float)

    reads, writes = column("reads"), column("writes")
    wide, wide_weight = ACTIVATION_BYTES[dtype], WEIGHT_BYTES[dtype]
    if uniform:
        dtypes = [dtype] * len(works)
        read_bytes, write_bytes = reads * wide, writes * wide
    else:
        dtypes = ["int8" if _integer(w) else dtype for w in works]
        read_bytes = (reads - column("int8_reads")) * wide + column("int8_reads")
        write_bytes = (writes - column("int8_writes")) * wide + column("int8_writes")
    bits = np.array([w.weight_bits if w.weight_bits and not uniform else 8 * wide_weight for w in works], dtype=float)
    return Columns(
        np.array([KINDS.index(w.kind) for w in works], dtype=np.int64),
        tuple(dtypes),
        column("macs"),
        column("m"),
        column("n"),
        column("k"),
        column("groups"),
        reads,
        writes,
        read_bytes,
        write_bytes,
        column("weights") * bits / 8,
    )


def _integer(work: Work) -> bool:
    """Whether the kernel multiplies integers: an integer activation, and an integer weight where it has one."""
    return work.int8_reads > 0 and (work.weight_bits == 8 or not work.weights or not work.macs)
