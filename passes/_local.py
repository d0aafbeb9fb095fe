"""Importance of units by what the layers that read them lose: `obs` with, and `kcm` without their other inputs.

Both need calibration data alone: no labels, and gradients only to tell padding from what counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from edgecompile.axes import Coupling
from edgecompile.axes.dims import Dim, Index, kept
from edgecompile.data import Dataset
from edgecompile.passes import _importance, _refit
from edgecompile.passes._importance import Scores
from edgecompile.passes._least_squares import definite, product
from edgecompile.passes._relevant import Relevant, relevant
from edgecompile.passes._removal import LARGE, removed
from edgecompile.passes._taps import tapped
from edgecompile.program import Program
from edgecompile.rewrite import argument, set_weight, weight, weight_readers

_DAMP = 1e-2
_SETTLED, _ROUNDS = 1e-4, 500


@dataclass(frozen=True)
class Reader:
    """A layer that sums over a group's units: its weight [outputs, inputs], and each unit's inputs [units, inputs]."""

    node: fx.Node
    weight: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Moments:
    """Of what a layer multiplies its weights with: the mean of x x' [inputs, inputs], of x, and how many x.

    In float64, or float32 where there are so many inputs that these are most of the memory.
    """

    second: Tensor
    mean: Tensor
    count: int

    @property
    def spread(self) -> Tensor:
        """The covariance: what is lost where a bias takes up what is constant."""
        return torch.addr(self.second, self.mean, self.mean, alpha=-1)


def shrunk(matrix: Tensor, count: int) -> Tensor:
    """A covariance from so many samples, drawn towards a multiple of the identity as far as their number asks for.

    The oracle approximating shrinkage of Chen, Wiesel and Hero (2010): with fewer samples than inputs some inputs look
    as if the others gave them, and would cost nothing. Some damping beside that keeps it from being singular.
    """
    size = len(matrix)
    mean = float(matrix.diagonal().mean())
    square, trace = float(torch.linalg.vector_norm(matrix)) ** 2, float(matrix.trace()) ** 2
    below = (count + 1 - 2 / size) * (square - trace / size)
    part = min(1.0, ((1 - 2 / size) * square + trace) / below) if below > 0 else 1.0
    found = (1 - part) * matrix
    found.diagonal().add_((part + _DAMP) * max(mean, 1e-12))
    return found


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

    With H the inputs' second moments (their covariance where the layer has a bias, which takes up what is constant) and
    W the weight, removing the columns S costs tr(W_S inv(inv(H)_SS) W_S'); the cheapest goes, and inverse and weights
    are those without it from then on. Each layer's error is a share of its output's power, and those of all layers that
    read a group add up. Large groups lose several units at a time. Groups whose readers cannot be solved are ranked by
    magnitude.
    """
    return removals(program, coupling, *statistics(program, coupling, data, seed))


Readers = dict[str, list[Reader]]
Statistics = tuple[Readers, dict[fx.Node, Moments]]


def statistics(
    program: Program, coupling: Coupling, data: Dataset, seed: int, counts: Relevant | None = None
) -> Statistics:
    """The layers that read each group, and the moments of their inputs, over the positions that count."""
    found = readers(program, coupling)
    counts = relevant(program, data) if counts is None else counts
    return found, _moments(program, [r.node for rs in found.values() for r in rs], data, seed, counts)


def removals(program: Program, coupling: Coupling, found: Readers, moments: Mapping[fx.Node, Moments]) -> Scores:
    """What `obs` says, from the moments."""
    scores = _importance.magnitude(program, coupling)
    for group in coupling.groups:
        if found[group.name]:
            scores[group.name] = removed(
                group.size, [(r.weight, _held(r, moments[r.node]), r.columns) for r in found[group.name]]
            )
    return scores


def _held(reader: Reader, moments: Moments) -> Tensor:
    """What the errors of a layer are measured by: the bias, where there is one, mends the mean."""
    own = moments.second if argument(reader.node, "bias") is None else moments.spread
    return shrunk(own, moments.count)


def compensate(
    smaller: Program,
    copies: Mapping[fx.Node, fx.Node],
    coupling: Coupling,
    keep: Mapping[str, Sequence[int]],
    statistics: Statistics,
) -> None:
    """Set the weights of the layers that read what was cut to those nearest to what they gave, in place.

    W_K' = W H_:K inv(H_KK) over the inputs K that are left, a bias takes up the means. One group, or several that no
    layer reads together.
    """
    found, moments = statistics
    chosen = coupling.chosen(keep)
    for name, units in keep.items():
        for reader in found[name]:
            _compensated(smaller, copies[reader.node], reader, moments[reader.node], units, chosen, coupling)


def _compensated(
    smaller: Program,
    node: fx.Node,
    reader: Reader,
    moments: Moments,
    units: Sequence[int],
    chosen: Mapping[Dim, Index],
    coupling: Coupling,
) -> None:
    spread = _held(reader, moments)
    left = torch.ones(len(spread), dtype=torch.bool)
    left[reader.columns.flatten()] = False
    left[reader.columns[list(units)].flatten()] = True
    outputs = kept(coupling.weights[str(argument(reader.node, "weight").target)][0], chosen)
    own = reader.weight[outputs]
    inner = spread[left][:, left].double()
    gone = own[:, ~left] @ spread[~left][:, left].double()
    new = own[:, left] + definite(inner, gone.T).T
    value = weight(smaller, argument(node, "weight"))
    assert value is not None
    set_weight(smaller, argument(node, "weight"), new.reshape(value.shape).to(value.dtype))
    bias = weight(smaller, argument(node, "bias"))
    if bias is not None:
        means = moments.mean.double()
        shift = own @ means - new @ means[left]
        set_weight(smaller, argument(node, "bias"), (bias.double() + shift).to(bias.dtype))


def kcm(program: Program, coupling: Coupling, data: Dataset, seed: int) -> Scores:
    """How well a unit stands for the others' weights, times how strongly it is active (Nova et al., 2023).

    The weights that read a unit are a vector; C minimises tr(K) - 2 tr(KC) + tr(C'KC) over non-negative C, K being the
    Gaussian kernel of these vectors, as wide as their median distance. The score is C's diagonal, near 1 for a unit
    like no other and shared between those that are alike, times the mean size of the unit's inputs to that layer, as a
    share of the layer's. What is left is refitted whole, of which the paper's tuning of masks is the diagonal.
    """
    found, moments = statistics(program, coupling, data, seed)
    scores = _importance.magnitude(program, coupling)
    for group in coupling.groups:
        total = np.zeros(group.size)
        for reader in found[group.name]:
            vectors = reader.weight[:, reader.columns].transpose(0, 1).flatten(1)
            active = moments[reader.node].second.diagonal()[reader.columns].sum(1).sqrt()
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


def _moments(
    program: Program, nodes: Sequence[fx.Node], data: Dataset, seed: int, counted: Relevant
) -> dict[fx.Node, Moments]:
    """The moments of what each layer multiplies its weights with; positions are drawn evenly."""
    nodes = list(dict.fromkeys(nodes))
    module = tapped(program, [argument(n, "input") for n in nodes])
    shapes = {n: argument(n, "weight").meta["val"].shape for n in nodes}
    sums: dict[fx.Node, Tensor] = {}
    means: dict[fx.Node, Tensor] = {}
    counts = dict.fromkeys(nodes, 0)
    generator = torch.Generator().manual_seed(seed)
    start = 0
    with torch.no_grad():
        for batch in data:
            _, values = module(*batch.inputs)
            samples = slice(start, start := start + len(batch.inputs[0]))
            for node, value in zip(nodes, values, strict=True):
                rows = _refit.of_those([_refit.rows_of(node, value, shapes[node])], counted.get(node), samples)[0]
                (rows,) = _refit.drawn(rows, generator=generator)
                counts[node] += len(rows)
                kind = torch.float32 if rows.shape[1] > LARGE else torch.float64
                gram, mean = product(rows, rows).to(kind), rows.sum(0, dtype=kind)
                sums[node] = sums[node].add_(gram) if node in sums else gram
                means[node] = means[node].add_(mean) if node in means else mean
    return {node: Moments(sums[node] / counts[node], means[node] / counts[node], counts[node]) for node in sums}
