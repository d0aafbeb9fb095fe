"""Every exact pass keeps outputs, interface and dynamic batch on random networks, and does nothing a second time."""

from __future__ import annotations

import importlib
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

from edgecompile.pass_manager import Context, Pass
from edgecompile.passes import EXACT, PASSES
from edgecompile.program import Program
from edgecompile.rewrite import shape
from tests.random_nets import KINDS, Recipe, build, example, recipes

WHOLE = ",".join(EXACT)
RELEVANT = {
    "remove_identity": ("nothing", "layout", "lora"),
    "fold_constants": ("nothing", "twice"),
    "remove_branches": ("nothing", "twice"),
    "common_subexpressions": ("twice", "nothing"),
    "cancel_transposes": ("layout", "lora"),
    "fold_pad": ("pad",),
    "fold_bn": ("conv_bn", "bn_conv", "up", "repvgg", "twice"),
    "fold_scale": ("scale", "up", "lora"),
    "fold_lora": ("lora",),
    "reparameterize": ("repvgg", "twice"),
    "merge_linear": ("pointwise", "twice"),
}
AFTER = {"fold_lora": "remove_identity", "reparameterize": "fold_bn", "remove_branches": "fold_constants"}
"""The pass that makes room for another, by that other's own documentation."""
PAIRS = [(name, kind) for name, kinds in RELEVANT.items() for kind in kinds]


def make(name: str) -> Pass:
    module, _, word = PASSES[name].partition(":")
    found: Pass = getattr(importlib.import_module(module), word)()
    return found


@lru_cache(maxsize=64)
def captured(recipe: Recipe) -> Program:
    # float64: what remains of a difference is a mistake, not rounding
    return Program.capture(build(recipe).double(), (example().double(),))


def mixed(kind: str) -> Recipe:
    """Four variants of one kind of block in a row, every other one with a residual sum."""
    step = 1 if kind in ("layout", "twice", "nothing") else 7
    return Recipe(tuple((kind, step * i) for i in range(5)), 0b01010, seed=len(kind))


def run(names: str, program: Program) -> tuple[Program, dict[str, float]]:
    """Run passes in order with one retrace at the end, and everything that they counted."""
    counts: dict[str, float] = {}
    for name in names.split(","):
        ctx = Context(teacher=program)
        program = make(name).run(program, ctx)
        program.graph.graph.eliminate_dead_code()
        counts |= ctx.stats
    return program.retraced(), counts


def worst(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """The largest error of any output, relative to that output's scale."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(found, wanted, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-9)) for a, b in pairs)


def hold(names: str, recipe: Recipe) -> dict[str, float]:
    program = captured(recipe)
    once, counts = run(names, program.clone())
    for batch in (1, 2, 3):
        x = example(batch, seed=batch).double()
        assert worst(once(x), program(x)) < 1e-9
    assert once.interface == program.interface
    text = str(once)
    assert len(text.splitlines()) <= len(str(program).splitlines())
    # torch writes sizes and assertions anew with every retrace; every tensor has an origin
    tensors = [n for n in once.graph.graph.nodes if n.op == "call_function" and shape(n) is not None]
    assert [n.name for n in tensors if "origin" not in n.meta.get("custom", {})] == []
    twice, again = run(names, once)
    if names != WHOLE:
        assert again == {}
        assert str(twice) == text
    return counts


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_pass_on_the_blocks_it_rewrites(name: str, kind: str) -> None:
    hold(f"{AFTER[name]},{name}" if name in AFTER else name, mixed(kind))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_passes_on_each_kind_of_block(kind: str) -> None:
    hold(WHOLE, mixed(kind))


def test_each_pass_finds_something_to_do() -> None:
    """The networks would prove nothing if a pass left them alone."""
    for name, kinds in RELEVANT.items():
        ready = (captured(mixed(kind)).clone() for kind in kinds)
        ready = (run(AFTER[name], program)[0] if name in AFTER else program for program in ready)
        assert any(run(name, program)[1] for program in ready), name
    assert set(RELEVANT) == set(EXACT)


@given(recipe=recipes())
@settings(max_examples=6, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_all_passes_on_random_networks(recipe: Recipe) -> None:
    hold(WHOLE, recipe)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
@given(recipe=recipes())
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_each_pass_on_random_networks(name: str, recipe: Recipe) -> None:
    hold(name, recipe)
