"""Operators one by one: which axes they couple, that shrunk equals masked, and what they fix and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.axes import couple, shrink
from edgecompile.errors import PassError
from edgecompile.program import Program
from edgecompile.program_file import load, save
from tests.axes.test_shrink import check, distance
from tests.axes.zoo import lively
from tests.random_nets import Recipe, build, example, recipes


class Net(nn.Module):
    """Layers by name, and a function of them."""

    def __init__(self, layers: Mapping[str, nn.Module], function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def program(
    function: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...] = (2, 6, 8, 8), **layers: nn.Module
) -> Program:
    """A network in float64."""
    return Program.capture(lively(Net(layers, function).double()), (torch.randn(shape, dtype=torch.float64),))


def convs(**given: Any) -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(6, 12, 3, padding=1), "b": nn.Conv2d(12, 4, 1), **given}


def mixed(m: Any, x: Tensor) -> Tensor:
    """Queries that share keys, repeated as the Llama family does."""
    q, k, v = m.q(x), m.k(x), m.v(x)
    b, n, _ = x.shape
    q = q.view(b, n, 6, 4).transpose(1, 2)
    k, v = (t.view(b, n, 2, 4).transpose(1, 2) for t in (k, v))
    k, v = (t[:, :, None].expand(b, 2, 3, n, 4).reshape(b, 6, n, 4) for t in (k, v))
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 24))  # type: ignore[no-any-return]


def grouped(m: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q = m.q(x).view(b, n, 6, 4).transpose(1, 2)
    k, v = (t(x).view(b, n, 2, 4).transpose(1, 2) for t in (m.k, m.v))
    found = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return m.o(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def fused(m: Any, x: Tensor) -> Tensor:
    """One projection for queries, keys and values, in three ways to take it apart."""
    b, n, _ = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
    x = x + m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 24))
    q, k, v = (t.view(b, n, 4, 6).transpose(1, 2) for t in m.qkv2(x).chunk(3, -1))
    scores = torch.softmax(q @ k.transpose(-1, -2) / 6**0.5, -1)
    x = x + m.o2((scores @ v).transpose(1, 2).reshape(b, n, 24))
    first, second = m.gate(x)[..., :20], m.gate(x)[..., 20:]
    return m.down(F.silu(first) * second)  # type: ignore[no-any-return]


def rotated(m: Any, x: Tensor) -> Tensor:
    """Rotary positions: the halves of a head are coupled."""
    b, n, _ = x.shape
    angles = torch.arange(n, dtype=x.dtype)[:, None] * m.step.weight[:, 0]
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
    q, k = (p(x).view(b, n, 3, 8).transpose(1, 2) for p in (m.q, m.k))
    q, k = (t * cos + torch.cat([-t[..., 4:], t[..., :4]], -1) * sin for t in (q, k))
    found = F.scaled_dot_product_attention(q, k, m.v(x).view(b, n, 3, 5).transpose(1, 2))
    return m.o(found.transpose(1, 2).reshape(b, n, 15))  # type: ignore[no-any-return]


def linears(**sizes: tuple[int, int]) -> dict[str, nn.Module]:
    return {name: nn.Linear(*pair) for name, pair in sizes.items()}


WORDS = (2, 5, 24)
CASES: dict[str, tuple[Callable[[], Program], list[int]]] = {
    "conv": (lambda: program(lambda m, x: m.b(F.relu(m.a(x))), **convs()), [12]),
    "batch norm and depthwise": (
        lambda: program(lambda m, x: m.b(m.d(m.n(m.a(x)))), **convs(n=nn.BatchNorm2d(12),
                        d=nn.Conv2d(12, 12, 3, groups=12))), [12]),
    "depthwise that widens": (
        lambda: program(lambda m, x: m.b(m.d(m.a(x))), a=nn.Conv2d(6, 4, 1), d=nn.Conv2d(4, 12, 3, groups=4),
                        b=nn.Conv2d(12, 4, 1)), [4, 3]),
    "groups": (lambda: program(lambda m, x: m.b(m.g(m.a(x))), **convs(g=nn.Conv2d(12, 12, 3, groups=3))), [3, 4, 4]),
    "transposed": (lambda: program(lambda m, x: m.b(F.gelu(m.t(m.a(x)))), **convs(t=nn.ConvTranspose2d(12, 12, 2, 2))),
                   [12, 12]),
    "transposed groups": (
        lambda: program(lambda m, x: m.b(m.t(m.a(x))), **convs(t=nn.ConvTranspose2d(12, 12, 2, 2, groups=2))),
        [2, 6, 6]),
    "group norm": (lambda: program(lambda m, x: m.b(m.n(m.a(x))), **convs(n=nn.GroupNorm(3, 12))), [3, 4]),
    "residual": (lambda: program(lambda m, x: m.b(m.a(x) + m.c(x)), **convs(c=nn.Conv2d(6, 12, 1))), [12]),
    "gate": (lambda: program(lambda m, x: m.b(m.a(x) * torch.sigmoid(m.c(m.a(x).mean((2, 3), keepdim=True)))),
                             **convs(c=nn.Conv2d(12, 12, 1))), [12]),
    "concatenation": (lambda: program(lambda m, x: m.b(torch.cat([m.a(x), m.c(x), m.a(x)], 1)), a=nn.Conv2d(6, 5, 1),
                                      c=nn.Conv2d(6, 3, 1), b=nn.Conv2d(13, 4, 1)), [5, 3]),
    "split": (lambda: program(lambda m, x: m.b(torch.cat(m.a(x).split([3, 4, 5], 1)[::-1], 1)), **convs()), [3, 4, 5]),
    "shuffle of channels": (
        lambda: program(lambda m, x: m.b(m.a(x).view(-1, 3, 4, 8, 8).transpose(1, 2).reshape(-1, 12, 8, 8)), **convs()),
        [3, 4]),
    "pixel shuffle": (
        lambda: program(lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), a=nn.Conv2d(6, 20, 1), b=nn.Conv2d(5, 4, 1)),
        [5]),
    "pixel unshuffle": (
        lambda: program(lambda m, x: m.b(F.pixel_unshuffle(m.a(x), 2)), a=nn.Conv2d(6, 3, 1), b=nn.Conv2d(12, 4, 1)),
        [3]),
    "padded channels": (lambda: program(lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 0, 2, 1))), a=nn.Conv2d(6, 9, 1),
                                        b=nn.Conv2d(12, 4, 1)), [9]),
    "flatten": (lambda: program(lambda m, x: m.f(F.max_pool2d(m.a(x), 4).flatten(1)), a=nn.Conv2d(6, 12, 1),
                                f=nn.Linear(48, 5)), [12]),
    "unflatten": (lambda: program(lambda m, x: m.b(m.f(x).unflatten(1, (12, 2, 2))), (2, 7), f=nn.Linear(7, 48),
                                  b=nn.Conv2d(12, 4, 1)), [12]),
    "prelu": (lambda: program(lambda m, x: m.b(m.p(m.a(x))), **convs(p=nn.PReLU(12))), [12]),
    "glu": (lambda: program(lambda m, x: m.b(F.glu(m.a(x), 1)), a=nn.Conv2d(6, 24, 1), b=nn.Conv2d(12, 4, 1)), [12]),
    "layer norm": (lambda: program(lambda m, x: m.b(m.n(m.a(x))), WORDS, **linears(a=(24, 10), b=(10, 3)),
                                   n=nn.LayerNorm(10)), [10]),
    "rms norm": (lambda: program(lambda m, x: m.b(m.n(m.a(x))), WORDS, **linears(a=(24, 10), b=(10, 3)),
                                 n=nn.RMSNorm(10, eps=1e-6)), [10]),
    "norm by hand": (
        lambda: program(lambda m, x: m.b(m.a(x) * torch.rsqrt(m.a(x).pow(2).mean(-1, keepdim=True) + 1e-6)), WORDS,
                        **linears(a=(24, 10), b=(10, 3))), [10]),
    "variance by hand": (
        lambda: program(lambda m, x: m.b((m.a(x) - m.a(x).mean(-1, True)) / m.a(x).var(-1, keepdim=True).sqrt()), WORDS,
                        **linears(a=(24, 10), b=(10, 3))), [10]),
    "shared keys": (lambda: program(mixed, WORDS, **linears(q=(24, 24), k=(24, 8), v=(24, 8), o=(24, 5))),
                    [2, 3, 4, 4]),
    "grouped queries": (lambda: program(grouped, WORDS, **linears(q=(24, 24), k=(24, 8), v=(24, 8), o=(24, 5))),
                        [2, 3, 4, 4]),
    "fused projections": (
        lambda: program(fused, WORDS, **linears(qkv=(24, 72), o=(24, 24), qkv2=(24, 72), o2=(24, 24), gate=(24, 40),
                                                down=(20, 3))), [4, 6, 4, 6, 6, 20]),
    "rotary": (lambda: program(rotated, WORDS, **linears(q=(24, 24), k=(24, 24), v=(24, 15), o=(15, 3), step=(1, 4))),
               [3, 4, 5]),
    "einsum": (lambda: program(lambda m, x: torch.einsum("bnc,dc->bnd", m.a(x), m.b.weight), WORDS,
                               **linears(a=(24, 10), b=(10, 3))), [10]),
    "tied": (lambda: program(lambda m, x: m.b(F.relu(m.a(x)) @ m.a.weight), WORDS,
                             **linears(a=(24, 7), b=(24, 3))), [7]),
    "repeated": (lambda: program(lambda m, x: m.b(m.a(x).repeat(1, 1, 2)), WORDS, **linears(a=(24, 5), b=(10, 3))),
                 [5]),
    "batch in an axis": (
        lambda: program(lambda m, x: m.o((m.a(x).view(-1, 5, 3, 4).transpose(1, 2).reshape(-1, 5, 4) * 2).view(
            -1, 3, 5, 4).transpose(1, 2).reshape(-1, 5, 12)), WORDS, **linears(a=(24, 12), o=(12, 3))), [3, 4]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operators_axes(name: str) -> None:
    torch.manual_seed(0)
    make, sizes = CASES[name]
    made = make()
    coupling = couple(made)
    inner = [g.size for g in coupling.groups]
    assert sorted(inner) == sorted(sizes), [(g.name, g.size) for g in coupling.groups]
    for seed in range(3):
        smaller = check(made, seed)
    again = torch.randn(3, *made.inputs[0].shape[1:], dtype=torch.float64)
    assert smaller(again)[0].shape == made(again)[0].shape  # any batch


@settings(max_examples=12)
@given(recipes())
def test_random_networks(recipe: Recipe) -> None:
    check(Program.capture(build(recipe), (example(),)), 3)


def test_a_shrunk_program_is_saved_loaded_and_shrunk_again(tmp_path: Path) -> None:
    made = CASES["fused projections"][0]()
    first = check(made, 1)
    (tmp_path / "program").mkdir()
    save(first, tmp_path / "program")
    loaded = load(tmp_path / "program")
    assert distance(loaded(*made.inputs)[0], first(*made.inputs)[0]) < 1e-12
    second = check(loaded, 2)
    for name, axes in second.kept.items():  # the teacher's indices, whatever was removed in between
        value = made.weights()[name]
        for axis, index in axes.items():
            value = value.index_select(axis, torch.tensor(index))
        assert torch.equal(second.weights()[name], value)


def test_nothing_removed_is_nothing_changed() -> None:
    made = CASES["fused projections"][0]()
    coupling = couple(made)
    same = shrink(made, {g.name: range(g.size) for g in coupling.groups}, coupling)
    assert torch.equal(same(*made.inputs)[0], made(*made.inputs)[0])
    assert same.kept == {}


def test_members_say_which_index_is_of_which_unit() -> None:
    coupling = couple(CASES["flatten"][0]())
    (group,) = coupling.groups
    assert group.name == "a.weight:0"
    assert [(m.weight, m.axis) for m in group.members] == [("a.weight", 0), ("a.bias", 0), ("f.weight", 1)]
    assert np.array_equal(group.members[2].units, np.repeat(np.arange(12), 4))
    assert coupling.of("f.weight", 1) == [group]
    assert coupling["a.weight:0"] is group


def test_what_is_fixed_says_why() -> None:
    made = program(lambda m, x: m.b(torch.cumsum(m.a(x), -1)).sort(-1).values, WORDS, **linears(a=(24, 10), b=(10, 3)))
    coupling = couple(made)
    assert coupling.groups == ()
    assert coupling.fixed["a.weight", 0].startswith("cumsum (cumsum) of ")
    assert coupling.fixed["a.weight", 1] == "it is an axis of the input x"
    assert coupling.fixed["b.weight", 0].startswith("sort (sort) of ")


def test_an_axis_that_might_be_squeezed_away_stays() -> None:
    made = program(lambda m, x: m.b(m.a(x)[:, None].squeeze()), (2, 6), **linears(a=(6, 10), b=(10, 3)))
    assert couple(made).groups == ()


def test_no_group_and_no_unit_of_that_name() -> None:
    made = CASES["conv"][0]()
    for keep, message in (
        ({"a.weight:1": [0]}, "a.weight:1: no such group of axes"),
        ({"a.weight:0": []}, "a.weight:0: kept units must be different numbers from 0 to 11"),
        ({"a.weight:0": [0, 12]}, "from 0 to 11"),
        ({"a.weight:0": [1, 1]}, "different numbers"),
    ):
        with pytest.raises(PassError, match=message):
            shrink(made, keep)


def test_the_original_is_not_touched() -> None:
    made = CASES["groups"][0]()
    before = made(*made.inputs)[0]
    check(made, 1)
    assert distance(made(*made.inputs)[0], before) == 0
