"""How much each unit of a coupled group matters: from the weights, from gradients, or by chance as the control.

`_local` has two more, and `_methods` all of them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgecompile.axes import Coupling, Group, Member
from edgecompile.data import Batch, Dataset
from edgecompile.errors import PassError
from edgecompile.program import Program

Scores = dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]
"""Group name -> a number a unit, not below 0: the smaller, the less is lost without the unit."""


def random(coupling: Coupling, seed: int) -> Scores:
    """The control: a method that is not better than this finds nothing."""
    generator = np.random.default_rng(seed)
    return {g.name: generator.random(g.size) for g in coupling.groups}


def magnitude(program: Program, coupling: Coupling) -> Scores:
    """The share of its layer's squared weights that a unit has, added up over the layers that read the group."""
    weights = program.weights()
    found: Scores = {}
    for group in coupling.groups:
        shares = [_by_unit(weights[m.weight].detach().double() ** 2, m, group) for m in _read(group, weights)]
        total = torch.stack([s / s.sum().clamp(min=1e-300) for s in shares]).sum(0)
        found[group.name] = total.numpy()
    return found


def taylor(program: Program, coupling: Coupling, data: Dataset, batches: bool = False) -> Scores:
    """First order (Molchanov et al.): what the loss changes by when a unit's weights are 0.

    By default the sum over a unit's weights of |w g|, the gradient g being that of the whole data; with `batches`, the
    sum over batches of |the sum over a unit's weights of w g|.
    """
    members = {g.name: _read(g, program.weights()) for g in coupling.groups}
    names = {m.weight for found in members.values() for m in found}
    total = {name: torch.zeros(1, dtype=torch.float64) for name in names}
    found = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in coupling.groups}
    for products in _gradients(program, names, data, _labelled):
        if batches:
            for group in coupling.groups:
                parts = [_by_unit(products[m.weight], m, group) for m in members[group.name]]
                found[group.name] += torch.stack(parts).sum(0).abs()
        else:
            total = {name: total[name] + products[name] for name in names}
    if not batches:
        for group in coupling.groups:
            found[group.name] = sum(
                (_by_unit(total[m.weight].abs(), m, group) for m in members[group.name]), found[group.name]
            )
    return {name: value.numpy() for name, value in found.items()}


def fisher(program: Program, coupling: Coupling, data: Dataset, seed: int) -> Scores:
    """Second order (Kwon et al.): the sum over samples of the squared derivative by a unit's mask.

    Without labels, classes are drawn from the program's own outputs.
    """
    members = {g.name: _read(g, program.weights()) for g in coupling.groups}
    names = {m.weight for found in members.values() for m in found}
    found = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in coupling.groups}
    generator = torch.Generator().manual_seed(seed)
    for products in _gradients(program, names, _Single(data), lambda b, y: _sampled(b, y, generator)):
        for group in coupling.groups:
            parts = [_by_unit(products[m.weight], m, group) for m in members[group.name]]
            found[group.name] += torch.stack(parts).sum(0) ** 2
    return {name: value.numpy() for name, value in found.items()}


class _Single:
    """The samples of a dataset one by one."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.data:
            for i in range(batch.size):
                targets = None if batch.targets is None else batch.targets[i : i + 1]
                yield Batch(tuple(t[i : i + 1] for t in batch.inputs), targets)


def _read(group: Group, weights: Mapping[str, Tensor]) -> list[Member]:
    """The members that products sum over, whose masking is what removes a unit; all float ones where there are none."""
    floats = [m for m in group.members if weights[m.weight].is_floating_point()]
    return [m for m in floats if m.summed] or floats


def _by_unit(values: Tensor, member: Member, group: Group) -> Tensor:
    """The sum of a weight's values over each unit."""
    axes = [a for a in range(values.dim()) if a != member.axis]
    along = values.double().sum(axes) if axes else values.double()
    units = torch.from_numpy(member.units)
    alive = units >= 0
    return torch.zeros(group.size, dtype=torch.float64).index_add_(0, units[alive], along[alive])


def _gradients(
    program: Program,
    names: set[str],
    data: Dataset | _Single,
    loss: Callable[[Batch, Tensor], Tensor],
) -> Iterator[dict[str, Tensor]]:
    """For each batch weight times gradient of the loss, by weight."""
    weights: Sequence[tuple[str, Tensor]] = [(n, w) for n, w in program.weights().items() if n in names]
    before = [w.requires_grad for _, w in weights]
    for _, weight in weights:
        weight.requires_grad_(True)
    try:
        for batch in data:
            value = loss(batch, program(*batch.inputs)[0])
            grads = torch.autograd.grad(value, [w for _, w in weights], allow_unused=True)
            yield {
                name: torch.zeros_like(w) if g is None else (w.detach() * g)
                for (name, w), g in zip(weights, grads, strict=True)
            }
    finally:
        for (_, weight), kept in zip(weights, before, strict=True):
            weight.requires_grad_(kept)


def _labelled(batch: Batch, output: Tensor) -> Tensor:
    """Cross-entropy with the classes of the data."""
    if batch.targets is None or batch.targets.is_floating_point() or (output.dim(), batch.targets.dim()) != (2, 1):
        raise PassError("this importance needs one class a sample, in the data and the first output: method=magnitude")
    low, high = int(batch.targets.min()), int(batch.targets.max())
    if low < 0 or high >= output.shape[-1]:
        raise PassError(f"labels go from {low} to {high}, and the model has classes 0 to {output.shape[-1] - 1}")
    return F.cross_entropy(output, batch.targets.long())


def _sampled(batch: Batch, output: Tensor, generator: torch.Generator) -> Tensor:
    """The same with labels where there are any, else with classes drawn from the outputs."""
    if batch.targets is not None and not batch.targets.is_floating_point():
        return _labelled(batch, output)
    if output.dim() < 2:
        raise PassError("method=fisher draws classes from the first output, which has none: use method=magnitude")
    flat = output.reshape(-1, output.shape[-1])
    drawn = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)[:, 0]
    return F.cross_entropy(flat, drawn)
