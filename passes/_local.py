"""Importance of units by what the layers that read them lose: `obs` with, and `kcm` without their other inputs.

Both need calibration data alone: no labels, no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from edgecompile.axes import Coupling, Group
from edgecompile.data import Dataset
from edgecompile.passes import _importance, _refit
from edgecompile.passes._importance import Scores
from edgecompile.passes._taps import tapped
from edgecompile.program import Program
from edgecompile.rewrite import argument, weight_readers

_STEPS = 64
"""Removals of a group after which the inverse has been brought up to date so often; each takes as many units."""
_DAMP = 1e-2
_SETTLED, _ROUNDS = 1e-4, 500


@dataclass(frozen=True)
class Reader:
    """A layer that sums over a group's units: its weight [outputs, inputs], and each unit's inputs [units, inputs]."""

    node: fx.Node
    weight: Tensor
    columns: Tensor


def readers(program: Program, coupling: Coupling) -> dict[str, list[Reader]]:
    """Linear layers and convolutions that read each group, where every unit has as many of their inputs."""
    known, weights = weight_readers(program), program.weights()
    found: dict[str, list[Reader]] = {}
    for group in coupling.groups:
        found[group.name] = []
        for member in group.members:
            if not member.summed or member.axis != 1:
                continue
            value = weights[member.weight].detach().double().flatten(1)
            wide = value.shape[1] // weights[member.weight].shape[1]
            counts = np.bincount(member.units[member.units >= 0], minlength=group.size)
            if len(set(counts.tolist())) != 1 or not counts[0]:
                continue
            order = torch.from_numpy(np.argsort(member.units, kind="stable")[int((member.units < 0).sum()) :])
            columns = (order[:, None] * wide + torch.arange(wide)).reshape(group.size, -1)
            nodes = [n for n in known[member.weight] if _refit.fits(program, n, known)]
            found[group.name] += [Reader(node, value, columns) for node in nodes]
    return found


def obs(program: Program, coupling: Coupling, data: Dataset, seed: int) -> Scores:
    """The exact least-squares error of removing units one after the other, the rest compensating (ZipLM).

    With H the inputs' second moments and W the weight, removing the columns S costs tr(W_S inv(inv(H)_SS) W_S'); the
    cheapest goes, and inverse and weights are those without it from then on. Each layer's error is a share of its
    output's power, and those of all layers that read a group add up. Large groups lose several units at a time. Groups
    whose readers cannot be solved are ranked by magnitude.
    """
    found = readers(program, coupling)
    moments = _moments(program, [r.node for rs in found.values() for r in rs], data, seed)
    scores = _importance.magnitude(program, coupling)
    for group in coupling.groups:
        if found[group.name]:
            scores[group.name] = _removed(group, [(r, moments[r.node]) for r in found[group.name]])
    return scores


def _removed(group: Group, layers: Sequence[tuple[Reader, Tensor]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What each unit costs at its turn; units that go later never cost less than those before them."""
    weights, inverses, powers = [], [], []
    for reader, moments in layers:
        damped = moments + _DAMP * moments.diagonal().mean().clamp(min=1e-12) * torch.eye(len(moments))
        weights.append(reader.weight.clone())
        inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(damped)))
        powers.append(float((reader.weight @ damped * reader.weight).sum().clamp(min=1e-300)))
    left = torch.arange(group.size)
    at_once = -(-group.size // _STEPS)
    scores = np.zeros(group.size)
    least = 0.0
    while len(left):
        costs = torch.zeros(len(left), dtype=torch.float64)
        for (reader, _), value, inverse, power in zip(layers, weights, inverses, powers, strict=True):
            inputs = reader.columns[left]
            blocks = inverse[inputs[:, :, None], inputs[:, None, :]]
            own = value[:, inputs].transpose(0, 1)
            costs += torch.einsum("uok,ukl,uol->u", own, torch.linalg.inv(blocks), own) / power
        order = torch.argsort(costs, stable=True)
        gone, joint = left[order[:at_once]], 0.0
        for i, ((reader, _), value, inverse, power) in enumerate(zip(layers, weights, inverses, powers, strict=True)):
            inputs = reader.columns[gone].flatten()
            middle = torch.linalg.inv(inverse[inputs][:, inputs])
            own, across = value[:, inputs], inverse[inputs]
            joint += float(torch.einsum("ok,kl,ol->", own, middle, own)) / power
            weights[i] = value - own @ middle @ across
            inverses[i] = inverse - across.T @ middle @ across
            inverses[i][inputs, inputs] = 1.0  # they are gone, and no later block is to be singular with them
        for unit in gone.tolist():
            least = max(joint / len(gone), least * (1 + 1e-9))
            scores[unit] = least
        left = left[torch.isin(left, gone, invert=True)]
    return scores


def kcm(program: Program, coupling: Coupling, data: Dataset, seed: int) -> Scores:
    """How well a unit stands for the others' weights, times how strongly it is active (Nova et al., 2023).

    The weights that read a unit are a vector; C minimises tr(K) - 2 tr(KC) + tr(C'KC) over non-negative C, K being the
    Gaussian kernel of these vectors, as wide as their median distance. The score is C's diagonal, near 1 for a unit
    like no other and shared between those that are alike, times the mean size of the unit's inputs to that layer, as a
    share of the layer's. What is left is refitted whole, of which the paper's tuning of masks is the diagonal.
    """
    found = readers(program, coupling)
    moments = _moments(program, [r.node for rs in found.values() for r in rs], data, seed)
    scores = _importance.magnitude(program, coupling)
    for group in coupling.groups:
        total = np.zeros(group.size)
        for reader in found[group.name]:
            vectors = reader.weight[:, reader.columns].transpose(0, 1).flatten(1)
            active = moments[reader.node].diagonal()[reader.columns].sum(1).sqrt()
            total += (standing(vectors) * active / active.sum().clamp(min=1e-300)).numpy()
        if found[group.name]:
            scores[group.name] = total
    return scores


def standing(vectors: Tensor) -> Tensor:
    """The diagonal of the kernel's non-negative representation of itself, by multiplicative updates [units]."""
    distances = torch.cdist(vectors, vectors)
    count = len(vectors)
    if count < 2:
        return torch.ones(count, dtype=torch.float64)
    wide = distances[~torch.eye(count, dtype=torch.bool)].median().clamp(min=1e-300)
    kernel = torch.exp(-((distances / wide) ** 2))
    found = torch.full((count, count), 1 / count, dtype=torch.float64)
    size = float(found.sum())
    for _ in range(_ROUNDS):
        found = found * (kernel / (kernel @ found).clamp(min=1e-300)).sqrt()
        size, before = float(found.sum()), size
        if abs(size - before) < _SETTLED * before:
            break
    return found.diagonal()


def _moments(program: Program, nodes: Sequence[fx.Node], data: Dataset, seed: int) -> dict[fx.Node, Tensor]:
    """The mean of x x' over what each layer multiplies its weights with, float64; positions are drawn evenly."""
    nodes = list(dict.fromkeys(nodes))
    module = tapped(program, [argument(n, "input") for n in nodes])
    shapes = {n: argument(n, "weight").meta["val"].shape for n in nodes}
    sums: dict[fx.Node, Tensor] = {}
    counts = dict.fromkeys(nodes, 0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for batch in data:
            _, values = module(*batch.inputs)
            for node, value in zip(nodes, values, strict=True):
                (rows,) = _refit.drawn(_refit.rows_of(node, value, shapes[node]), generator)
                counts[node] += len(rows)
                gram = rows.double().T @ rows.double()
                sums[node] = sums[node].add_(gram) if node in sums else gram
    return {node: total / counts[node] for node, total in sums.items()}
