"""Every exact pass keeps outputs, interface and dynamic batch, on random networks, and does nothing the second time."""

from __future__ import annotations

import importlib
from functools import lru_cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from edgecompile.pass_manager import Context, Pass
from edgecompile.passes import EXACT, PASSES
from edgecompile.program import Program
from tests.random_nets import KINDS, Recipe, build, example, recipes

WHOLE = ",".join(EXACT)
VARIANTS = 36
MIXED = [
    Recipe(tuple((kind, variant + 7 * i) for i in range(3)), 0b010, seed=variant)
    for variant, kind in enumerate(sorted(KINDS))
]


def make(name: str) -> Pass:
    module, _, word = PASSES[name].partition(":")
    found: Pass = getattr(importlib.import_module(module), word)()
    return found


@lru_cache(maxsize=64)
def captured(recipe: Recipe) -> Program:
    # float64: what remains of a difference is a mistake, not rounding
    return Program.capture(build(recipe).double(), (example().double(),))


def run(names: str, program: Program) -> tuple[Program, dict[str, float]]:
    counts: dict[str, float] = {}
    for name in names.split(","):
        ctx = Context(teacher=program)
        program = make(name).run(program, ctx).retraced()
        counts |= ctx.stats
    return program, counts


def worst(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-9)) for a, b in zip(found, wanted, strict=True))


def hold(names: str, recipe: Recipe) -> None:
    program = captured(recipe)
    once, _ = run(names, program.clone())
    for batch in (1, 2, 3):
        x = example(batch, seed=batch).double()
        assert worst(once(x), program(x)) < 1e-9
    assert once.interface == program.interface
    text = str(once)
    assert len(text.splitlines()) <= len(str(program).splitlines())
    if names != WHOLE:
        twice, counts = run(names, once.clone())
        assert counts == {}
        assert str(twice) == text


@pytest.mark.parametrize("name", [*EXACT, WHOLE])
@pytest.mark.parametrize("recipe", MIXED, ids=lambda r: r.blocks[0][0])
def test_exact_on_each_kind_of_block(name: str, recipe: Recipe) -> None:
    hold(name, recipe)
