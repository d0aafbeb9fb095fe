"""FP8 (E4M3) weights and inputs: scales from largest magnitudes, and the roundings as torch's own operators.

An input is `to(to(clamp(x / scale, -448, 448), float8_e4m3fn), float32) * scale`, a weight is
`to(stored, float32) * scale` with a scale for each output channel. torch's own `quantize_per_tensor` is no use here: it
rounds to whole numbers first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from edgecompile.errors import PassError
from edgecompile.passes._placement import Placement
from edgecompile.program import Program
from edgecompile.rewrite import add_weight, aten, call, layer, weight
from edgecompile.target import QuantRule

LARGEST = 448.0
_MARK = "float8"
_SMALLEST = torch.finfo(torch.float32).tiny


def kernels(table: Mapping[OpOverload, QuantRule]) -> dict[OpOverload, QuantRule]:
    """The rules of a table that have weights, with float results: what takes FP8 sums in float and writes it."""
    return {op: replace(rule, output="float", fuses=()) for op, rule in table.items() if rule.weight is not None}


def marked(node: fx.Node) -> bool:
    """Whether a node is a step of a rounding to FP8 that stands in the program since `calibrated`."""
    return bool(node.meta.get(_MARK))


def calibrated(
    program: Program, placement: Placement, batches: Sequence[tuple[Tensor, ...]], per_tensor: frozenset[str]
) -> Program:
    """The program with weights and the inputs of their layers in FP8; `program` is left as it was.

    The weights of the nodes named in `per_tensor` get one scale, all others one an output channel.
    """
    largest = _largest(program, list(placement.readers), batches)
    own = program.clone()
    twins = {n.name: n for n in own.graph.graph.nodes}
    for source, found in placement.readers.items():
        scale = float(torch.tensor(largest[source.name] / LARGEST, dtype=torch.float32).clamp(min=_SMALLEST))
        readers = [twins[reader.name] for reader in found]
        rounded = _rounded(own, twins[source.name], scale, min(readers, key=_place(own)))
        for reader in readers:
            reader.replace_input_with(twins[source.name], rounded)
    stored: dict[tuple[str, bool], tuple[fx.Node, fx.Node]] = {}
    for reader, (node, axis) in placement.weights.items():
        twin, single = twins[reader.name], reader.name in per_tensor
        key = (str(node.target), single)
        if key not in stored:
            stored[key] = _weight(own, program, node, axis, single, twin)
        twin.replace_input_with(twins[node.name], _restored(own, stored[key], twin))
    own.graph.recompile()
    return own


def _largest(program: Program, nodes: Sequence[fx.Node], batches: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """The largest magnitude of each node's values, by its name."""
    found = dict.fromkeys((n.name for n in nodes), 0.0)

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in found and value.numel():
                found[n.name] = max(found[n.name], float(value.abs().amax()))
                if not torch.isfinite(value).all():
                    raise PassError(
                        f"quantize: {layer(n)}: an activation is NaN or infinite on the calibration data: mend either"
                    )
            return value

    watch = Watch(program.graph)
    with torch.no_grad():
        for batch in batches:
            watch.run(*batch)
    return found


def _place(program: Program) -> Any:
    order = {n: i for i, n in enumerate(program.graph.graph.nodes)}
    return lambda node: order[node]


def _step(program: Program, target: OpOverload, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    node = call(program, target, args, like)
    node.meta[_MARK] = True
    return node


def _rounded(program: Program, source: fx.Node, scale: float, before: fx.Node) -> fx.Node:
    steps = _step(program, aten.div.Tensor, (source, scale), before)
    steps = _step(program, aten.clamp.default, (steps, -LARGEST, LARGEST), before)
    steps = _step(program, aten.to.dtype, (steps, torch.float8_e4m3fn), before)
    steps = _step(program, aten.to.dtype, (steps, torch.float32), before)
    return _step(program, aten.mul.Tensor, (steps, scale), before)


def _weight(
    own: Program, program: Program, node: fx.Node, axis: int, per_tensor: bool, before: fx.Node
) -> tuple[fx.Node, fx.Node]:
    """The stored numbers and their scales."""
    value = weight(program, node)
    assert value is not None
    value = value.detach()
    others = [d for d in range(value.dim()) if per_tensor or d != axis]
    scale = (value.abs().amax(others, keepdim=True) / LARGEST).clamp(min=_SMALLEST)
    rounded = (value / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    name = str(node.target)
    origin = program.origin.get(name, name)
    return (
        add_weight(own, f"{name}_float8", rounded, before, origin),
        add_weight(own, f"{name}_scale", scale, before, origin),
    )


def _restored(program: Program, stored: tuple[fx.Node, fx.Node], before: fx.Node) -> fx.Node:
    values, scale = stored
    wide = _step(program, aten.to.dtype, (values, torch.float32), before)
    return _step(program, aten.mul.Tensor, (wide, scale), before)
