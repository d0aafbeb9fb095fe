"""Weight-only compression: integers within half a step, palettes as good as the best, zeros kept, nothing silent."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgecompile.errors import PassError
from edgecompile.pass_manager import Context, PassManager, Step, parse
from edgecompile.passes import PASSES
from edgecompile.passes._cluster import nearest, palette_of
from edgecompile.passes.compress_weights import affine, rounded
from edgecompile.passes.palettize import table
from edgecompile.program import Program, attribute


class Net(nn.Module):
    """A convolution, a linear layer, and an embedding that a linear layer shares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 16, 3)
        self.tied = nn.Embedding(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu().mean((2, 3))
        rows: Tensor = self.tied((y > 0).long()).sum(1)
        return torch.nn.functional.linear(rows + y, self.tied.weight)


def net() -> Program:
    return Program.capture(Net().eval(), (torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1)),))


def passed(text: str) -> tuple[Program, Program, Step]:
    program = net()
    result, steps = PassManager(parse(text, PASSES)).run(program, Context(program))
    return program, result, steps[0]


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=60)
def test_a_small_palette_is_the_best_of_all(values: list[int], count: int) -> None:
    """Against every way to cut the sorted values into runs."""
    ordered = np.sort(np.array(values, np.float64))
    found = palette_of(ordered, count)
    assert len(found) <= count
    cuts = range(1, len(ordered))
    best = min(
        sum(float(((run - run.mean()) ** 2).sum()) for run in np.split(ordered, edges))
        for more in range(min(count, len(ordered)))
        for edges in combinations(cuts, more)
    )
    assert error(ordered, found) == pytest.approx(best, abs=1e-9)


def error(values: np.ndarray, palette: np.ndarray) -> float:
    return float(((values - palette[nearest(values, palette)]) ** 2).sum())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy", "two"])
def test_a_large_palette_is_no_worse_than_evenly_spaced_numbers(kind: str, bits: int) -> None:
    draw = np.random.default_rng(bits)
    values = {
        "normal": draw.standard_normal(5000),
        "heavy": draw.standard_t(2, 5000),
        "two": np.concatenate([draw.normal(-3, 0.01, 2500), draw.normal(5, 1, 2500)]),
    }[kind]
    found = palette_of(values, 2**bits)
    even = np.linspace(values.min(), values.max(), 2**bits)
    assert error(values, found) <= error(values, even) * (1 + 1e-9)
    assert np.array_equal(found, palette_of(draw.permutation(values), 2**bits))
    groups = nearest(values, found)
    for index in np.unique(groups):  # each number is the mean of what takes it, as far as the steps went
        members = values[groups == index]
        assert abs(members.mean() - found[index]) <= 0.25 * (np.ptp(members) + 1e-9)


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([(8, 127), (4, 7)]))
@settings(max_examples=40)
def test_integers_are_within_half_a_step_or_at_the_end(seed: int, symmetric: bool, kind: tuple[int, int]) -> None:
    rows = torch.randn(5, 1, 40, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 5 - 2)
    high = kind[1]
    low = -high if symmetric else -high - 1
    scale, zero = affine(rows, low, high, symmetric)
    assert torch.equal(scale, scale.half().float())
    data = rounded(rows, scale, zero, low, high)
    value = (data - zero) * scale
    inside = (data > low) & (data < high)
    assert bool((((value - rows).abs() <= 0.5001 * scale) | ~inside).all())
    span = rows.abs().amax(-1, keepdim=True) / high
    plain = (rows / span).round().clamp(low, high) * span
    if symmetric:  # the search gains on the whole range, but for the rounding of the scale to half precision
        errors = ((value - rows) ** 2).sum(-1), ((plain - rows) ** 2).sum(-1)
        assert bool((errors[0] <= errors[1] * 1.1 + 1e-12).all())


@pytest.mark.parametrize(
    "text",
    [
        "compress_weights(smallest=64)",
        "compress_weights(smallest=64, dtype=int4, group=4)",
        "compress_weights(smallest=64, group=8, symmetric=False)",
        "palettize(smallest=64, bits=6)",
        "palettize(smallest=64, bits=4, group=4)",
    ],
)
def test_outputs_stay_near_and_shared_weights_shared(text: str) -> None:
    program, result, step = passed(text)
    x = torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(2))
    found, wanted = result(x)[0], program(x)[0]
    assert (found - wanted).norm() <= {"i": 0.2, "w": 0.05}["i" if "4" in text.split("=")[-2] else "w"] * wanted.norm()
    assert step.stats["compressed"] == 2
    stored = {
        n for n in result.weights() if n.startswith("tied.weight_") and n.rpartition("_")[2] in ("data", "indices")
    }
    assert len(stored) == 1
    assert "tied.weight" not in result.weights()
    assert all(result.origin[n] == n.rpartition("_")[0] for n in result.weights() if "weight_" in n)
    assert result.batch is None


def test_group_scales_are_finer_than_one_a_channel() -> None:
    def off(text: str) -> float:
        program, result, _ = passed(text)
        x = torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(2))
        return float((result(x)[0] - program(x)[0]).detach().norm())

    assert off("compress_weights(smallest=64, dtype=int4, group=2)") < off("compress_weights(smallest=64, dtype=int4)")


def test_zeros_of_a_pruned_weight_stay_zeros() -> None:
    values = np.random.default_rng(0).standard_normal(4000) + 3
    values[::2] = 0
    for bits in (1, 2, 5):
        found = table(values, 2**bits)
        assert len(found) <= 2**bits
        assert bool((found[nearest(values[::2], found)] == 0).all())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("palettize(bits=9)", r"^palettize: bits=9, group=0: bits are 1 to 8"),
        ("compress_weights(group=1)", r"^compress_weights: group=1: give 2 or more"),
        (
            "compress_weights(keep_float='con')",
            r"^compress_weights: keep_float: 'con' matches no layer; did you mean conv",
        ),
        ("palettize(smallest=100000)", r"^palettize: no weight of 100000 numbers or more is left"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        passed(text)


def test_what_stays_float_is_told() -> None:
    _, result, step = passed("palettize(smallest=64, keep_float='conv')")
    assert step.notes == ("conv.weight (conv) stays float: keep_float",)
    assert isinstance(attribute(result.graph, "conv.weight"), nn.Parameter)
