"""Positions of a sequence that no output depends on: padding, which least squares must not look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgecompile.data import Dataset
from edgecompile.program import Program
from edgecompile.rewrite import argument, aten

_ATTENTION = aten.scaled_dot_product_attention.default
_CHUNK = 4
"""Samples at a time: everything that they give is kept for their gradients."""
Relevant = Mapping[fx.Node, Tensor]
"""For each linear layer whether an output depends on what it gives there, [samples, positions]."""


def relevant(program: Program, data: Dataset, note: Callable[[str], None] | None = None) -> dict[fx.Node, Tensor]:
    """Where the gradient of the outputs is not zero, for linear layers over sequences of programs that mask some.

    Empty where nothing is masked: then all positions count. A last layer of which a classifier reads one token has
    that token alone. Empty too, with a note, where an operator has no derivative.
    """
    calls = program.graph.graph.find_nodes(op="call_function", target=_ATTENTION)
    if all(argument(n, "attn_mask") is None and not argument(n, "is_causal") for n in calls):
        return {}
    watched = [n for n in program.graph.graph.find_nodes(op="call_function", target=aten.linear.default) if _long(n)]
    generator = torch.Generator().manual_seed(0)
    parts: dict[fx.Node, list[Tensor]] = {n: [] for n in watched}
    try:
        for batch in data:
            for start in range(0, len(batch.inputs[0]), _CHUNK):
                inputs = [t[start : start + _CHUNK] for t in batch.inputs]
                for node, moved in _gradients(program, watched, inputs, generator).items():
                    parts[node].append(moved.ne(0).any(-1).flatten(1))
    except RuntimeError as error:
        if note is not None:
            reason = str(error).strip().splitlines()[0][:120]
            note(f"padding counts in least squares as the rest does: no gradient says which positions matter: {reason}")
        return {}
    found = {node: torch.cat(each) for node, each in parts.items()}
    return {node: where for node, where in found.items() if bool(where.any())}


def _gradients(
    program: Program, watched: Sequence[fx.Node], inputs: Sequence[Tensor], generator: torch.Generator
) -> dict[fx.Node, Tensor]:
    """The gradient of the outputs, summed with weights by chance, for what each of these nodes gives."""
    run = _Watched(program, set(watched))
    with torch.enable_grad():
        outputs = [o for o in run.run(*inputs) if o.is_floating_point() and o.requires_grad]
        total = sum((o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outputs)
    if isinstance(total, Tensor):
        total.backward()  # type: ignore[no-untyped-call]
    return {n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in run.seen.items()}


class _Watched(fx.Interpreter):
    """Runs a program with gradients, and keeps the values of some nodes with theirs."""

    def __init__(self, program: Program, watched: set[fx.Node]) -> None:
        super().__init__(program.graph)
        self.seen: dict[fx.Node, Tensor] = {}
        self._watched = watched

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "get_attr" and isinstance(value, Tensor):
            return value.detach()
        if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            if not value.requires_grad:
                value = value.detach().requires_grad_()
            if n in self._watched:
                value.retain_grad()
                self.seen[n] = value
        return value


def _long(node: fx.Node) -> bool:
    """Whether a layer gives a value for each position of a sample."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() >= 3
