"""Removing units gives what masking them gives, on the field's architectures."""

from __future__ import annotations

import random

import pytest
import torch

from edgecompile.axes import Coupling, couple, cut, shrink
from edgecompile.program import Program
from tests.axes.masked import Masked
from tests.axes.zoo import NETWORKS, captured


def subset(coupling: Coupling, seed: int, share: float = 0.6) -> dict[str, list[int]]:
    """Some units of most groups, at least one of each."""
    chance = random.Random(seed)
    keep = {}
    for group in coupling.groups:
        if chance.random() < 0.8:
            count = max(1, round(group.size * chance.uniform(share - 0.3, share + 0.3)))
            keep[group.name] = sorted(chance.sample(range(group.size), min(count, group.size)))
    return keep


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference as a share of the largest value."""
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-12))


def check(program: Program, seed: int) -> Program:
    """Shrink some units of every group, compare with the masked network; the smaller program."""
    coupling = couple(program)
    keep = subset(coupling, seed)
    wanted = Masked(program, coupling, keep).run(*program.inputs)
    smaller = shrink(program, keep, coupling)
    found = smaller(*program.inputs)
    for a, b in zip(found, wanted, strict=True):
        assert distance(a, b) < 1e-6
    other = {name: sorted((k + 1) % coupling[name].size for k in kept) for name, kept in keep.items()}
    if other != keep:  # the numbers of the units matter
        wrong = cut(program, other, coupling)[0](*program.inputs)
        assert max(distance(a, b) for a, b in zip(wrong, wanted, strict=True)) > 1e-4
    return smaller


QUICK = {"resnet", "densenet", "vit", "bert", "llama", "vgg-like"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS])
def test_shrunk_equals_masked(name: str) -> None:
    program = captured(name)
    smaller = check(program, 1)
    count, before = (sum(w.numel() for w in p.weights().values()) for p in (smaller, program))
    assert count < 0.9 * before
