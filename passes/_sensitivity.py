"""Which layer suffers most from integers: signal-to-noise ratio of each kernel's own output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from edgecompile.passes._placement import Placement
from edgecompile.program import Program

_TINY = 1e-30


def noise_ranking(program: Program, quantized: Program, placement: Placement, batch: tuple[Any, ...]) -> list[str]:
    """Names of the quantized layers, lowest signal-to-noise ratio first.

    The noise is that which a layer adds by itself: its float inputs are rounded to the calibrated grid, its weights
    are the stored integers, and the result is compared with the float result. Errors of earlier layers do not count.
    """
    ratios = layer_snr_db(program, quantized, placement, batch)
    return sorted(ratios, key=lambda name: (ratios[name], name))


def layer_snr_db(
    program: Program, quantized: Program, placement: Placement, batch: tuple[Any, ...]
) -> dict[str, float]:
    """Signal-to-noise ratio in dB, 10 log10(sum y^2 / sum (y - y_q)^2), of each quantized layer's output."""
    readers = {n.name for n in placement.weights}
    twins = {n.name: n for n in quantized.graph.graph.nodes if n.name in readers}
    run = _Twin(program, quantized, twins)
    with torch.no_grad():
        run.run(*batch)
    return run.ratios


class _Twin(fx.Interpreter):
    """Runs the float program and, beside each quantized layer, the same layer as the quantized program has it."""

    def __init__(self, program: Program, quantized: Program, twins: dict[str, fx.Node]) -> None:
        super().__init__(program.graph)
        self.quantized, self.twins = quantized, twins
        self.ratios: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and its twin when it has one."""
        result = super().run_node(n)
        twin = self.twins.get(n.name)
        if twin is not None and isinstance(result, Tensor):
            args = [self._argument(a, old) for a, old in zip(twin.args, n.args, strict=False)]
            noisy = twin.target(*args, **twin.kwargs)  # type: ignore[operator]
            noise = (noisy - result).double().square().sum().item()
            signal = result.double().square().sum().item()
            self.ratios[n.name] = 10 * torch.log10(torch.tensor((signal + _TINY) / (noise + _TINY))).item()
        return result

    def _argument(self, value: Any, float_value: Any) -> Any:
        """A twin's argument: q/dq over a float tensor or a stored weight, else what the float layer reads."""
        if not isinstance(value, fx.Node):
            return value
        if value.op == "get_attr":
            return _read(self.quantized, value)
        chain: list[fx.Node] = []
        node: Any = value
        while isinstance(node, fx.Node) and "quantize_per" in str(node.target):
            chain.append(node)
            node = node.args[0]
        if isinstance(node, fx.Node) and node.op == "get_attr":
            base = _read(self.quantized, node)
        else:
            base = self.env[float_value] if isinstance(float_value, fx.Node) else float_value
        for step in reversed(chain):
            rest = [_read(self.quantized, a) if isinstance(a, fx.Node) else a for a in step.args[1:]]
            base = step.target(base, *rest, **step.kwargs)  # type: ignore[operator]
        return base


def _read(program: Program, node: fx.Node) -> Any:
    from edgecompile.program import attribute

    return attribute(program.graph, str(node.target))
