"""The oracle of coupled axes: the whole network at its full width, removed units masked where they are summed up.

Products and convolutions lose the removed units of what they sum over, means and variances are over the kept ones. No
size changes, so whatever a wrong coupling mixes up shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgecompile.axes import Coupling
from edgecompile.axes.dims import kept
from edgecompile.program import Program
from edgecompile.rewrite import argument

aten = torch.ops.aten
_PRODUCTS = {
    aten.linear.default: (0, (-1,)), aten.matmul.default: (0, (-1,)), aten.mm.default: (0, (-1,)),
    aten.bmm.default: (0, (-1,)), aten.addmm.default: (1, (-1,)), aten.baddbmm.default: (1, (-1,)),
    aten.scaled_dot_product_attention.default: (0, (-1,)), aten.conv1d.default: (0, (-2,)),
    aten.conv2d.default: (0, (-3,)), aten.conv3d.default: (0, (-4,)), aten.conv_transpose2d.input: (0, (-3,)),
    aten.conv_transpose1d.default: (0, (-2,)), aten.einsum.default: (None, ()),
}  # fmt: skip
_REDUCED = {
    aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.var.correction, aten.var.dim,
    aten.linalg_vector_norm.default, aten.mean.default, aten.sum.default,
}  # fmt: skip
_NORMS = {aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default}


class Masked(fx.Interpreter):
    """Runs a program with these units alone."""

    def __init__(self, program: Program, coupling: Coupling, keep: Mapping[str, Sequence[int]]) -> None:
        super().__init__(program.graph)
        self.coupling, self.chosen = coupling, coupling.chosen(keep)

    def mask(self, node: fx.Node, axis: int, size: int) -> Tensor:
        """Ones where an index of a node's axis is kept; a dynamic size is cut from the prime that stands for it."""
        dim = self.coupling.dims[node][axis]
        assert not isinstance(dim, tuple)
        found = torch.zeros(max(dim.size, size), dtype=torch.float64)
        found[torch.from_numpy(np.asarray(kept(dim, self.chosen)))] = 1
        return found[:size]

    def masked(self, node: fx.Node, value: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The value and its mask, broadcast, by these axes."""
        whole = torch.ones_like(value)
        for axis in axes:
            shape = [1] * value.dim()
            shape[axis] = -1
            whole = whole * self.mask(node, axis, value.shape[axis]).to(value.dtype).reshape(shape)
        return value, whole

    def run_node(self, n: fx.Node) -> Any:
        if n.target in _PRODUCTS:
            return self._product(n)
        if n.target in _REDUCED and isinstance(n.args[0], fx.Node) and n.args[0].meta["val"].is_floating_point():
            return self._reduced(n)
        if n.target in _NORMS:
            return self._norm(n)
        return super().run_node(n)

    def _product(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        at, axes = _PRODUCTS[n.target]  # type: ignore[index]
        new = list(args)
        if at is None:
            source = n.args[1][0]  # type: ignore[index]
            value, mask = self.masked(source, args[1][0], range(args[1][0].dim()))
            new[1] = [value * mask, *args[1][1:]]
        else:
            value, mask = self.masked(n.args[at], args[at], axes)  # type: ignore[arg-type]
            new[at] = value * mask
        return n.target(*new, **kwargs)  # type: ignore[operator, misc]

    def _reduced(self, n: fx.Node) -> Tensor:
        x = self.env[n.args[0]]  # type: ignore[index]
        names = {a.name for a in n.target._schema.arguments}  # type: ignore[union-attr]
        given = argument(n, "dim") if "dim" in names else None
        axes = [given] if isinstance(given, int) else list(given or range(x.dim()))
        keepdim = bool("keepdim" in names and argument(n, "keepdim"))
        x, mask = self.masked(n.args[0], x, axes)  # type: ignore[arg-type]
        name = str(n.target).split(".")[1]
        if name == "amax":
            return torch.amax(x.masked_fill(mask == 0, -torch.inf), axes, keepdim)
        if name == "amin":
            return torch.amin(x.masked_fill(mask == 0, torch.inf), axes, keepdim)
        if name in ("sum", "linalg_vector_norm"):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            return n.target(x * mask, *args[1:], **kwargs)  # type: ignore[operator, misc, no-any-return]
        count = mask.sum(axes, keepdim=True)
        mean = (x * mask).sum(axes, keepdim=True) / count
        if name == "var":
            correction = n.kwargs.get("correction", 1)
            mean = ((x - mean) ** 2 * mask).sum(axes, keepdim=True) / (count - correction)
        return mean if keepdim else mean.squeeze(axes)

    def _norm(self, n: fx.Node) -> Tensor:
        args, _ = self.fetch_args_kwargs_from_env(n)
        x, source = args[0], n.args[0]
        assert isinstance(source, fx.Node)
        epsilon = argument(n, "eps")
        if n.target is aten.group_norm.default:
            _, mask = self.masked(source, x, (1,))
            groups = args[1]
            shape = (x.shape[0], groups, -1)
            y, m = x.reshape(shape), mask.reshape(shape)
            mean = (y * m).sum(-1, keepdim=True) / m.sum(-1, keepdim=True).clamp(min=1)
            var = ((y - mean) ** 2 * m).sum(-1, keepdim=True) / m.sum(-1, keepdim=True).clamp(min=1)
            made = ((y - mean) * torch.rsqrt(var + epsilon)).reshape(x.shape)
            column = (-1, *[1] * (x.dim() - 2))
            weight, bias = (argument(n, name) for name in ("weight", "bias"))
            made = made * self.env[weight].reshape(column) if weight is not None else made
            return made + self.env[bias].reshape(column) if bias is not None else made
        axes = list(range(-len(args[1]), 0))
        _, mask = self.masked(source, x, axes)
        count = mask.sum(axes, keepdim=True)
        plain = n.target is aten.rms_norm.default
        mean = torch.zeros_like(count) if plain else (x * mask).sum(axes, keepdim=True) / count
        var = ((x - mean) ** 2 * mask).sum(axes, keepdim=True) / count
        epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
        made = (x - mean) * torch.rsqrt(var + epsilon)
        weight = argument(n, "weight")
        made = made * self.env[weight] if weight is not None else made
        bias = None if plain else argument(n, "bias")
        return made + self.env[bias] if bias is not None else made
