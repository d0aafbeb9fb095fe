"""A placement and calibration data to a program with quantize/dequantize nodes, by NNCF or torchao."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx

from edgecompile.passes._placement import Placement, TableQuantizer
from edgecompile.program import Program, attribute
from edgecompile.rewrite import _assign, aten

Q = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class Recipe:
    """How ranges are chosen and integers laid out; see `Quantize`."""

    activation: Literal["u8", "s8"]
    calibration: Literal["min_max", "percentile"]
    reduce_range: bool = False
    bias_correction: bool = True


def calibrated(
    program: Program, placement: Placement, batches: Sequence[tuple[Tensor, ...]], recipe: Recipe
) -> Program:
    """The program with Q/DQ nodes and integer weights; `program` is left as it was."""
    own = program.clone()
    with _quiet(), torch.no_grad():
        graph = _by_nncf(own, placement, batches, recipe)
    quantized = dataclasses.replace(own, graph=fx.GraphModule(graph, graph.graph, class_name="Program"))
    origin = _name_weights(quantized, program)
    return dataclasses.replace(quantized, origin={**program.origin, **origin})


def _specs(recipe: Recipe, observer: Any) -> tuple[Any, Any]:
    from edgecompile.passes._torchao import PerChannelMinMaxObserver, QuantizationSpec

    if recipe.activation == "u8":
        activation = QuantizationSpec(torch.uint8, observer, 0, 255, torch.per_tensor_affine)
    else:
        activation = QuantizationSpec(torch.int8, observer, -128, 127, torch.per_tensor_symmetric)
    limit = 63 if recipe.reduce_range else 127

    def weight(axis: int) -> QuantizationSpec:
        return QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -limit, limit, torch.per_channel_symmetric, axis)

    return activation, weight


def _by_nncf(
    program: Program, placement: Placement, batches: Sequence[tuple[Tensor, ...]], recipe: Recipe
) -> fx.GraphModule:
    os.environ.setdefault("NNCF_CI", "1")  # before the import: nncf looks an analytics host up otherwise
    import nncf
    from nncf.experimental.torch.fx import quantize_pt2e
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    from edgecompile.passes._torchao import MinMaxObserver

    estimator = RangeEstimatorParametersSet.MEAN_QUANTILE if recipe.calibration == "percentile" else None
    quantizer = TableQuantizer(placement, *_specs(recipe, MinMaxObserver))
    data = nncf.Dataset([b[0] if len(b) == 1 else b for b in batches])
    graph = quantize_pt2e(
        program.graph,
        quantizer,
        data,
        subset_size=len(batches),
        fast_bias_correction=True if recipe.bias_correction else None,
        activations_range_estimator_params=copy.deepcopy(estimator),
    )
    return cast(fx.GraphModule, graph)


def _name_weights(quantized: Program, source: Program) -> dict[str, str]:
    """Give the integer weights the names of the float weights they came from, and say so in the provenance."""
    floats = {n.name: n for n in source.graph.graph.nodes}
    origin: dict[str, str] = {}
    graph = quantized.graph
    for node in graph.graph.nodes:
        if node.target not in (Q.dequantize_per_channel.default, Q.dequantize_per_tensor.default):
            continue
        stored = node.args[0]
        reader = next((u for u in node.users if u.name in floats), None)
        if not isinstance(stored, fx.Node) or stored.op != "get_attr" or reader is None:
            continue
        position = next((i for i, a in enumerate(reader.args) if a is node), None)
        was = floats[reader.name].args[position] if position is not None else None
        if not isinstance(was, fx.Node) or was.op != "get_attr":
            continue
        for part, suffix in ((stored, "int8"), (node.args[1], "scale"), (node.args[2], "zero_point")):
            if isinstance(part, fx.Node) and part.op == "get_attr":
                name = f"{was.target}_{suffix}"
                _rename(graph, part, name)
                origin[name] = source.origin.get(str(was.target), str(was.target))
    for node in graph.graph.nodes:  # NNCF's corrected biases
        before = floats.get(node.name)
        if before is None or node.op != "call_function" or len(node.args) < 3 or len(before.args) < 3:
            continue
        now, was = node.args[2], before.args[2]
        if node.target in (aten.conv1d.default, aten.conv2d.default, aten.linear.default) and isinstance(now, fx.Node):
            old = str(was.target) if isinstance(was, fx.Node) and was.op == "get_attr" else None
            if old is not None and now.op == "get_attr" and now.target != old:
                _rename(graph, now, f"{old}_corrected")
                origin[f"{old}_corrected"] = source.origin.get(old, old)
    return origin


def _rename(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    _assign(graph, name, attribute(graph, str(node.target)).detach())
    node.target = name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and warnings of the calibration libraries off the user's terminal."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
