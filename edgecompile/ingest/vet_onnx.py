"""Vet an ONNX file on its bytes: nesting, node count, declared sizes, external data, duplicate names.

Field numbers are those of onnx/onnx.proto. Nothing is executed or built; what the operators mean is left to
the importer, and loops whose trip count is computed are left to the child's wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgecompile.errors import InputError
from edgecompile.ingest.external_data import ExternalFiles
from edgecompile.ingest.limits import Gate, Vetted
from edgecompile.ingest.onnx_growth import Scope, expansion, growth
from edgecompile.ingest.onnx_tensor import Tensor, read_tensor
from edgecompile.ingest.protobuf import BYTES, VARINT, Span, Walker, signed
from edgecompile.ingest.rules import corrupt, text_safe
from edgecompile.ingest.source import Source

MAX_OPSET, MAX_IR = 50, 20
"""Beyond any version that onnx 1.23 knows (28 and 14); larger numbers are damage or an attack."""

_PROTOBUF_LIMIT = (1 << 31) - 1


@dataclass
class _Model:
    """What has been seen of the model so far."""

    gate: Gate
    walker: Walker
    external: ExternalFiles
    nodes: int = 0
    elements: int = 0
    declared_bytes: int = 0
    domains: set[str] = field(default_factory=set)
    calls: dict[str, dict[str, int]] = field(default_factory=dict)
    own_nodes: dict[str, int] = field(default_factory=dict)


def vet_onnx(source: Source, gate: Gate) -> Vetted:
    """Vet an ONNX model and its external files."""
    if source.size > _PROTOBUF_LIMIT:
        raise InputError(
            f"{source.where}: larger than 2 GB, which protobuf cannot hold; save its weights as external data"
        )
    walker = Walker(source)
    model = _Model(gate, walker, ExternalFiles(gate, source))
    graphs: list[Span] = []
    functions: list[Span] = []
    opsets: list[Span] = []
    ir_version = 0
    for number, wire, value, end in walker.fields(Span(0, source.size)):
        match number, wire:
            case 1, 0:
                ir_version = signed(value)
            case 7, 2:
                graphs.append(Span(value, end))
            case 8, 2:
                opsets.append(Span(value, end))
            case 20, 2:
                raise InputError(f"{source.where}: it holds training information; export it for inference")
            case 25, 2:
                functions.append(Span(value, end))
            case 1 | 7 | 8 | 20 | 25, _:
                raise corrupt(source.where, "not an ONNX model")
    if len(graphs) != 1:
        raise corrupt(source.where, f"{len(graphs)} graphs in it, one is expected")
    _versions(model, ir_version, opsets)
    known: set[str] = set()
    for span in functions:
        _function(model, span, known)
    _graph(model, graphs[0], Scope(""), 1)
    expansion(gate, model.calls, model.own_nodes)
    files = model.external.finish()
    if model.domains:
        gate.notes.append("operators of " + ", ".join(text_safe(domain) for domain in sorted(model.domains)[:5]))
    return gate.vetted("onnx", model.declared_bytes, files)


def _versions(model: _Model, ir_version: int, opsets: list[Span]) -> None:
    where = model.gate.where
    if not 1 <= ir_version <= MAX_IR:
        raise InputError(f"{where}: IR version {ir_version} is not known; export it with onnx 1.21 or later")
    default = None
    for span in opsets:
        text, version = _opset(model, span)
        if text in ("", "ai.onnx"):
            default = version
            if not 1 <= version <= MAX_OPSET:
                raise InputError(f"{where}: opset {version} is not known; export it with opset 11 to 28")
    if default is None and ir_version >= 3:
        raise InputError(f"{where}: no opset is declared; export it again with torch.onnx.export")


def _opset(model: _Model, span: Span) -> tuple[str, int]:
    domain, version = "", 0
    for number, wire, value, end in model.walker.fields(span):
        if number == 1 and wire == BYTES:
            domain = _text(model, value, end)
        elif number == 2 and wire == VARINT:
            version = signed(value)
    return domain, version


def _text(model: _Model, start: int, end: int) -> str:
    model.gate.at_most("EC-IN-009", "bytes of a name", "name_length", end - start)
    try:
        return model.walker.bytes(start, end).decode()
    except UnicodeDecodeError as error:
        raise corrupt(model.gate.where, "a name is not UTF-8") from error


def _function(model: _Model, span: Span, known: set[str]) -> None:
    name = domain = ""
    nodes: list[Span] = []
    for number, wire, value, end in model.walker.fields(span):
        match number, wire:
            case 1, 2:
                name = _text(model, value, end)
            case 10, 2:
                domain = _text(model, value, end)
            case 7, 2:
                nodes.append(Span(value, end))
    key = f"{domain}:{name}"
    if key in known:
        raise InputError(f"{model.gate.where}: function '{text_safe(name)}' is defined twice; export the model again")
    known.add(key)
    scope = Scope(key)
    for node in nodes:
        _node(model, node, scope, 1)


def _graph(model: _Model, span: Span, scope: Scope, depth: int) -> None:
    """One graph: its initialisers first (nodes refer to their values), then its nodes in order."""
    model.gate.at_most("EC-IN-006", "levels of graphs", "depth", depth)
    nodes: list[Span] = []
    inputs: set[str] = set()
    stored: set[str] = set()
    for number, wire, value, end in model.walker.fields(span):
        match number, wire:
            case 1, 2:
                nodes.append(Span(value, end))
                model.gate.at_most("EC-IN-005", "nodes", "nodes", model.nodes + len(nodes))
            case 5, 2:
                tensor = _tensor(model, Span(value, end), scope)
                _once(model, stored, tensor.name, "initializer")
            case 15, 2:
                _sparse(model, Span(value, end), scope)
            case 11, 2:
                _once(model, inputs, _value_name(model, Span(value, end)), "graph input")
            case 1 | 5 | 11 | 15, _:
                raise corrupt(model.gate.where, "not an ONNX graph")
    scope.made |= inputs | stored
    for node in nodes:
        _node(model, node, scope, depth)


def _once(model: _Model, seen: set[str], name: str, what: str) -> None:
    if name in seen and name:
        raise InputError(f"{model.gate.where}: {what} '{text_safe(name)}' is defined twice; export the model again")
    seen.add(name)


def _value_name(model: _Model, span: Span) -> str:
    name = ""
    for number, wire, value, end in model.walker.fields(span):
        if number == 1 and wire == BYTES:
            name = _text(model, value, end)
    return name


def _tensor(model: _Model, span: Span, scope: Scope) -> Tensor:
    tensor = read_tensor(model.walker, span, model.gate, model.external)
    model.elements += tensor.elements
    model.gate.at_most("EC-IN-007", "elements in all tensors", "elements", model.elements)
    model.declared_bytes += tensor.size_bytes
    scope.elements[tensor.name] = tensor.elements
    if tensor.values is not None:
        scope.constants[tensor.name] = tensor.values
    return tensor


def _sparse(model: _Model, span: Span, scope: Scope) -> None:
    dense = 1
    for number, wire, value, end in model.walker.fields(span):
        if number in (1, 2) and wire == BYTES:
            _tensor(model, Span(value, end), scope)
        elif number == 3:
            for size in model.walker.numbers(wire, value, end, 64):
                dense *= max(size, 0)
                model.gate.at_most("EC-IN-007", "elements in a sparse tensor", "elements", dense)


def _node(model: _Model, span: Span, scope: Scope, depth: int) -> None:
    model.nodes += 1
    model.gate.at_most("EC-IN-005", "nodes", "nodes", model.nodes)
    model.own_nodes[scope.body] = model.own_nodes.get(scope.body, 0) + 1
    inputs: list[str] = []
    outputs: list[str] = []
    operator = domain = ""
    constant: Tensor | None = None
    numbers: tuple[int, ...] | None = None
    for number, wire, value, end in model.walker.fields(span):
        match number, wire:
            case 1, 2:
                inputs.append(_text(model, value, end))
            case 2, 2:
                outputs.append(_text(model, value, end))
            case 4, 2:
                operator = _text(model, value, end)
            case 5, 2:
                found, listed = _attribute(model, Span(value, end), scope, depth)
                constant, numbers = found or constant, listed or numbers
            case 7, 2:
                domain = _text(model, value, end)
            case 1 | 2 | 4 | 5 | 7, _:
                raise corrupt(model.gate.where, "not an ONNX node")
    for name in outputs:
        _once(model, scope.made, name, "node output")
    if domain not in ("", "ai.onnx"):
        model.domains.add(domain)
    calls = model.calls.setdefault(scope.body, {})
    callee = f"{domain}:{operator}"
    calls[callee] = calls.get(callee, 0) + 1
    if operator == "Constant" and outputs:
        if constant is not None:
            scope.elements[outputs[0]] = constant.elements
        values = constant.values if constant is not None else numbers
        if values is not None:
            scope.constants[outputs[0]] = values
    growth(model.gate, operator, inputs, outputs, scope)


def _attribute(model: _Model, span: Span, scope: Scope, depth: int) -> tuple[Tensor | None, tuple[int, ...] | None]:
    """Vet the graphs and tensors of an attribute; its tensor or its integers."""
    tensor: Tensor | None = None
    numbers: list[int] = []
    graphs = 0
    for number, wire, value, end in model.walker.fields(span):
        match number, wire:
            case 5 | 10, 2:
                tensor = _tensor(model, Span(value, end), scope)
            case 6 | 11, 2:
                graphs += number == 6
                if graphs > 1:
                    raise corrupt(model.gate.where, "two graphs in one attribute")
                # A subgraph sees the names around it and may reuse none of them; what it adds is its own.
                inner = Scope(scope.body, set(), scope.constants.new_child(), scope.elements.new_child())
                _graph(model, Span(value, end), inner, depth + 1)
            case 22 | 23, 2:
                _sparse(model, Span(value, end), scope)
            case 8, _ if len(numbers) < 64:
                numbers += model.walker.numbers(wire, value, end, 64)
            case 5 | 6 | 10 | 11 | 22 | 23, _:
                raise corrupt(model.gate.where, "not an ONNX attribute")
    return tensor, tuple(numbers) or None
