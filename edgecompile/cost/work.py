"""Work: what one fused operator has to do, as counts that hold on every device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal[
    "conv",
    "depthwise",
    "linear",
    "matmul",
    "attention",
    "recurrent",
    "norm",
    "softmax",
    "pool",
    "resize",
    "pointwise",
    "copy",
    "concat",
    "gather",
    "other",
]


@dataclass(frozen=True)
class Work:
    """One fused operator: a kernel, as inference runtimes form them.

    `m`, `n`, `k` are the sizes of one matrix product and `groups` how many there are: for a convolution output
    places, output channels a group, and input channels a group times the kernel's area; for attention queries, twice
    the keys (both products) and the width of a head, with one group a head; for a recurrent operator the rows of one
    step and all its weights, with one group a step. `macs` counts multiply-accumulates. `reads` and `writes` count
    elements of activations, `int8_reads` and `int8_writes` those of them that are 8-bit integers, `weights` elements
    of constants. `steps` counts the operators that run one after the other inside. Counts are for the whole batch.
    """

    name: str
    kind: Kind
    macs: int = 0
    m: int = 0
    n: int = 0
    k: int = 0
    groups: int = 1
    reads: int = 0
    writes: int = 0
    weights: int = 0
    int8_reads: int = 0
    int8_writes: int = 0
    steps: int = 1
    weight_bits: int = 0
    """Bits of a weight where the program fixes them, else 0."""
    nodes: tuple[str, ...] = field(default=(), compare=False)
    layer: str = field(default="", compare=False)

    def at(self, batch: int) -> Work:
        """The same operator of one sample on a batch: activations grow, weights do not."""
        if batch == 1:
            return self
        many = self.kind in ("matmul", "attention")
        return replace(
            self,
            macs=self.macs * batch,
            m=self.m if many else self.m * batch,
            groups=self.groups * batch if many else self.groups,
            reads=self.reads * batch,
            writes=self.writes * batch,
            int8_reads=self.int8_reads * batch,
            int8_writes=self.int8_writes * batch,
        )


@dataclass(frozen=True)
class Workload:
    """A program as its fused operators, in order, and the bytes that it needs at once."""

    works: tuple[Work, ...]
    batch: int = 1
    peak_elements: int = 0
    """Most elements of activations alive at one time."""
    constants: int = 0
    """Elements of all constants, tables that are only looked up too."""
    dynamic: bool = True
    """Whether the counts are of one sample, to be priced at any batch; else of the fixed `batch`."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Operators without a rule: node -> operator."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole batch."""
        return sum(w.macs for w in self.works)
