"""A placement and calibration data to a program with quantize/dequantize nodes, by NNCF or torchao."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx

from edgecompile.passes._bias import correct_bias
from edgecompile.passes._placement import Placement, TableQuantizer
from edgecompile.program import Program, attribute
from edgecompile.rewrite import _assign, add_weight, weight
from edgecompile.silence import silenced

Calibration = Literal["min_max", "percentile", "mse", "entropy"]
Q = torch.ops.quantized_decomposed
_WHOLE, _REDUCED = 127, 63
CORRECTED_ON = 32
_BATCH = 4


@dataclass(frozen=True)
class Recipe:
    """How ranges are chosen and integers laid out; see `Quantize`."""

    activation: Literal["u8", "s8"]
    calibration: Calibration
    reduce_range: bool = False
    bias_correction: bool = True


def calibrated(
    program: Program,
    placement: Placement,
    batches: Sequence[tuple[Tensor, ...]],
    recipe: Recipe,
    per_tensor: frozenset[str] = frozenset(),
) -> Program:
    """The program with Q/DQ nodes and integer weights; `program` is left as it was.

    The weights of the nodes named in `per_tensor` get one scale, all others one an output channel.
    """
    own = program.clone()
    with silenced("nncf", "torchao", "torch.utils._pytree", stdout=True), torch.no_grad():
        if recipe.calibration in ("min_max", "percentile"):
            graph = _by_nncf(own, placement, batches, recipe)
        else:
            graph = _by_torchao(own, placement, batches, recipe)
    quantized = dataclasses.replace(own, graph=fx.GraphModule(graph, graph.graph, class_name="Program"))
    origin = _name_weights(quantized, program)
    quantized = dataclasses.replace(quantized, origin={**program.origin, **origin})
    limit = _REDUCED if recipe.reduce_range else _WHOLE
    for reader, place in placement.weights.items():
        _lay_weight(quantized, program, reader, place, limit, reader.name in per_tensor)
    if recipe.bias_correction:
        correct_bias(program, quantized, placement, leading(batches, CORRECTED_ON))
    return quantized


def small(batches: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """The same samples in batches of at most 4: memory grows with the batch, time does not shrink with it."""
    return [
        tuple(t[at : at + _BATCH] for t in batch)
        for batch in batches
        for at in range(0, int(batch[0].shape[0]) if batch and batch[0].dim() else 1, _BATCH)
    ]


def leading(batches: Sequence[tuple[Tensor, ...]], samples: int) -> list[tuple[Tensor, ...]]:
    """The leading batches that hold `samples` samples."""
    chosen: list[tuple[Tensor, ...]] = []
    for batch in batches:
        if sum(int(b[0].shape[0]) for b in chosen) >= samples:
            break
        chosen.append(batch)
    return chosen


def _specs(recipe: Recipe, observer: Any) -> tuple[Any, Any]:
    from edgecompile.passes._torchao import PerChannelMinMaxObserver, QuantizationSpec

    if recipe.activation == "u8":
        activation = QuantizationSpec(torch.uint8, observer, 0, 255, torch.per_tensor_affine)
    else:
        activation = QuantizationSpec(torch.int8, observer, -128, 127, torch.per_tensor_symmetric)

    def weight(axis: int) -> QuantizationSpec:
        scheme = torch.per_channel_symmetric
        return QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -_WHOLE, _WHOLE, scheme, axis)

    return activation, weight


def _by_nncf(
    program: Program, placement: Placement, batches: Sequence[tuple[Tensor, ...]], recipe: Recipe
) -> fx.GraphModule:
    os.environ.setdefault("NNCF_CI", "1")  # before the import: nncf looks an analytics host up otherwise
    import nncf
    from nncf.experimental.torch.fx import quantize_pt2e
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    from edgecompile.passes._torchao import MinMaxObserver

    # named, because NNCF's own choice is the mean of the batches' extremes: it would depend on the size of a batch
    ranges = RangeEstimatorParametersSet
    estimator = ranges.MEAN_QUANTILE if recipe.calibration == "percentile" else ranges.MINMAX
    quantizer = TableQuantizer(placement, *_specs(recipe, MinMaxObserver))
    data = nncf.Dataset([b[0] if len(b) == 1 else b for b in batches])
    graph = quantize_pt2e(
        program.graph,
        quantizer,
        data,
        subset_size=len(batches),
        fast_bias_correction=None,
        activations_range_estimator_params=copy.deepcopy(estimator),
    )
    return cast(fx.GraphModule, graph)


def _by_torchao(
    program: Program, placement: Placement, batches: Sequence[tuple[Tensor, ...]], recipe: Recipe
) -> fx.GraphModule:
    from edgecompile.passes._observers import HistogramObserver
    from edgecompile.passes._torchao import convert_pt2e, prepare_pt2e

    observer = HistogramObserver.with_args(method=recipe.calibration)
    prepared = prepare_pt2e(program.graph, TableQuantizer(placement, *_specs(recipe, observer)))
    for batch in batches:
        prepared(*batch)
    return cast(fx.GraphModule, convert_pt2e(prepared))


def _lay_weight(
    quantized: Program, source: Program, reader: fx.Node, weight_of: tuple[fx.Node, int], limit: int, per_tensor: bool
) -> None:
    """Quantize a weight again, from the float one, to [-limit, limit].

    Neither library keeps to the range it is asked for; NNCF takes one bit from the first layer whatever the CPU, and
    gives weights that are nowhere negative a zero point.
    """
    node, axis = weight_of
    value = weight(source, node)
    twin = next(n for n in quantized.graph.graph.nodes if n.name == reader.name)
    assert value is not None
    dequantize = _dequantize(quantized, source, twin, list(reader.args).index(node), node, axis)
    stored, scales, zeros = cast("tuple[fx.Node, fx.Node, fx.Node]", dequantize.args[:3])
    others = list(range(value.dim())) if per_tensor else [d for d in range(value.dim()) if d != axis]
    smallest = torch.finfo(torch.float32).eps
    scale = (value.detach().abs().amax(others, keepdim=True) / limit).clamp(min=smallest)
    integers = (value.detach() / scale).round().clamp(-limit, limit).to(torch.int8)
    _assign(quantized.graph, str(stored.target), integers)
    if not per_tensor:
        _assign(quantized.graph, str(scales.target), scale.flatten())
        _assign(quantized.graph, str(zeros.target), torch.zeros(scale.numel(), dtype=torch.int8))
        return
    graph = quantized.graph.graph
    with graph.inserting_after(dequantize):
        one = graph.call_function(
            Q.dequantize_per_tensor.default, (stored, scale.item(), 0, -_WHOLE, _WHOLE, torch.int8)
        )
    one.meta = dict(dequantize.meta)
    dequantize.replace_all_uses_with(one)
    graph.erase_node(dequantize)


def _dequantize(
    quantized: Program, source: Program, twin: fx.Node, position: int, weight_node: fx.Node, axis: int
) -> fx.Node:
    """The node that restores a layer's weight; a new one where NNCF has forgotten a reader of a tied weight."""
    found = twin.args[position]
    assert isinstance(found, fx.Node)
    if found.op != "get_attr":
        return found
    name, value = str(weight_node.target), attribute(quantized.graph, str(found.target))
    channels = value.shape[axis]
    stored = {
        "int8": torch.zeros(value.shape, dtype=torch.int8),
        "scale": torch.ones(channels),
        "zero_point": torch.zeros(channels, dtype=torch.int8),
    }
    origin = source.origin.get(name, name)
    parts = [add_weight(quantized, f"{name}_{word}", part, twin, origin) for word, part in stored.items()]
    with quantized.graph.graph.inserting_before(twin):
        restored = quantized.graph.graph.call_function(
            Q.dequantize_per_channel.default, (*parts, axis, -_WHOLE, _WHOLE, torch.int8)
        )
    restored.meta["val"] = weight_node.meta.get("val")
    twin.update_arg(position, restored)
    return restored


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
    return origin


def _rename(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    value = attribute(graph, str(node.target)).detach()
    _assign(graph, name, value.to(torch.int8) if name.endswith("_zero_point") else value)
    node.target = name
