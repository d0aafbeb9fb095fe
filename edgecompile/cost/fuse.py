"""A program as the kernels that an inference runtime makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import cast

import torch
from torch import Tensor, fx

from edgecompile.cost import operators as ops
from edgecompile.cost.sizes import Sizes, tensors
from edgecompile.cost.work import Kind, Work, Workload
from edgecompile.program import Program
from edgecompile.rewrite import argument, layer

# kernels that pointwise operators behind them join
_OPEN = {"conv", "depthwise", "linear", "matmul", "attention", "norm", "pointwise", "softmax"}
_PRODUCTS = {"matmul", "attention"}


@dataclass(eq=False)
class _Group:
    kind: Kind
    first: int
    last: int
    nodes: list[fx.Node] = field(default_factory=list)
    softmax: bool = False


def workload(program: Program) -> Workload:
    """The fused operators of one sample of a program with a dynamic batch, of the whole batch of a fixed one.

    Fused as TensorRT, Core ML, QNN and ONNX Runtime all do: a product with the batch norm, activation, residual sum
    and requantisation behind it; the products of attention with the softmax between them; chains of pointwise
    operators; a norm with the sum before it. Views cost nothing, and so do transposes that only feed a product.
    """
    return _Fuser(program).workload()


class _Fuser:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.sizes = Sizes(1 if program.batch is not None else int(program.inputs[0].shape[0]))
        self.owner: dict[fx.Node, _Group | None] = {}  # None: an input, or the same in every run
        self.source: dict[fx.Node, fx.Node] = {}  # a view -> what it reads
        self.constant: set[fx.Node] = set()
        self.groups: list[_Group] = []
        self.unknown: dict[str, str] = {}

    def workload(self) -> Workload:
        nodes = list(self.program.graph.graph.nodes)
        self.place = {node: index for index, node in enumerate(nodes)}
        for node in nodes:
            if node.op == "get_attr":
                self.constant.add(node)
            elif node.op == "placeholder":
                self.owner[node] = None
            elif node.op == "call_function":
                self._visit(node)
        readers, kept = self._readers()
        works = tuple(self._work(group, readers, kept) for group in self.groups)
        batch = self.program.batch or 1
        stored = {str(n.target): self.sizes.elements(n) for n in nodes if n.op == "get_attr"}
        dynamic = self.program.batch is None
        return Workload(works, batch, self._peak(readers, kept), sum(stored.values()), dynamic, self.unknown)

    # -- which group a node belongs to

    def _visit(self, node: fx.Node) -> None:
        inputs = [n for n in node.all_input_nodes if n not in self.constant]
        if ops.is_made(node) or not inputs:
            self.constant.add(node)
        elif ops.is_dequantize(node) or ops.is_view(node) or not tensors(node):
            self._same(node, inputs[0])
        elif ops.is_quantize(node):
            self._pointwise(node, inputs)
        elif (kind := ops.kind(node)) is None:
            if not ops.is_pointwise(node):
                self.unknown[node.name] = str(node.target)
                self._start(node, "other")
            else:
                self._pointwise(node, inputs)
        elif kind == "copy":
            self._copy(node, inputs)
        elif kind == "linear" and (group := self._sibling(node, inputs[0])):
            self._join(node, group)
        elif kind == "softmax":
            group = self._open_owner(inputs[0], {"matmul"})
            self._join(node, group) if group else self._start(node, kind)
            self.owner[node].softmax = True  # type: ignore[union-attr]
        elif kind == "matmul" and node.args[-1] in self.constant:
            self._start(node, "linear")
        elif kind == "matmul":
            group = self._open_owner(inputs[0], {"matmul", "softmax"})
            if group and group.softmax:
                self._join(node, group)
                group.kind = "attention"
            else:
                self._start(node, kind)
        elif kind == "norm" and (group := self._open_owner(inputs[0], {"pointwise"}, alone=False)):
            self._join(node, group)
            group.kind = "norm"
        else:
            self._start(node, self._finer(node, kind))

    def _finer(self, node: fx.Node, kind: Kind) -> Kind:
        if kind != "conv":
            return kind
        groups, weight = argument(node, "groups"), cast(fx.Node, argument(node, "weight"))
        out = self.sizes.shape(weight)[1 if node.target in ops.TRANSPOSED else 0]
        each = self.sizes.shape(weight)[0 if node.target in ops.TRANSPOSED else 1]
        return "depthwise" if groups > 1 and (each == 1 or out == 1) else "conv"

    def _start(self, node: fx.Node, kind: Kind) -> None:
        place = self.place[node]
        group = _Group(kind, place, place, [node])
        self.groups.append(group)
        self.owner[node] = group

    def _join(self, node: fx.Node, group: _Group) -> None:
        group.nodes.append(node)
        group.last = self.place[node]
        self.owner[node] = group

    def _same(self, node: fx.Node, of: fx.Node) -> None:
        self.source[node] = of
        self.owner[node] = self.owner.get(of)

    def _pointwise(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        groups = [g for n in inputs if (g := self.owner.get(n))]
        latest = max(groups, key=lambda g: g.first, default=None)
        if latest and latest.kind in _OPEN and all(g is latest or g.last < latest.first for g in groups):
            ours = [self.root(n) for n in inputs if self.owner.get(n) is latest]
            grows = self.sizes.elements(node) > max(self.sizes.elements(n) for n in ours)
            if not grows and all(ops.is_pointwise(u) or ops.is_quantize(u) for n in ours for u in self._users(n)):
                self._join(node, latest)
                return
        self._start(node, "pointwise")

    def _sibling(self, node: fx.Node, source: fx.Node) -> _Group | None:
        """The linear layer right before this one that reads the same: query, key and value are one product."""
        last = self.groups[-1] if self.groups else None
        if last and all(n.target is node.target for n in last.nodes):
            first = last.nodes[0]
            same = self.root(first.all_input_nodes[0]) is self.root(source)
            if same and first.meta["val"].dtype == node.meta["val"].dtype:
                return last
        return None

    def _copy(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        word = ops.word(node)
        padding = word in ops.PADS and all(ops.kind(u) in ("conv", "pool") for u in node.users)
        if padding or (word in ops.TURNS | ops.SPLITS and self._feeds_products(node)):
            self._same(node, inputs[0])
        elif word in ops.TURNS and (group := self._open_owner(inputs[0], _PRODUCTS)):
            self._join(node, group)
        else:
            self._start(node, "copy")

    def _feeds_products(self, node: fx.Node, depth: int = 0) -> bool:
        def fine(user: fx.Node) -> bool:
            if ops.kind(user) in _PRODUCTS:
                return True
            passes = ops.is_view(user) or ops.word(user) in ops.TURNS | ops.SPLITS or ops.is_dequantize(user)
            return passes and depth < 12 and self._feeds_products(user, depth + 1)

        return bool(node.users) and all(fine(user) for user in node.users)

    def _open_owner(self, node: fx.Node, kinds: set[str], alone: bool = True) -> _Group | None:
        group = self.owner.get(node)
        if group and group.kind in kinds and (not alone or self._alone(node)):
            return group
        return None

    def _alone(self, node: fx.Node) -> bool:
        """Whether one operator reads the value, through any views."""
        return len(set(self._users(self.root(node)))) == 1

    def _users(self, node: fx.Node) -> Iterator[fx.Node]:
        """Who reads a value, through views."""
        for user in node.users:
            if user.op == "call_function" and (ops.is_view(user) or ops.is_dequantize(user)):
                yield from self._users(user)
            else:
                yield user

    def root(self, node: fx.Node) -> fx.Node:
        """What a chain of views reads."""
        while node in self.source:
            node = self.source[node]
        return node

    # -- what a group has to do

    def _readers(self) -> tuple[dict[fx.Node, set[_Group]], set[fx.Node]]:
        readers: dict[fx.Node, set[_Group]] = {}
        for group in self.groups:
            for node in group.nodes:
                for n in node.all_input_nodes:
                    if n not in self.constant:
                        readers.setdefault(self.root(n), set()).add(group)
        return readers, {self.root(n) for n in self.program.outputs()}

    def _work(self, group: _Group, readers: dict[fx.Node, set[_Group]], kept: set[fx.Node]) -> Work:
        inside = set(group.nodes)
        reads: dict[fx.Node, int] = {}
        constants: dict[fx.Node, int] = {}
        for node in group.nodes:
            for n in node.all_input_nodes:
                root = self.root(n)
                if n in self.constant and ops.is_made(n):
                    continue
                if n in self.constant:
                    constants[_stored(n)] = self.sizes.elements(_stored(n))
                elif root not in inside:
                    size = min(self.sizes.elements(n), self.sizes.elements(root))
                    if group.kind in ("copy", "concat", "gather"):
                        size = min(size, self.sizes.elements(node))
                    reads[root] = max(reads.get(root, 0), size)
        written = [n for n in group.nodes if n in kept or readers.get(n, set()) - {group}]
        product = next(
            (n for n in group.nodes if ops.kind(n) == group.kind or group.kind == "depthwise"), group.nodes[0]
        )
        if group.kind in ("gather",):
            constants = {}
        widths = [_bits(n) for n in constants if self.sizes.elements(n) > 1]
        return Work(
            name=product.name,
            kind=group.kind,
            reads=sum(reads.values()),
            writes=sum(self.sizes.elements(n) for n in written),
            weights=sum(constants.values()),
            int8_reads=sum(size for n, size in reads.items() if ops.is_quantize(n)),
            int8_writes=sum(self.sizes.elements(n) for n in written if ops.is_quantize(n)),
            steps=len(group.nodes),
            weight_bits=min((b for b in widths if b), default=0),
            nodes=tuple(n.name for n in group.nodes),
            layer=layer(product),
            **self._product(group),
        )

    def _product(self, group: _Group) -> dict[str, int]:
        """Sizes of the matrix products in a group: that of the largest, and the multiply-accumulates of all."""
        products = [n for n in group.nodes if ops.kind(n) not in (None, "norm")]
        found = [sizes for n in products if (sizes := self.sizes.product(n, self.constant))]
        if not found:
            return {}
        m, n, k, groups = max(found, key=prod)
        macs = sum(map(prod, found))
        if group.kind == "linear":
            n = sum(sizes[1] for sizes in found)
        elif group.kind == "attention":
            m, _, k, groups = found[0]
            n = macs // max(m * k * groups, 1)  # both products: twice the keys where values are as wide as keys
        return {"macs": macs, "m": m, "n": n, "k": k, "groups": groups}

    def _peak(self, readers: dict[fx.Node, set[_Group]], kept: set[fx.Node]) -> int:
        """Most elements alive at once, each from the group that writes it to the last that reads it."""
        change = [0] * (len(self.groups) + 2)
        order = {group: index for index, group in enumerate(self.groups)}
        for value in (readers.keys() | kept) - self.constant:
            owner, users = self.owner.get(value), readers.get(value, set())
            start = order[owner] if owner else 0
            end = len(self.groups) if value in kept else max(order[g] for g in users)
            if owner is None or value in kept or users - {owner}:
                change[start] += self.sizes.elements(value)
                change[end + 1] -= self.sizes.elements(value)
        most = now = 0
        for step in change:
            now += step
            most = max(most, now)
        return most


def _stored(node: fx.Node) -> fx.Node:
    """The constant below the dequantisation of a weight."""
    while node.op == "call_function" and ops.is_dequantize(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _bits(node: fx.Node) -> int:
    """Bits of an integer constant, 0 for floating point, whose width the device chooses."""
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.dtype in (torch.int8, torch.uint8):
        return 8
    return 0
