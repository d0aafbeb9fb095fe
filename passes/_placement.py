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
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edgecompile.program import Program
from edgecompile.rewrite import argument, layer, only_user
from edgecompile.target import QuantRule


@dataclass
class Placement:
    """What is quantized: tensors by the node that makes them, weights by their reader, and what was left and why."""

    tensors: dict[fx.Node, fx.Node | None] = field(default_factory=dict)
    """Node whose output is quantized -> the node it shares its scale with, None for a scale of its own."""
    weights: dict[fx.Node, tuple[fx.Node, int]] = field(default_factory=dict)
    """Reader -> (`get_attr` node of the weight, output-channel axis)."""
    left: dict[fx.Node, str] = field(default_factory=dict)


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
        else:
            found.weights[node] = (weight, rule.axis)
            for operand in operands(node, rule):
                found.tensors.setdefault(operand, None)
            if rule.output == "quantized":
                found.tensors.setdefault(behind(node, rule), None)
    _between(graph, table, keep_float, found)
    return found


def _between(
    graph: fx.Graph, table: Mapping[OpOverload, QuantRule], keep_float: Callable[[fx.Node], bool], found: Placement
) -> None:
    """Kernels without weights join where every operand is in integers already, in graph order."""
    for node in graph.nodes:
        rule = table.get(node.target) if node.op == "call_function" else None
        if rule is None or rule.weight is not None or keep_float(node):
            continue
        read = operands(node, rule)
        if not read or not all(operand in found.tensors for operand in read):
            continue
        if rule.output == "shared":
            found.tensors.setdefault(node, read[0])
        elif rule.output == "quantized":
            found.tensors.setdefault(behind(node, rule), None)


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


def behind(node: fx.Node, rule: QuantRule) -> fx.Node:
    """The node whose output the kernel really writes: the activation folded into it, else the node itself."""
    follower = only_user(node)
    return follower if follower is not None and follower.target in rule.fuses else node


def _constant(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def matcher(patterns: Sequence[str]) -> Callable[[fx.Node], bool]:
    """Whether a node's layer, name or origin matches one of the globs."""
    def matches(node: fx.Node) -> bool:
        names = (layer(node), node.name, str(node.meta.get("custom", {}).get("origin", "")))
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return matches


class TableQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates the placement for torchao and NNCF; `activation` and `weight` are their specs."""

    def __init__(self, placement: Placement, activation: QuantizationSpec, weight: Callable[[int], QuantizationSpec]) -> None:
        self.placement, self.activation, self.weight = placement, activation, weight

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Write the specs into `meta["quantization_annotation"]`."""
        by_name = {n.name: n for n in model.graph.nodes}
        for node in model.graph.nodes:
            node.meta["quantization_annotation"] = QuantizationAnnotation(_annotated=False)
        for node, shared in self.placement.tensors.items():
            spec = self.activation if shared is None else SharedQuantizationSpec(by_name[shared.name])
            by_name[node.name].meta["quantization_annotation"] = QuantizationAnnotation(output_qspec=spec, _annotated=True)
        for reader, (weight, axis) in self.placement.weights.items():
            annotation = by_name[reader.name].meta["quantization_annotation"]
            annotation.input_qspec_map[by_name[weight.name]] = self.weight(axis)
            annotation._annotated = True
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to add: the table is the target's own."""
