"""What integers do to each layer's own output: signal-to-noise ratio, and the mean error per channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from edgecompile.passes._float8 import marked
from edgecompile.passes._placement import Placement
from edgecompile.program import Program, attribute
from edgecompile.rewrite import aten

_TINY = 1e-30


@dataclass
class Noise:
    """Sums over calibration data of one layer's output: `signal` of y^2, `power` of (y_q - y)^2, `shift` of y_q - y."""

    signal: float
    power: float
    shift: Tensor
    count: int

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio in dB."""
        return _decibels(self.signal, self.power)

    @property
    def mean(self) -> Tensor:
        """Mean error per output channel."""
        return self.shift / self.count


def noise_ranking(program: Program, quantized: Program, placement: Placement, batch: tuple[Any, ...]) -> list[str]:
    """Names of the quantized layers, lowest signal-to-noise ratio first.

    A layer that writes integers answers for what its readers lose by them as well: a tensor with an outlier channel
    is float again only when its writer and its readers are.
    """
    noise = layer_noise(program, quantized, placement, [batch])
    ratios = {name: found.snr_db for name, found in noise.items()}
    rounded = layer_noise(program, quantized, placement, [batch], inputs_only=True)
    for tensor in placement.made:
        writer = next((n for n in (tensor, *tensor.all_input_nodes[:1]) if n.name in ratios), None)
        if writer is not None:
            lost = [rounded[n.name].snr_db for n in _readers(placement, tensor) if n.name in rounded]
            ratios[writer.name] = min([ratios[writer.name], *lost])
    return sorted(ratios, key=lambda name: (ratios[name], name))


def _readers(placement: Placement, tensor: fx.Node) -> list[fx.Node]:
    """The kernels that read a tensor's integers, also behind what passes them on."""
    found: list[fx.Node] = []
    for reader in placement.readers.get(tensor, []):
        found += _readers(placement, reader) if placement.tensors.get(reader) is tensor else [reader]
    return found


def layer_noise(
    program: Program,
    quantized: Program,
    placement: Placement,
    batches: Sequence[tuple[Any, ...]],
    inputs_only: bool = False,
) -> dict[str, Noise]:
    """The noise that each quantized layer adds by itself, by the layer's node name.

    Its float inputs are rounded to the calibrated grid, its weights are the stored integers, and the result is
    compared with the float result. Errors of earlier layers do not count. With `inputs_only` the weights are the float
    ones.
    """
    readers = {n.name for n in placement.weights}
    twins = {n.name: n for n in quantized.graph.graph.nodes if n.name in readers}
    run = _Twin(program, quantized, twins, inputs_only)
    with torch.no_grad():
        for batch in batches:
            run.run(*batch)
    return run.found


def _decibels(signal: float, noise: float) -> float:
    return 10 * math.log10((signal + _TINY) / (noise + _TINY))


def _power(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value)) ** 2


class _Twin(fx.Interpreter):
    """Runs the float program and, beside each quantized layer, the same layer as the quantized program has it."""

    def __init__(self, program: Program, quantized: Program, twins: dict[str, fx.Node], inputs_only: bool) -> None:
        super().__init__(program.graph)
        self.quantized, self.twins, self.inputs_only = quantized, twins, inputs_only
        self.found: dict[str, Noise] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and its twin when it has one."""
        result = super().run_node(n)
        twin = self.twins.get(n.name)
        if twin is not None and isinstance(result, Tensor):
            args = [self._argument(a, old) for a, old in zip(twin.args, n.args, strict=False)]
            kwargs = {k: self._argument(v, n.kwargs.get(k)) for k, v in twin.kwargs.items()}
            error = twin.target(*args, **kwargs) - result  # type: ignore[operator]
            axis = result.dim() - 1 if n.target is aten.linear.default else 1
            others = [d for d in range(result.dim()) if d != axis]
            shift = error.sum(others).double()
            sums = [_power(result), _power(error)]
            had = self.found.get(n.name, Noise(0.0, 0.0, torch.zeros_like(shift), 0))
            count = result.numel() // max(result.shape[axis], 1)
            self.found[n.name] = Noise(had.signal + sums[0], had.power + sums[1], had.shift + shift, had.count + count)
        return result

    def _argument(self, value: Any, float_value: Any) -> Any:
        """A twin's argument: q/dq over a float tensor or a stored weight, else what the float layer reads."""
        if not isinstance(value, fx.Node):
            return value
        float_result = self.env[float_value] if isinstance(float_value, fx.Node) else float_value
        if value.op == "get_attr":
            return float_result if self.inputs_only else attribute(self.quantized.graph, str(value.target))
        chain: list[fx.Node] = []
        node: Any = value
        while isinstance(node, fx.Node) and (marked(node) or "quantize_per" in str(node.target)):
            chain.append(node)
            node = node.args[0]
        base = float_result
        if isinstance(node, fx.Node) and node.op == "get_attr":
            if self.inputs_only:
                return base
            base = attribute(self.quantized.graph, str(node.target))
        if len(chain) == 2 and all("per_tensor" in str(step.target) for step in chain):
            scale, zero, low, high = cast("tuple[float, int, int, int]", chain[1].args[1:5])
            return torch.fake_quantize_per_tensor_affine(base, scale, zero, low, high)  # both steps in one
        for step in reversed(chain):
            graph = self.quantized.graph
            rest = [attribute(graph, str(a.target)) if isinstance(a, fx.Node) else a for a in step.args[1:]]
            base = step.target(base, *rest, **step.kwargs)  # type: ignore[operator]
        return base
