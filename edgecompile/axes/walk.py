"""A walk over a program that gives every tensor its axes as terms: what the rules of operators read and write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from edgecompile.axes.dims import Dim, unify
from edgecompile.program import Program, op_name
from edgecompile.rewrite import argument, layer, weight

Dims = tuple[Dim, ...]
Found = Dims | list[Dims]
Rule = Callable[["Walk", fx.Node], "Found | None"]

PRIMES = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099)
"""Stand for the sizes that are dynamic: no width has them as a factor."""


@dataclass
class Walk:
    """The axes of every tensor so far, and what rewriting a node's literals will need.

    `summed` are the axes of weights that products sum over, `work` for each product the axes whose sizes make its
    multiplications (one tuple a product).
    """

    program: Program
    dims: dict[fx.Node, Found] = field(default_factory=dict)
    weights: dict[str, Dims] = field(default_factory=dict)
    virtual: dict[fx.Node, Sequence[Dim]] = field(default_factory=dict)
    summed: set[tuple[str, int]] = field(default_factory=set)
    work: dict[fx.Node, tuple[Dims, ...]] = field(default_factory=dict)
    _primes: dict[Any, int] = field(default_factory=dict)

    def run(self, rules: Mapping[OpOverload, Rule], pointwise: Rule) -> None:
        """Go through the graph once; an operator without a rule fixes all it reads and gives fixed axes."""
        for node in self.program.graph.graph.nodes:
            if node.op == "placeholder":
                self.dims[node] = self.fresh(node, f"it is an axis of the input {node.target}")
            elif node.op == "get_attr":
                value = weight(self.program, node)
                if value is not None:
                    name = str(node.target)
                    self.dims[node] = self.weights.setdefault(name, tuple(Dim(int(s)) for s in value.shape))
            elif node.op == "call_function":
                self._call(node, rules, pointwise)
            elif node.op == "output":
                for name, result in zip(self.program.output_names, self.program.outputs(), strict=True):
                    self.fix(result, f"it is an axis of the output {name}")

    def _call(self, node: fx.Node, rules: Mapping[OpOverload, Rule], pointwise: Rule) -> None:
        if getattr(node.target, "__name__", "") == "getitem":
            source = self.dims.get(cast(fx.Node, node.args[0]))
            if isinstance(source, list):
                self.dims[node] = source[cast(int, node.args[1])]
            return
        if not _tensors(node.meta.get("val")):
            return  # arithmetic on sizes
        rule = rules.get(cast(OpOverload, node.target))
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = pointwise
        try:
            found = rule(self, node) if rule is not None else None
        except ValueError:  # sizes that the rule did not expect
            found = None
        self.dims[node] = self.unknown(node) if found is None else found

    def of(self, node: Any) -> Dims:
        """The axes of a tensor."""
        found = self.dims[node]
        assert isinstance(found, tuple)
        return found

    def arg(self, node: fx.Node, name: str) -> Dims | None:
        """The axes of a tensor argument; None where it was not given."""
        value = argument(node, name)
        return self.of(value) if isinstance(value, fx.Node) and value in self.dims else None

    def same(self, node: fx.Node, a: Dim, b: Dim) -> None:
        """Two axes are one, by what a node does."""
        unify(a, b, self.why(node))

    def sums(self, node: fx.Node, source: Any, axis: int) -> None:
        """A product sums over an axis of what it reads, which may be a weight."""
        if isinstance(source, fx.Node) and source.op == "get_attr":
            self.summed.add((str(source.target), axis % len(self.of(source))))

    def why(self, node: fx.Node) -> str:
        """The reason that a node gives for a fixed axis."""
        return f"{op_name(node)} ({node.name}) of {layer(node)} needs its indices as they are"

    def fix(self, node: Any, why: str, axes: Sequence[int] | None = None) -> None:
        """All axes of a tensor, or these, stay as they are."""
        found = self.dims.get(node)
        for dims in found if isinstance(found, list) else [found or ()]:
            for axis in range(len(dims)) if axes is None else axes:
                dims[axis].fix(why)

    def fresh(self, node: fx.Node, why: str | None = None) -> Dims:
        """New axes for a node's result; dynamic ones are fixed in any case."""
        return tuple(Dim(size, self.dynamic(node, axis) or why) for axis, size in enumerate(self.sizes(node)))

    def dynamic(self, node: fx.Node, axis: int) -> str | None:
        """The reason to fix an axis whose size is not known before the program runs."""
        size = node.meta["val"].shape[axis]
        return None if isinstance(size, int) else "its size is dynamic"

    def unknown(self, node: fx.Node) -> Found:
        """Fixed axes for what an operator gives and for all that it reads."""
        why = self.why(node)
        for source in node.all_input_nodes:
            self.fix(source, why)
        value = node.meta["val"]
        if isinstance(value, Tensor):
            return self.fresh(node, why)
        return [tuple(Dim(self.size(s), why) for s in v.shape) if isinstance(v, Tensor) else () for v in value]

    def sizes(self, node: fx.Node) -> tuple[int, ...]:
        """A tensor's sizes, a prime for each dynamic one."""
        return tuple(self.size(s) for s in node.meta["val"].shape)

    def size(self, size: Any) -> int:
        """A size as a number, primes in the place of symbols."""
        if isinstance(size, fx.Node):
            size = size.meta["val"]
        if isinstance(size, int):
            return size
        expression = size.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            self._primes.setdefault(symbol, PRIMES[len(self._primes) % len(PRIMES)])
        return int(expression.subs(self._primes))


def operands(node: fx.Node) -> list[fx.Node]:
    """The arguments of a node that are tensors, in order, one as often as it is given."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, dict(node.kwargs)), found.append)
    return [n for n in found if isinstance(n.meta.get("val"), Tensor)]


def _tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value))
