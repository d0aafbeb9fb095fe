"""Bias correction: give back to each integer layer the mean that rounding its inputs and weights has taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from edgecompile.passes._placement import Placement
from edgecompile.passes._sensitivity import layer_noise
from edgecompile.program import Program
from edgecompile.rewrite import add_weight, argument, weight


def correct_bias(program: Program, quantized: Program, placement: Placement, batches: Sequence[tuple[Any, ...]]) -> int:
    """Subtract from each bias the layer's own mean error per output channel; returns how many were corrected.

    The float inputs are rounded to the calibrated grid, so that errors of earlier layers, which their own biases
    answer for, do not count twice (the fast bias correction of Nagel et al., Data-Free Quantization, ICCV 2019). A
    layer without a bias gets one, which descends from its weight.
    """
    noise = layer_noise(program, quantized, placement, batches)
    twins = {n.name: n for n in quantized.graph.graph.nodes}
    weights = {n.name: str(w.target) for n, (w, _) in placement.weights.items()}
    for name, found in noise.items():
        node = twins[name]
        old = argument(node, "bias")
        value = weight(quantized, old)
        shift = found.mean.to(torch.float32)
        corrected = -shift if value is None else value.detach() - shift
        if isinstance(old, fx.Node):
            source = origin = str(old.target)
        else:
            origin = weights[name]
            source = f"{origin.removesuffix('weight')}bias"
        new = add_weight(quantized, f"{source}_corrected", corrected, node, program.origin.get(origin, origin))
        _set_bias(node, new)
    return len(noise)


def _set_bias(node: fx.Node, bias: fx.Node) -> None:
    if len(node.args) > 2:
        node.args = (*node.args[:2], bias, *node.args[3:])
    else:
        node.kwargs = {**node.kwargs, "bias": bias}
