"""Which nodes of a program with Q/DQ nodes run in integers, what each of them needs, and which patterns no rule takes.

An integer layer is a layer that reads a dequantized activation and a dequantized constant weight. With a quantize
behind it (or behind the clamp that follows) it writes integers, else floats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed

from edgecompile.program import op_name
from edgecompile.rewrite import argument, layer
from edgecompile.target import QuantRule
from edgecompile.targets._tvm_int8_grid import Grid, Layer, Sum
from edgecompile.targets._tvm_layers import Weights

if TYPE_CHECKING:
    from torch import fx
    from torch._ops import OpOverload
    from torch.export import ExportedProgram

aten = torch.ops.aten
Q = torch.ops.quantized_decomposed
QUANTIZE = Q.quantize_per_tensor.default
DEQUANTIZE = Q.dequantize_per_tensor.default
_BY_CHANNEL = Q.dequantize_per_channel.default
NAMES = frozenset(op.__name__ for op in (QUANTIZE, DEQUANTIZE, _BY_CHANNEL))
CLAMPS = (aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default)
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)
LAYERS = (*CONVOLUTIONS, aten.linear.default)
MEAN = aten.adaptive_avg_pool2d.default
_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default)
MOVES = (
    aten.flatten.using_ints, aten.reshape.default, aten.view.default, aten.permute.default, aten.transpose.int,
    aten.pad.default, aten.constant_pad_nd.default, aten.max_pool2d.default,
)  # fmt: skip
"""Operators that pass integers on with the scale that they came with."""
TABLE: dict[OpOverload, QuantRule] = {
    **{op: QuantRule(("input",), "weight", fuses=CLAMPS) for op in CONVOLUTIONS},
    aten.linear.default: QuantRule(("input",), "weight", output="float"),
    aten.add.Tensor: QuantRule(("self", "other"), fuses=CLAMPS),
    MEAN: QuantRule(("self",)),
    **{op: QuantRule(("self",), output="shared") for op in MOVES},
}


@dataclass
class Plan:
    """The integer nodes of a program. Grids are those of the integers inside, which are all of one signedness."""

    grids: dict[fx.Node, Grid] = field(default_factory=dict)
    layers: dict[fx.Node, Layer] = field(default_factory=dict)
    """Means of images too."""
    sums: dict[fx.Node, Sum] = field(default_factory=dict)
    """By the quantize that ends it."""
    moves: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Node -> the quantize whose integers it passes on."""
    ends: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Quantize -> the node with the integers that it ends."""
    carried: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Clamp -> the node whose sums it hands on, its bounds being in the end's grid."""
    problems: list[tuple[fx.Node, str]] = field(default_factory=list)


def planned(exported: ExportedProgram, signed: bool) -> Plan:
    """Find every integer pattern; `signed` are the integers inside (s8), whatever the program's own are."""
    plan, weights = Plan(), Weights.of(exported)
    nodes = [n for n in exported.graph.nodes if n.op == "call_function"]
    for node in nodes:
        if node.target is QUANTIZE:
            _quantize(plan, node, signed)
        elif "quantize" in str(node.target) and node.target not in (DEQUANTIZE, _BY_CHANNEL):
            plan.problems.append((node, "has no integer rule: scales and zero points must be constants of a tensor"))
    for node in nodes:
        if node.target in LAYERS:
            _layer(plan, node, weights)
        elif node.target is aten.add.Tensor:
            _sum(plan, node)
        elif node.target is MEAN:
            _mean(plan, node)
        elif node.target in MOVES:
            _move(plan, node)
    for node in nodes:
        _check(plan, node, weights)
    return plan


def _quantize(plan: Plan, node: fx.Node, signed: bool) -> None:
    _, scale, zero, low, high, dtype = node.args
    wide = {torch.uint8: (0, 255), torch.int8: (-128, 127)}.get(dtype)  # type: ignore[arg-type]
    if wide is None or not all(isinstance(v, (int, float)) for v in (scale, zero, low, high)):
        plan.problems.append((node, f"writes {dtype}: only 8-bit integers have an integer rule"))
        return
    shift = (-128 if dtype is torch.uint8 else 0) if signed else (128 if dtype is torch.int8 else 0)
    low, high = max(int(low), wide[0]), min(int(high), wide[1])  # type: ignore[arg-type]
    plan.grids[node] = Grid(float(scale), int(zero) + shift, low + shift, high + shift)  # type: ignore[arg-type]


def _read(plan: Plan, value: Any) -> fx.Node | None:
    """The quantize behind a dequantized activation that has the same scale."""
    if getattr(value, "target", None) is not DEQUANTIZE:
        return None
    source: fx.Node = value.args[0]
    same = source.target is QUANTIZE and source.args[1:3] == value.args[1:3] and source.args[5] == value.args[5]
    return source if same and source in plan.grids else None


def _end(plan: Plan, node: fx.Node, clamps: bool = True) -> tuple[fx.Node, Grid] | None:
    """The quantize that a node's result goes to alone, with the clamps between in its grid."""
    low, high, at = -math.inf, math.inf, node
    between: list[fx.Node] = []
    while len(at.users) == 1:
        user = next(iter(at.users))
        if user.target is QUANTIZE:
            if user not in plan.grids:
                return None
            for part in between:
                plan.carried[part] = node
            plan.ends[user] = node
            return user, plan.grids[user].within(low, high)
        bounds = _bounds(user) if clamps else None
        if bounds is None:
            return None
        low, high = (min(max(v, bounds[0]), bounds[1]) for v in (low, high))
        between.append(user)
        at = user
    return None


def _bounds(node: fx.Node) -> tuple[float, float] | None:
    if node.target not in CLAMPS:
        return None
    if node.target is aten.relu.default:
        return 0.0, math.inf
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    names = ("min_val", "max_val") if node.target is aten.hardtanh.default else ("min", "max")
    low, high = (argument(node, n) for n in names)
    if not all(v is None or isinstance(v, (int, float)) for v in (low, high)):
        return None
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _integers(node: Any, weights: Weights, axis: int) -> tuple[Any, Any] | None:
    """Integers and scales of a dequantized constant weight without zero points."""
    target = getattr(node, "target", None)
    stored = weights.get(node.args[0]) if target in (DEQUANTIZE, _BY_CHANNEL) else None
    if stored is None or stored.dtype is not torch.int8:
        return None
    rows = stored.shape[axis]
    if target is DEQUANTIZE:
        return None if node.args[2] != 0 else (stored.numpy(), np.full(rows, float(node.args[1])))
    scales, zeros = weights.get(node.args[1]), weights.get(node.args[2])
    if scales is None or node.args[3] != axis or (zeros is not None and bool(zeros.any())):
        return None
    return stored.numpy(), scales.double().numpy()


def _layer(plan: Plan, node: fx.Node, weights: Weights) -> None:
    source, held = _read(plan, node.args[0]), _integers(node.args[1], weights, 0)
    given: Any = argument(node, "bias")
    bias = weights.get(given) if given is not None else None
    if source is None or held is None or (given is not None and bias is None):
        return
    integers, scales = held
    grid = plan.grids[source]
    shift = np.zeros(len(integers)) if bias is None else bias.double().numpy()
    end = _end(plan, node)
    plan.layers[node] = Layer(source, grid, integers, scales * grid.scale, shift, *(end or (None, None)))


def _sum(plan: Plan, node: fx.Node) -> None:
    left, right = (_read(plan, a) for a in node.args[:2])
    if left is None or right is None or argument(node, "alpha") != 1:
        return
    if node.args[0].meta["val"].shape != node.args[1].meta["val"].shape:  # type: ignore[union-attr]
        return
    a, b = plan.grids[left], plan.grids[right]
    users = list(node.users)
    if not users or (found := _end(plan, node)) is None:
        return
    end, out = found
    shares = [g.scale / out.scale for g in (a, b)]
    bits = min(24, 29 - math.ceil(math.log2(256 * sum(shares) + 1)))
    if bits < 8:  # steps of the result far finer than those of what is added
        _forget(plan, node, end)
        return
    factors = [round(s * 2**bits) for s in shares]
    offset = -(a.zero * factors[0] + b.zero * factors[1])
    plan.sums[end] = Sum((left, right), (factors[0], factors[1]), offset, bits, out)


def _forget(plan: Plan, node: fx.Node, end: fx.Node) -> None:
    plan.ends.pop(end, None)
    for part in [n for n, anchor in plan.carried.items() if anchor is node]:
        del plan.carried[part]


def _mean(plan: Plan, node: fx.Node) -> None:
    """The mean of an image is a depthwise convolution with ones."""
    source = _read(plan, node.args[0])
    sizes = node.meta["val"].shape[-2:]
    if source is None or tuple(sizes) != (1, 1) or len(node.args[0].meta["val"].shape) != 4:  # type: ignore[union-attr]
        return
    if (found := _end(plan, node)) is not None:
        _, channels, height, width = node.args[0].meta["val"].shape  # type: ignore[union-attr]
        grid, weight = plan.grids[source], np.ones((channels, 1, height, width), np.int8)
        scales = np.full(channels, grid.scale / (height * width))
        plan.layers[node] = Layer(source, grid, weight, scales, np.zeros(channels), *found)


def _move(plan: Plan, node: fx.Node) -> None:
    source = _read(plan, node.args[0])
    if source is None or len(node.users) != 1:
        return
    user = next(iter(node.users))
    if user.target is not QUANTIZE or user.args[1:] != source.args[1:]:
        return
    if node.target in (aten.pad.default, aten.constant_pad_nd.default):
        rest = [v for v in [*node.args[2:], *node.kwargs.values()] if v is not None]
        if any(v not in ("constant", 0, 0.0) for v in rest):
            return
    if node.target is aten.max_pool2d.default and argument(node, "ceil_mode"):
        return
    plan.moves[node] = source
    plan.ends[user] = node


def _check(plan: Plan, node: fx.Node, weights: Weights) -> None:
    """Note what is quantized and would run in float."""
    if node in plan.grids and any(u.target is not DEQUANTIZE for u in node.users):
        plan.problems.append((node, "is read by something else than a dequantize: it has no integer rule"))
    foreign = node.target is DEQUANTIZE and node.args[0].target is not QUANTIZE  # type: ignore[union-attr]
    if foreign and weights.get(node.args[0]) is None:
        plan.problems.append((node, "reads integers that no quantize of the program made"))
    stored = [a for a in node.args if _stored(a, weights)]
    if stored and node not in plan.layers:
        plan.problems.append((node, "has a quantized weight but no integer rule: keep the layer in float"))
    if node.target in _PRODUCTS and all(_for(plan, a) for a in node.args[:2]):
        plan.problems.append((node, "multiplies two quantized activations: no integer rule"))


def _stored(value: Any, weights: Weights) -> bool:
    return getattr(value, "target", None) in (DEQUANTIZE, _BY_CHANNEL) and weights.get(value.args[0]) is not None


def _for(plan: Plan, value: Any) -> bool:
    """Whether an activation was quantized for its reader, and not because an integer layer writes it."""
    source = _read(plan, value)
    return source is not None and source not in plan.ends


def between(exported: ExportedProgram) -> list[str]:
    """Operators that stand between integers, are in the table, and have no integer form with these numbers."""
    plan = planned(exported, False)
    summed = {end.args[0] for end in plan.sums} | set(plan.carried.values())
    found = []
    for node in exported.graph.nodes:
        rule = TABLE.get(node.target) if node.op == "call_function" else None
        if rule is None or rule.weight is not None or node in plan.layers or node in plan.moves or node in summed:
            continue
        if any(_read(plan, a) is not None for a in node.all_input_nodes):
            found.append(f"{layer(node)}: {op_name(node)} ({node.name})")
    return found


def refused(exported: ExportedProgram) -> list[tuple[Any, str]]:
    """Quantized patterns that no integer rule takes, each with the reason; none in a program of floats."""
    if not any("quantize" in str(n.target) for n in exported.graph.nodes):
        return []
    return planned(exported, False).problems
