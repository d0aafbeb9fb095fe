"""Batch norms while a program is trained: put behind convolutions that had them, measured anew, folded again.

By the time a program is trained its batch norms are folded, in a file that came so from elsewhere too. Training wants
them: without one, a network that was cut deep heals slowly or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgecompile.passes._taps import origin, tapped
from edgecompile.program import Program
from edgecompile.rewrite import add_weight, argument, aten, call, set_weight, weight, weight_readers

_CONVOLUTIONS = (aten.conv2d.default, aten.conv1d.default, aten.conv3d.default)
_NORMS = (
    aten.batch_norm.default, aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default,
    aten.instance_norm.default,
)  # fmt: skip
_EPS, _MOMENTUM = 1e-5, 0.1
NORMED = "normed"
"""Marks a convolution of another network than the teacher whose batch norm was folded."""


@dataclass(frozen=True)
class Inserted:
    """A convolution without its bias, the batch norm behind it, and the node that read the bias."""

    layer: fx.Node
    norm: fx.Node
    bias: fx.Node | None


def candidates(program: Program, teacher: Program) -> list[fx.Node]:
    """Convolutions that the teacher normalises by batches; all of them where it has no norm of any kind.

    Left out: weights that others read too, maps of one position, and what is itself an output.
    """
    nodes = list(teacher.graph.graph.nodes)
    wanted: set[str] | None = None
    if any(n.target in _NORMS for n in nodes):
        norms = [n for n in nodes if n.target is aten.batch_norm.default]
        wanted = {origin(source) for n in norms for source in n.all_input_nodes}
    readers, outputs = weight_readers(program), set(program.outputs())
    found = []
    for node in program.graph.graph.nodes:
        had = wanted is None or origin(node) in wanted or NORMED in node.meta.get("custom", {})
        if node.target not in _CONVOLUTIONS or node in outputs or not had:
            continue
        own = [n for n in (argument(node, "weight"), argument(node, "bias")) if n is not None]
        if any(n.op != "get_attr" or len(readers[str(n.target)]) > 1 for n in own):
            continue
        normed = any(user.target is aten.batch_norm.default for user in node.users)
        if not normed and any(s != 1 for s in node.meta["val"].shape[2:]):
            found.append(node)
    return found


def insert(program: Program, layers: Sequence[fx.Node], batches: Iterable[Sequence[Tensor]]) -> list[Inserted]:
    """Batch norms behind these convolutions that change nothing yet: they undo the statistics that they begin with.

    Each filter is scaled so that its output varies by one over the batches, which is what training wants of it.
    """
    if not layers:
        return []
    statistics = _moments(tapped(program, layers), len(layers), batches)
    made = []
    for node, (mean, var) in zip(layers, statistics, strict=True):
        read, bias = argument(node, "weight"), argument(node, "bias")
        value = weight(program, read)
        assert value is not None
        shift = weight(program, bias) if bias is not None else None
        std = torch.where(var > 1e-8, var, torch.ones_like(var)).sqrt()
        shape = (-1, *[1] * (value.dim() - 1))
        set_weight(program, read, (value.double() / std.view(shape)).to(value.dtype))
        left = mean if shift is None else mean - shift.detach().double()
        var_ = var / std**2
        base = str(read.target).rpartition(".")[0] or str(read.target)
        given = (
            nn.Parameter((std * (var_ + _EPS).sqrt()).to(value.dtype)),
            nn.Parameter(mean.to(value.dtype)),
            (left / std).to(value.dtype),
            var_.to(value.dtype),
        )
        names = ("weight", "bias", "running_mean", "running_var")
        after = node.next
        reads = [add_weight(program, f"{base}.norm.{n}", v, after) for n, v in zip(names, given, strict=True)]
        node.update_arg(2, None)
        users = list(node.users)
        norm = call(program, aten.batch_norm.default, (node, *reads, False, _MOMENTUM, _EPS, False), after)
        norm.meta |= {k: v for k, v in node.meta.items() if k not in ("val", "tensor_meta", "custom")}
        norm.meta["custom"] = dict(node.meta.get("custom", {}))
        for user in users:
            user.replace_input_with(node, norm)
        made.append(Inserted(node, norm, bias))
    program.graph.recompile()
    return made


def measure(program: Program, batches: Iterable[Sequence[Tensor]]) -> None:
    """Give every batch norm the mean statistics of these batches, each normed by itself as in training."""
    module = tapped(program, [], training=True)
    norms = list(module.graph.find_nodes(op="call_function", target=aten.batch_norm.default))
    if not norms:
        return
    with torch.no_grad():
        for number, inputs in enumerate(batches, 1):
            for norm in norms:
                norm.update_arg(6, 1 / number)  # the momentum: a plain mean so far
            module.recompile()
            module(*inputs)


def fold(program: Program, inserted: Sequence[Inserted]) -> None:
    """The batch norms that were put in become part of their convolutions again."""
    for one in inserted:
        gamma, beta, mean, var = (
            weight(program, argument(one.norm, n)) for n in ("weight", "bias", "running_mean", "running_var")
        )
        read = argument(one.layer, "weight")
        value = weight(program, read)
        assert gamma is not None and beta is not None and mean is not None and var is not None  # noqa: PT018
        assert value is not None
        scale = gamma.detach().double() / (var.double() + _EPS).sqrt()
        shape = (-1, *[1] * (value.dim() - 1))
        set_weight(program, read, (value.detach().double() * scale.view(shape)).to(value.dtype))
        shift = (beta.detach().double() - mean.double() * scale).to(value.dtype)
        bias = one.bias
        if bias is None:
            base = str(read.target).rpartition(".")[0] or str(read.target)
            bias = add_weight(program, f"{base}.bias", nn.Parameter(shift), one.layer)
        else:
            set_weight(program, bias, shift)
        one.layer.update_arg(2, bias)
        one.norm.replace_all_uses_with(one.layer)
        program.graph.graph.erase_node(one.norm)
    program.graph.recompile()


def _moments(module: fx.GraphModule, count: int, batches: Iterable[Sequence[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The mean over batches of mean and variance of each tapped value's channels, float64."""
    means = [torch.zeros(1, dtype=torch.float64)] * count
    squares, number = list(means), 0
    with torch.no_grad():
        for inputs in batches:
            _, values = module(*inputs)
            number += 1
            for i, value in enumerate(values):
                flat = value.transpose(0, 1).flatten(1).double()
                mean = flat.mean(1)
                means[i] = means[i] + mean
                squares[i] = squares[i] + (flat.pow(2).mean(1) - mean**2).clamp(min=0)
    return [(m / max(1, number), s / max(1, number)) for m, s in zip(means, squares, strict=True)]
