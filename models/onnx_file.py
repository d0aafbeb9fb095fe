"""An ONNX file as a Program: read node by node in a child process and compared there with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.errors import InputError, Unsupported, near
from edgecompile.ingest.rules import text_safe

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor

    from edgecompile.models._onnx_graph import OnnxModule
    from edgecompile.program import Program

EXAMPLE_BATCH = 2
"""Example size of a dynamic batch: torch.export silently fixes one of 1."""


@dataclass(frozen=True)
class Input:
    """One graph input: its ONNX element type and its sizes, open ones by their symbol (`""` when unnamed)."""

    name: str
    element: int
    sizes: tuple[int | str, ...]

    @property
    def open(self) -> bool:
        """True when the first axis may take any size."""
        return bool(self.sizes) and isinstance(self.sizes[0], str)

    def __str__(self) -> str:
        sizes = ", ".join(text_safe(str(size)) if size != "" else "?" for size in self.sizes)
        return f"'{text_safe(self.name)}' [{sizes}]"


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
    from edgecompile.models._onnx_graph import OnnxModule
    from edgecompile.models._onnx_values import Refusal
    from edgecompile.program import Program

    every = graph_inputs(path, model)
    held = _fixed(path, every, fixed or {})
    free = [i for i in every if i.name not in held]
    if not free:
        raise InputError(f"{path}: the model has no inputs left to run on")
    _check_given(path, free, sizes)
    dynamic = all(i.open for i in free)

    def module_for(batch: int | None) -> tuple[OnnxModule, dict[str, Tensor]]:
        shapes = _shapes(path, free, sizes, batch)
        examples = {i.name: random_tensor(i.element, shapes[i.name], seed + k) for k, i in enumerate(free)}
        module = OnnxModule(model.graph, opset, held)
        if reasons := module.prepare(examples):
            raise Unsupported(path, reasons)
        named = {own: examples[name] for own, name in module.names.items()}
        return module, named

    try:
        module, examples = module_for(EXAMPLE_BATCH if dynamic else None)
        program = Program.capture(module, examples, dynamic_batch=dynamic)
        if dynamic and program.batch is not None:
            note = program.notes
            module, examples = module_for(None)
            program = replace(Program.capture(module, examples, dynamic_batch=False), notes=note)
    except Refusal as refusal:
        raise Unsupported(path, [str(refusal)]) from refusal
    return program, module


def graph_inputs(path: str, model: ModelProto) -> list[Input]:
    """The inputs that a caller gives; `Unsupported` lists those that are no tensors of a known type."""
    from edgecompile.models._onnx_values import DTYPES

    stored = {i.name for i in model.graph.initializer}
    found, reasons = [], []
    for value in model.graph.input:
        if value.name in stored:
            continue
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or tensor.elem_type not in DTYPES:
            reasons.append(f"input '{text_safe(value.name)}': not a tensor of a supported element type")
        elif not tensor.HasField("shape"):
            reasons.append(f"input '{text_safe(value.name)}': the file does not say how many axes it has")
        else:
            sizes = tuple(d.dim_value if d.dim_value > 0 else d.dim_param for d in tensor.shape.dim)
            found.append(Input(value.name, tensor.elem_type, sizes))
    if reasons:
        raise Unsupported(path, reasons)
    return found


def _fixed(path: str, inputs: Sequence[Input], fixed: Mapping[str, float]) -> dict[str, Tensor]:
    import torch

    from edgecompile.models._onnx_values import DTYPES

    by_name = {i.name: i for i in inputs}
    held = {}
    for name, value in fixed.items():
        if name not in by_name:
            raise InputError(f"{path}: no input '{text_safe(name)}' to fix{near(name, by_name)}")
        if any(isinstance(s, str) for s in by_name[name].sizes):
            raise InputError(f"{path}: input {by_name[name]} cannot be fixed: its sizes are open")
        shape = [int(size) for size in by_name[name].sizes]
        held[name] = torch.full(shape, value, dtype=DTYPES[by_name[name].element])
    return held


def _check_given(path: str, inputs: Sequence[Input], given: Mapping[str, Sequence[int] | None]) -> None:
    by_name = {i.name: i for i in inputs}
    for name, sizes in given.items():
        if name not in by_name:
            raise InputError(f"{path}: no input '{text_safe(name)}'{near(name, by_name)}")
        own = by_name[name]
        if sizes is None:
            continue
        shown = "x".join(map(str, sizes))
        fits = len(sizes) == len(own.sizes) and all(
            isinstance(o, str) or o == s for o, s in zip(own.sizes, sizes, strict=True)
        )
        if not fits or any(s < 1 for s in sizes):
            raise InputError(f"{path}: input {own} cannot have the sizes {shown}")


def _shapes(
    path: str, inputs: Sequence[Input], given: Mapping[str, Sequence[int] | None], batch: int | None
) -> dict[str, list[int]]:
    """Sizes for every input; `batch`, when given, for open first axes and all axes of the same symbol."""
    batches = {i.sizes[0] for i in inputs if i.open} - {""}
    shapes, missing = {}, []
    for own in inputs:
        sizes = given.get(own.name) or own.sizes
        shape: list[Any] = []
        for axis, (size, declared) in enumerate(zip(sizes, own.sizes, strict=True)):
            is_batch = isinstance(declared, str) and (
                axis == 0 or declared in batches or declared.lower() in _BATCHES
            )
            if is_batch and (batch is not None or isinstance(size, str)):
                shape.append(batch or 1)
            else:
                shape.append(size)
        if any(isinstance(s, str) for s in shape):
            missing.append((own, "x".join(str(s) if isinstance(s, int) else "N" for s in shape)))
        shapes[own.name] = shape
    if missing:
        what = "; ".join(str(own) for own, _ in missing)
        flags = " ".join(f"--input {text_safe(own.name)}={shape}" for own, shape in missing)
        raise InputError(f"{path}: sizes that the file leaves open: {what}; give numbers for N: {flags}")
    return shapes


_BATCHES = ("batch", "batch_size", "batchsize", "n", "b", "none")
"""Symbols that mean a batch on whichever axis they stand."""


def random_tensor(element: int, shape: Sequence[int], seed: int, kind: str = "normal") -> Tensor:
    """A random input: normal or uniform floats, small integers, fair bits."""
    import torch

    from edgecompile.models._onnx_values import DTYPES

    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[element]
    if dtype.is_floating_point:
        make = torch.randn if kind == "normal" else torch.rand
        return make(list(shape), generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 4, list(shape), generator=generator).to(dtype)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text_safe(text, 240) or type(error).__name__
