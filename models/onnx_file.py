"""An ONNX file as a Program: read node by node in a child process and compared there with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.errors import InputError, Unsupported
from edgecompile.ingest.rules import text_safe

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto
    from torch import Tensor

    from edgecompile.models._onnx_graph import OnnxModule
    from edgecompile.models._onnx_inputs import Input
    from edgecompile.program import Program

EXAMPLE_BATCH = 2
"""Example size of a dynamic batch: torch.export silently fixes one of 1."""


def parse(
    path: str,
    out: str | Path,
    inputs: Mapping[str, Sequence[int] | None] | None = None,
    seed: int = 0,
    fixed: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Import a vetted `.onnx` file and save it as a Program in `out`; for `parse_in_child("onnx", ...)`.

    `inputs` gives sizes that the file leaves open (the first axis is the batch and stays dynamic where the
    graph allows it); `fixed` turns inputs into constants, so that branches on them disappear. Raises
    `InputError` when the file is no valid model, sizes are missing, or ONNX Runtime refuses it or computes
    something else; `Unsupported` lists every node that cannot be imported.
    """
    from edgecompile import program_file
    from edgecompile.models._onnx_check import import_check

    model = load(path)
    opset = opset_of(path, model)
    with _one_thread():
        program, module = imported(path, model, opset, inputs or {}, seed, fixed or {})
        error = import_check(path, program, seed, fixed or {}, module)
    producer = text_safe(f"{model.producer_name} {model.producer_version}".strip() or "unknown")
    folded = len(module.folded_nodes)
    notes = (
        f"ONNX opset {opset}, written by {producer}; {folded} nodes computed at import",
        f"agrees with ONNX Runtime to {error:.1e} of the output's scale",
        *module.notes.values(),
    )
    program_file.save(replace(program, notes=(*program.notes, *notes)), Path(out))
    return {"notes": [*program.notes, *notes], "relative_error": error}


def load(path: str) -> ModelProto:
    """Read and check a model, its functions inlined; raises `InputError` or `Unsupported`."""
    import onnx
    import onnx.inliner
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path)
    except (DecodeError, SystemError) as error:
        raise InputError(f"{path}: not an ONNX model, truncated or corrupt") from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: cannot be read: {_line(error)}") from error
    if not model.graph.node and not model.graph.output:
        raise InputError(f"{path}: not an ONNX model: it has no graph")
    opset_of(path, model)
    _refuse_unknown(path, model)
    try:
        onnx.checker.check_model(path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise InputError(f"{path}: not a valid ONNX model: {_line(error)}") from error
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return model


def opset_of(path: str, model: ModelProto) -> int:
    """The version of ai.onnx that the file is written in; `Unsupported` for one that is not known here."""
    from edgecompile.models._onnx_ops import NEWEST, OLDEST

    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if not versions:
        raise InputError(f"{path}: it does not import the operator set ai.onnx")
    if not OLDEST <= versions[0] <= NEWEST:
        raise Unsupported(path, [f"opset {versions[0]} of ai.onnx: opsets {OLDEST} to {NEWEST} are known"])
    return int(versions[0])


def _refuse_unknown(path: str, model: ModelProto) -> None:
    """List every node whose operator nobody defines; refuse functions that call themselves."""
    import onnx

    functions = {(f.domain, f.name): f for f in model.functions}
    reasons: list[str] = []

    def visit(nodes: Sequence[Any], version: int) -> set[tuple[str, str]]:
        called: set[tuple[str, str]] = set()
        for node in nodes:
            domain = "" if node.domain == "ai.onnx" else node.domain
            if (domain, node.op_type) in functions:
                called.add((domain, node.op_type))
            elif domain or not onnx.defs.has(node.op_type):
                name = text_safe(node.name or next(iter(node.output), ""))
                kind = f"{text_safe(domain)}.{text_safe(node.op_type)}" if domain else text_safe(node.op_type)
                why = (
                    f"operators of the domain '{text_safe(domain)}' are not known"
                    if domain
                    else "no such operator in ONNX"
                )
                reasons.append(f"node '{name}' ({kind}, opset {version}): {why}")
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    called |= visit(attribute.g.node, version)
        return called

    version = opset_of(path, model)
    visit(model.graph.node, version)
    calls = {key: visit(f.node, version) for key, f in functions.items()}
    for start in calls:
        reached, todo = set(), list(calls[start])
        while todo:
            if (key := todo.pop()) not in reached:
                reached.add(key)
                todo.extend(calls[key])
        if start in reached:
            raise InputError(f"{path}: the function '{text_safe(start[1])}' calls itself")
    if reasons:
        raise Unsupported(path, reasons)


def imported(
    path: str,
    model: ModelProto,
    opset: int,
    sizes: Mapping[str, Sequence[int] | None],
    seed: int = 0,
    fixed: Mapping[str, float] | None = None,
) -> tuple[Program, OnnxModule]:
    """The captured program and the module that it was captured from; not yet compared with ONNX Runtime."""
    from edgecompile.models._onnx_inputs import batch_is_first, check_given, graph_inputs, held_constant

    every = graph_inputs(path, model)
    held = held_constant(path, every, fixed or {})
    free = [i for i in every if i.name not in held]
    if not free:
        raise InputError(f"{path}: the model has no inputs left to run on")
    check_given(path, free, sizes)

    def captured(batch: int | None) -> tuple[Program, OnnxModule]:
        return _captured(path, model.graph, opset, free, held, sizes, batch, seed)

    if not batch_is_first(free):
        return captured(None)
    try:
        program, module = captured(EXAMPLE_BATCH)
        if program.batch is None:
            return program, module
        notes = program.notes
    except Unsupported as refusal:
        notes = (f"static batch: the model does not import with a dynamic one ({refusal.reasons[0]})",)
    program, module = captured(None)
    return replace(program, notes=notes), module


def _captured(
    path: str,
    graph: GraphProto,
    opset: int,
    inputs: Sequence[Input],
    held: Mapping[str, Tensor],
    sizes: Mapping[str, Sequence[int] | None],
    batch: int | None,
    seed: int,
) -> tuple[Program, OnnxModule]:
    """Capture with `batch` as the example of a dynamic one, or static; `Unsupported` lists every node refused."""
    from edgecompile.models._onnx_graph import OnnxModule
    from edgecompile.models._onnx_inputs import random_tensor, shapes_for
    from edgecompile.models._onnx_values import Refusal
    from edgecompile.program import Program

    shapes = shapes_for(path, inputs, sizes, batch)
    examples = {i.name: random_tensor(i.element, shapes[i.name], seed + k) for k, i in enumerate(inputs)}
    module = OnnxModule(graph, opset, held)
    if reasons := module.prepare(examples):
        raise Unsupported(path, reasons)
    named = {own: examples[name] for own, name in module.names.items()}
    try:
        return Program.capture(module, named, dynamic_batch=batch is not None), module
    except Refusal as refusal:
        raise Unsupported(path, [str(refusal)]) from refusal


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: small tensors gain nothing from more, and sums come out in one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text_safe(text, 240) or type(error).__name__
