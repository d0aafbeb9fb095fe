"""SmoothQuant: move outlier channels of an activation into the weights that read it, where the output gains by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from edgecompile.passes._placement import Placement
from edgecompile.program import Program
from edgecompile.rewrite import add_weight, argument, aten, call, layer, set_weight, weight
from edgecompile.rewrite import readers as weight_users

_STRENGTHS = (0.25, 0.5, 0.75)
_GAIN_DB = 1.0
"""What a smoothing must win in the layers' own output: a product in front of them costs a little time."""
_ROWS = 512


@dataclass
class Site:
    """An activation [..., channels] and the linear layers that read it in integers.

    `low` and `high` are the ranges of each channel, `rows` a sample of the activation, [n, channels].
    """

    readers: list[fx.Node]
    low: Tensor
    high: Tensor
    rows: Tensor


def smooth(program: Program, placement: Placement, batches: Sequence[tuple[Any, ...]]) -> int:
    """Divide activations by a factor a channel and multiply the weights by it, in place; returns how many.

    The factor is a^t / w^(1-t), with the largest magnitudes a of the activation and w of the weights a channel (Xiao et
    al., SmoothQuant, ICML 2023). The strength t is the one that leaves the least error in the layers' output on
    calibration data, or none. The division becomes part of a layer norm that nobody else reads, else a product.
    """
    done = 0
    for source, site in _sites(program, placement, batches).items():
        factors = _best(program, site)
        if factors is not None:
            _apply(program, source, site.readers, factors)
            done += 1
    return done


def _sites(program: Program, placement: Placement, batches: Sequence[tuple[Any, ...]]) -> dict[fx.Node, Site]:
    groups: dict[fx.Node, list[fx.Node]] = {}
    for reader, (stored, _) in placement.weights.items():
        source = reader.args[0]
        if not isinstance(source, fx.Node) or source in placement.made:
            continue
        if reader.target is aten.linear.default and weight_users(program, stored) == [reader]:
            groups.setdefault(source, []).append(reader)
    if not groups:
        return {}
    run = _Ranges(program, groups)
    with torch.no_grad():
        for batch in batches:
            run.run(*batch)
    return run.found


class _Ranges(fx.Interpreter):
    """Runs the float program and keeps channel ranges and some rows of the activations asked for."""

    def __init__(self, program: Program, groups: dict[fx.Node, list[fx.Node]]) -> None:
        super().__init__(program.graph)
        self.groups = groups
        self.found: dict[fx.Node, Site] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and look at its result when it is asked for."""
        result = super().run_node(n)
        if n in self.groups:
            rows = result.detach().reshape(-1, result.shape[-1])
            low, high = rows.amin(0), rows.amax(0)
            some = rows[:: max(1, len(rows) // 64)][:64].clone()
            had = self.found.get(n)
            if had is None:
                self.found[n] = Site(self.groups[n], low, high, some)
            else:
                had.low, had.high = torch.minimum(had.low, low), torch.maximum(had.high, high)
                had.rows = torch.cat([had.rows, some])[:_ROWS]
        return result


def _best(program: Program, site: Site) -> Tensor | None:
    """The factors of the best strength, None when none wins enough."""
    weights = [weight(program, r.args[1]) for r in site.readers]
    matrix = torch.cat([w.detach() for w in weights if w is not None])
    largest = torch.maximum(site.low.abs(), site.high.abs()).clamp(min=1e-5)
    reach = matrix.abs().amax(0).clamp(min=1e-5)
    plain = _error(site, matrix, torch.ones_like(largest))
    tried = [largest**t / reach ** (1 - t) for t in _STRENGTHS]
    errors = [_error(site, matrix, factors) for factors in tried]
    best = min(range(len(tried)), key=errors.__getitem__)
    if not (math.isfinite(plain) and errors[best] * 10 ** (_GAIN_DB / 10) < plain):
        return None
    return tried[best]


def _error(site: Site, matrix: Tensor, factors: Tensor) -> float:
    """The squared error of the layers' output with 8-bit activations (one range) and weights (one a row)."""
    low, high = (site.low / factors).amin().clamp(max=0), (site.high / factors).amax().clamp(min=0)
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    rounded = ((site.rows / factors) / step).round() * step
    scaled = matrix * factors
    grid = (scaled.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    integers = (scaled / grid).round() * grid
    return float((rounded @ integers.T - site.rows @ matrix.T).double().square().sum())


def _apply(program: Program, source: fx.Node, readers: Sequence[fx.Node], factors: Tensor) -> None:
    for reader in readers:
        stored = reader.args[1]
        value = weight(program, stored)
        assert isinstance(stored, fx.Node)
        assert value is not None
        set_weight(program, stored, value.detach() * factors)
    if source.target is aten.layer_norm.default and set(source.users) == set(readers) and _into_norm(
        program, source, factors
    ):  # fmt: skip
        return
    first = min(readers, key=list(program.graph.graph.nodes).index)
    read = str(cast(fx.Node, first.args[1]).target)
    inverse = add_weight(program, f"{layer(source)}.smooth", 1 / factors, first, program.origin.get(read, read))
    product = call(program, aten.mul.Tensor, (source, inverse), first)
    for reader in readers:
        reader.replace_input_with(source, product)


def _into_norm(program: Program, norm: fx.Node, factors: Tensor) -> bool:
    """Divide the scale and shift of a layer norm over the last axis; False where it has none of its own."""
    parts = [argument(norm, name) for name in ("weight", "bias")]
    values = [weight(program, p) for p in parts]
    computed = any(p is not None and v is None for p, v in zip(parts, values, strict=True))
    if values[0] is None or values[0].dim() != 1 or computed:
        return False
    args = list(norm.args)
    for index, (part, value) in enumerate(zip(parts, values, strict=True), 2):
        if value is not None:
            name = str(part.target)
            args[index] = add_weight(
                program, f"{name}_smooth", value.detach() / factors, norm, program.origin.get(name, name)
            )
    norm.args = tuple(args)
    return True
