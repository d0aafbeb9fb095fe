"""Where Q/DQ goes: a target's table of integer kernels turned into a torchao PT2E `Quantizer`.

The unit is the tensor, not the operator: a tensor is quantized once, where it is made, and every reader that runs in
integers reads those integers. A kernel that writes integers needs its result quantized behind the activation that the
runtime folds into it, else the runtime falls back to float and pays for the conversion as well.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from edgecompile.passes._torchao import QuantizationAnnotation, QuantizationSpec, Quantizer, SharedQuantizationSpec
from edgecompile.program import Program
from edgecompile.rewrite import argument, layer, only_user
from edgecompile.target import QuantRule


@dataclass
class Placement:
    """What is quantized: tensors, the edges that read them in integers, weights, and what was left and why."""

    tensors: dict[fx.Node, fx.Node | None] = field(default_factory=dict)
    """Node whose output is quantized -> the node it shares its scale with, None for a scale of its own."""
    made: set[fx.Node] = field(default_factory=set)
    """Those that an integer kernel writes: everybody reads the integers. The others stay float for float readers."""
    readers: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    """Node -> the kernels that read it in integers."""
    weights: dict[fx.Node, tuple[fx.Node, int]] = field(default_factory=dict)
    """Reader -> (`get_attr` node of the weight, output-channel axis)."""
    left: dict[fx.Node, str] = field(default_factory=dict)
    wide: list[fx.Node] = field(default_factory=list)
    """Operators without weights that stay float for their axes, more than the target's integers may have."""

    def read(self, kernel: fx.Node, tensor: fx.Node) -> None:
        """`kernel` reads `tensor` in integers."""
        self.tensors.setdefault(tensor, None)
        readers = self.readers.setdefault(tensor, [])
        if kernel not in readers:
            readers.append(kernel)

    def write(self, tensor: fx.Node, shared: fx.Node | None = None) -> None:
        """An integer kernel writes `tensor`, with the scale of `shared` when it only passes integers on."""
        if self.tensors.get(tensor) is None:
            self.tensors[tensor] = shared
        self.made.add(tensor)


def place(program: Program, table: Mapping[OpOverload, QuantRule], keep_float: Callable[[fx.Node], bool]) -> Placement:
    """Choose the quantized tensors: first the kernels with weights, then what stands between them."""
    found = Placement()
    graph = program.graph.graph
    for node in graph.nodes:
        rule = table.get(node.target) if node.op == "call_function" else None
        if rule is None or rule.weight is None:
            continue
        weight = argument(node, rule.weight)
        if keep_float(node):
            found.left[node] = "kept in float"
        elif not _constant(weight):
            found.left[node] = "its weight is not a constant"
        elif _wide(node, rule):
            found.left[node] = f"the target's integers have at most {rule.axes} axes"
        else:
            found.weights[node] = (weight, rule.axis)
            for operand in operands(node, rule):
                found.read(node, operand)
                _pass_on(operand, table, keep_float, found)
            if rule.output == "quantized":
                found.write(behind(node, rule))
    _between(graph, table, keep_float, found)
    return found


def _pass_on(
    node: fx.Node, table: Mapping[OpOverload, QuantRule], keep_float: Callable[[fx.Node], bool], found: Placement
) -> None:
    """Quantize in front of operators that pass integers on (a reshape, a pad), as far up as there are any.

    Only where nobody else reads what is in between, so that no float reader gets rounded numbers.
    """
    rule = table.get(node.target) if isinstance(node.target, OpOverload) else None
    if rule is None or rule.output != "shared" or keep_float(node) or only_user(node) is None:
        return
    read = operands(node, rule)
    if len(read) != 1 or _too_wide(node, rule, found):
        return
    found.read(node, read[0])
    found.write(node, read[0])
    _pass_on(read[0], table, keep_float, found)


def _between(
    graph: fx.Graph, table: Mapping[OpOverload, QuantRule], keep_float: Callable[[fx.Node], bool], found: Placement
) -> None:
    """Kernels without weights join where every operand is written in integers already, in graph order."""
    for node in graph.nodes:
        rule = table.get(node.target) if node.op == "call_function" else None
        if rule is None or rule.weight is not None or keep_float(node):
            continue
        read = operands(node, rule)
        if not read or not all(operand in found.made for operand in read) or _too_wide(node, rule, found):
            continue
        for operand in read:
            found.read(node, operand)
        if rule.output == "shared":
            found.write(node, read[0])
        elif rule.output == "quantized":
            found.write(behind(node, rule))


def operands(node: fx.Node, rule: QuantRule) -> list[fx.Node]:
    """The activation tensors that a kernel reads; empty when one of them is a number."""
    read: list[fx.Node] = []
    for name in rule.operands:
        value = argument(node, name)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(item, fx.Node) or not _floating(item):
                return []
            read.append(item)
    return read


def _wide(node: fx.Node, rule: QuantRule) -> bool:
    """Whether the operator reads or makes a tensor of more axes than the rule allows."""
    values = (n.meta.get("val") for n in (node, *operands(node, rule)))
    return rule.axes is not None and any(isinstance(v, torch.Tensor) and v.dim() > rule.axes for v in values)


def _too_wide(node: fx.Node, rule: QuantRule, found: Placement) -> bool:
    wide = _wide(node, rule)
    if wide and node not in found.wide:
        found.wide.append(node)
    return wide


def behind(node: fx.Node, rule: QuantRule) -> fx.Node:
    """The node whose output the kernel really writes: the activation folded into it, else the node itself."""
    follower = only_user(node)
    return follower if follower is not None and follower.target in rule.fuses else node


def _constant(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _now(by_name: Mapping[str, fx.Node], reader: fx.Node, source: fx.Node) -> fx.Node:
    """What stands where `reader` read `source`: SmoothQuant has put a product in front, or another weight."""
    twin = by_name[reader.name]
    for was, now in zip(reader.args, twin.args, strict=False):
        if was is source and isinstance(now, fx.Node):
            return now
    return by_name[source.name]


def matcher(patterns: Sequence[str]) -> Callable[[fx.Node], bool]:
    """Whether a node's layer, name or origin matches one of the globs."""

    def matches(node: fx.Node) -> bool:
        names = (layer(node), node.name, str(node.meta.get("custom", {}).get("origin", "")))
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return matches


class TableQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates the placement for torchao and NNCF; `activation` and `weight` are their specs."""

    def __init__(
        self, placement: Placement, activation: QuantizationSpec, weight: Callable[[int], QuantizationSpec]
    ) -> None:
        self.placement, self.activation, self.weight = placement, activation, weight

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Write the specs into `meta["quantization_annotation"]`."""
        by_name = {n.name: n for n in model.graph.nodes}
        for node in model.graph.nodes:
            node.meta["quantization_annotation"] = QuantizationAnnotation(_annotated=False)
        for node, shared in self.placement.tensors.items():
            own = by_name[node.name]
            if node in self.placement.made:
                spec = self.activation if shared is None else self._like(by_name, node, shared)
                own.meta["quantization_annotation"].output_qspec = spec
                own.meta["quantization_annotation"]._annotated = True
                continue
            for reader in self.placement.readers.get(node, []):
                annotation = by_name[reader.name].meta["quantization_annotation"]
                annotation.input_qspec_map[_now(by_name, reader, node)] = self.activation
                annotation._annotated = True
        for reader, (weight, axis) in self.placement.weights.items():
            annotation = by_name[reader.name].meta["quantization_annotation"]
            annotation.input_qspec_map[_now(by_name, reader, weight)] = self.weight(axis)
            annotation._annotated = True
        return model

    def _like(self, by_name: Mapping[str, fx.Node], node: fx.Node, shared: fx.Node) -> SharedQuantizationSpec:
        source = by_name[shared.name]
        if shared in self.placement.made:
            return SharedQuantizationSpec(source)
        return SharedQuantizationSpec((source, by_name[node.name]))

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to add: the table is the target's own."""
