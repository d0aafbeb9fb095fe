"""The oracle of ONNX import: the program against ONNX Runtime, and the first node where they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from torch import Tensor

from edgecompile.errors import InputError
from edgecompile.ingest.rules import text_safe
from edgecompile.models._onnx_graph import OnnxModule
from edgecompile.models._onnx_inputs import random_tensor
from edgecompile.models._onnx_values import DTYPES
from edgecompile.program import Program

TOLERANCE = 1e-4
"""Largest difference, over the output's largest magnitude."""

QUANTIZED_TOLERANCE = 1e-2
"""Root mean square difference over the output's, for graphs that round: a tie may fall either way."""

SMALLEST = 1e-2
"""Scale below which differences are absolute: ONNX Runtime's own sigmoid is only good to 1e-7 or so."""

_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")
_COARSE = (torch.float16, torch.bfloat16)


def import_check(
    path: str,
    program: Program,
    seed: int = 0,
    fixed: Mapping[str, float] | None = None,
    module: OnnxModule | None = None,
) -> float:
    """The largest relative error of `program` against ONNX Runtime on random inputs, in every branch.

    A dynamic batch is tried at 1 and 3. Raises `InputError` when ONNX Runtime refuses the model, or the error
    is above the tolerance: with `module`, the line names the first node whose output differs.
    """
    model = onnx.load(path)
    session = _session(path, path)
    rounds = any(n.op_type in _ROUNDING for n in model.graph.node)
    tolerance = QUANTIZED_TOLERANCE if rounds else TOLERANCE
    elements = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    order = [i.name for i in session.get_inputs() if i.name not in (fixed or {})]
    constants = {
        name: np.full(
            _dims(model, name),
            value,
            dtype=_numpy(torch.empty(0, dtype=DTYPES[elements[name]])).dtype,
        )
        for name, value in (fixed or {}).items()
    }
    worst = 0.0
    for given in _trials(model, program, order, elements, seed):
        feed = {name: _numpy(value) for name, value in zip(order, given, strict=True)} | constants
        wanted = _run(path, session, None, feed)
        with torch.no_grad():
            found = program(*given)
        errors = [_error(_numpy(a), b, rounds) for a, b in zip(found, wanted, strict=True)]
        limit = max([tolerance, *(4e-3 if a.dtype == torch.float16 else 3e-2 for a in found if a.dtype in _COARSE)])
        if max(errors) > limit:
            where = _first_difference(path, model, module, feed, limit, rounds) if module is not None else ""
            raise InputError(
                f"{path}: imported operators disagree with ONNX Runtime"
                f" by {max(errors):.1e} of the output's scale{where}"
            )
        worst = max(worst, *errors)
    return worst


def _session(path: str, source: Any, plain: bool = False) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 4
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's classes share no base
        raise InputError(f"{path}: ONNX Runtime refuses the model: {_line(error)}") from error


def _run(path: str, session: Any, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
    try:
        return list(session.run(names, dict(feed)))
    except Exception as error:  # as above
        raise InputError(f"{path}: ONNX Runtime fails on random inputs: {_line(error)}") from error


def _trials(
    model: onnx.ModelProto, program: Program, order: Sequence[str], elements: Mapping[str, int], seed: int
) -> list[tuple[Tensor, ...]]:
    """Inputs to compare on: two distributions, two batches, each value that scalars are compared with."""
    trials: list[tuple[Tensor, ...]] = []
    for kind, batch in (("normal", 1), ("uniform", 3)):
        shapes = [list(t.shape) for t in program.inputs]
        for shape, axes in zip(shapes, program.dynamic_shapes or (), strict=False):
            for axis in axes:
                shape[axis] = batch
        trials.append(
            tuple(
                random_tensor(elements[name], shape, seed + 100 + k, kind)
                for k, (name, shape) in enumerate(zip(order, shapes, strict=True))
            )
        )
    scalars = [i for i, t in enumerate(program.inputs) if t.numel() == 1 and not t.is_floating_point()]
    for value in _compared(model.graph)[:4] if scalars else ():
        trials.append(tuple(torch.full_like(t, value) if i in scalars else t for i, t in enumerate(trials[0])))
    return trials


def _compared(graph: onnx.GraphProto) -> list[int]:
    """Integer constants that the graph compares with: the branches of a mode input (a sample rate, say)."""
    stored = {i.name: i for i in graph.initializer}
    stored |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant" and n.attribute}
    found: list[int] = []
    for node in graph.node:
        for name in node.input if node.op_type in ("Equal", "Less", "Greater") else ():
            proto = stored.get(name)
            if proto is not None and proto.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
                found.extend(int(v) for v in onnx.numpy_helper.to_array(proto).flatten()[:4])
    return sorted(set(found))


def _error(found: Any, wanted: Any, rounds: bool) -> float:
    """Difference over scale; infinite where shapes, types or non-finite values differ."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if not found.size:
        return 0.0
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    a, b = a[finite], b[finite]
    if not a.size:
        return 0.0
    if not np.isfinite(a).all():
        return float("inf")
    size = np.linalg.norm if rounds else lambda v: np.abs(v).max()
    return float(size(a - b) / max(size(b), SMALLEST * (a.size**0.5 if rounds else 1)))


def _first_difference(
    path: str, model: onnx.ModelProto, module: OnnxModule, feed: Mapping[str, Any], limit: float, rounds: bool
) -> str:
    """`: first at node ...`, by comparing every value of the main graph in order."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(onnx.inliner.inline_local_functions(model) if model.functions else model)
    names = [name for node in tapped.graph.node for name in node.output if name]
    present = {o.name for o in tapped.graph.output}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    try:
        wanted = dict(
            zip(names, _run(path, _session(path, tapped.SerializeToString(), True), names, feed), strict=True)
        )
    except (
        InputError,
        ValueError,
    ):  # not every value can be an output; a model of more than 2 GB cannot be tapped
        return ""
    mine = {name: torch.from_numpy(np.array(v)) for name, v in feed.items() if name not in module.held}
    with torch.no_grad():
        found = module.run(mine, names)
    for node in tapped.graph.node:
        for name in node.output:
            value = found.get(name)
            if isinstance(value, Tensor) and _error(_numpy(value), wanted[name], rounds) > limit:
                shown = f"'{text_safe(node.name or name)}' ({text_safe(node.op_type)})"
                return f": first at node {shown}"
    return ": each node agrees by itself, so the error adds up"


def _dims(model: onnx.ModelProto, name: str) -> list[int]:
    value = next(v for v in model.graph.input if v.name == name)
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def _numpy(value: Tensor) -> Any:
    if value.dtype == torch.bfloat16:
        return value.detach().float().numpy()
    return value.detach().numpy()


def _line(error: BaseException) -> str:
    return text_safe(" ".join(str(error).split()), 240)
