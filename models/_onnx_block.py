"""ONNX protobuf to plain data: the nodes of a graph and its subgraphs with their attributes decoded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, NodeProto

from edgecompile.models._onnx_ops import CONTROL, NEWEST, OLDEST, OPS, Op
from edgecompile.models._onnx_values import Keeper, Known, Node, Refusal, to_tensor

_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Step:
    """One node to run; `op` is None for control flow, `refused` says why it cannot be imported at all."""

    node: Node
    op: Op | None
    path: str
    blocks: Mapping[str, Block]
    refused: str = ""


@dataclass(frozen=True)
class Block:
    """A graph or subgraph: names of inputs and outputs, stored values, steps in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    known: Mapping[str, Known]
    steps: tuple[Step, ...]

    def walk(self) -> Iterator[Step]:
        """Every step, those of subgraphs included."""
        for step in self.steps:
            yield step
            for block in step.blocks.values():
                yield from block.walk()


def read(graph: GraphProto, opset: int, keeper: Keeper, reasons: list[str]) -> Block:
    """The block of a graph; what its stored values cannot be is added to `reasons`."""
    return _block(graph, opset, keeper, reasons, Counter())


def _block(graph: GraphProto, opset: int, keeper: Keeper, reasons: list[str], taken: Counter[str]) -> Block:
    known: dict[str, Known] = {}
    for proto in graph.initializer:
        try:
            tensor = to_tensor(proto)
        except Refusal as refusal:
            reasons.append(f"initializer '{proto.name}': {refusal}")
            continue
        known[proto.name] = Known(tensor, proto.name, weight=tensor.is_floating_point() and tensor.dim() > 0)
    if graph.sparse_initializer:
        reasons.append(f"graph '{graph.name}': sparse initializers are not supported")
    inputs = tuple(v.name for v in graph.input if v.name not in known)
    steps = tuple(_step(proto, opset, keeper, reasons, taken) for proto in graph.node)
    return Block(inputs, tuple(v.name for v in graph.output), known, steps)


def _step(proto: NodeProto, opset: int, keeper: Keeper, reasons: list[str], taken: Counter[str]) -> Step:
    name = proto.name or next((o for o in proto.output if o), proto.op_type)
    refused, attributes, blocks = "", {}, {}
    for attribute in proto.attribute:
        if attribute.type == AttributeProto.GRAPH:
            blocks[attribute.name] = _block(attribute.g, opset, keeper, reasons, taken)
            continue
        try:
            attributes[attribute.name] = _value(attribute)
        except Refusal as refusal:
            refused = str(refusal)
    domain = "" if proto.domain in _DOMAINS else proto.domain
    node = Node(name, proto.op_type, domain, opset, attributes, tuple(proto.input), tuple(proto.output), keeper)
    op = None if domain else OPS.get(proto.op_type)
    if domain:
        refused = f"operators of the domain '{domain}' are not known"
    elif op is None and proto.op_type not in CONTROL:
        known = onnx.defs.has(proto.op_type)
        refused = "no importer for this operator" if known else "no such operator in ONNX"
    return Step(node, op, _path(name, taken), blocks, refused or _too_new(proto.op_type, opset))


def _too_new(op: str, opset: int) -> str:
    """Opsets beyond the newest known are fine for operators that did not change."""
    if OLDEST <= opset <= NEWEST:
        return ""
    try:
        since = onnx.defs.get_schema(op, opset).since_version
    except onnx.defs.SchemaError:
        return f"not in opset {opset}"
    return f"changed in opset {since}, and only opsets up to {NEWEST} are known" if since > NEWEST else ""


def _value(attribute: AttributeProto) -> Any:
    match attribute.type:
        case AttributeProto.TENSOR:
            return to_tensor(attribute.t)
        case AttributeProto.STRING:
            return attribute.s.decode("utf-8", "replace")
        case AttributeProto.STRINGS:
            return [s.decode("utf-8", "replace") for s in attribute.strings]
        case AttributeProto.FLOAT | AttributeProto.INT:
            return onnx.helper.get_attribute_value(attribute)
        case AttributeProto.FLOATS | AttributeProto.INTS:
            return list(onnx.helper.get_attribute_value(attribute))
        case _:
            raise Refusal(f"its attribute '{attribute.name}' is of a kind that is not supported")


def dotted(name: str) -> str:
    """A foreign name as a dotted path of identifiers: `/encoder/0/Conv` becomes `encoder.0.Conv`."""
    parts = re.split(r"[/.]|::", name)
    words = (re.sub(r"\W", "_", part, flags=re.ASCII)[:100] for part in parts)
    return ".".join(word for word in words if word) or "unnamed"


def _path(name: str, taken: Counter[str]) -> str:
    path = dotted(name)
    taken[path] += 1
    return path if taken[path] == 1 else f"{path}_{taken[path]}"
