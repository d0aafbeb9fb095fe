"""Structured pruning: fits its share, removes the right units, refits by least squares, refuses what it lacks."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.axes import couple, cut, macs, shrink
from edgecompile.data import Arrays
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context
from edgecompile.passes import _importance, _least_squares, _refit
from edgecompile.passes._shrinking import step_of
from edgecompile.passes.prune import Prune, selected
from edgecompile.program import Program
from edgecompile.store import Cache


class Small(nn.Module):
    """A residual net with a depthwise layer and a head of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.up, self.down = nn.Conv2d(16, 48, 1), nn.Conv2d(48, 16, 1)
        self.deep = nn.Conv2d(48, 48, 3, 1, 1, groups=48)
        self.one, self.two = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.down(F.relu(self.deep(F.relu(self.up(x)))))
        return self.two(torch.tanh(self.one(x.mean((2, 3)))))  # type: ignore[no-any-return]


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return Program.capture(Small(), (torch.randn(2, 3, 9, 9),))


def data(count: int = 64, classes: int | None = 5) -> Arrays:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 9, 9, generator=generator)
    targets = None if classes is None else torch.randint(0, classes, (count,), generator=generator)
    return Arrays("noise", (images,), targets)


def context(program: Program, **given: Any) -> Context:
    return Context(program, **{"calib": data(), **given})


def error(a: Program, b: Program) -> float:
    (x,) = data().inputs
    return float((a(x)[0] - b(x)[0]).detach().pow(2).mean())


@pytest.mark.parametrize("method", ["magnitude", "taylor", "taylor_batches", "fisher", "obs", "kcm", "random"])
def test_the_share_is_kept_and_widths_are_blocks(program: Program, method: Any) -> None:
    before = program(*program.inputs)[0]
    smaller = Prune(macs=0.6, method=method, block=4, samples=32).run(program.clone(), context(program))
    share = macs(couple(smaller)) / macs(couple(program))
    assert 0.5 < share <= 0.6
    for name, value in smaller.weights().items():
        assert value.dim() < 2 or value.shape[0] % 4 == 0 or name == "two.weight"
    assert smaller.interface == program.interface
    assert torch.equal(program(*program.inputs)[0], before)


def test_multiplications_are_those_of_the_layers(program: Program) -> None:
    pixels = 81
    wanted = pixels * (27 * 16 + 16 * 48 + 9 * 48 + 48 * 16) + 16 * 24 + 24 * 5
    coupling = couple(program)
    assert macs(coupling) == wanted
    assert {g.name: g.size for g in coupling.groups} == {"stem.weight:0": 16, "up.weight:0": 48, "one.weight:0": 24}
    half = shrink(program, {"up.weight:0": range(24), "one.weight:0": range(8)}, coupling)
    assert macs(coupling, {"up.weight:0": 24, "one.weight:0": 8}) == macs(couple(half))


def test_units_that_do_nothing_go_first(program: Program) -> None:
    dead = {"up.weight:0": range(8, 48, 2), "one.weight:0": range(8)}
    with torch.no_grad():
        program.weights()["down.weight"][:, list(dead["up.weight:0"])] = 0
        program.weights()["two.weight"][:, list(dead["one.weight:0"])] = 0
    coupling = couple(program)
    for scores in (
        _importance.magnitude(program, coupling),
        _importance.taylor(program, coupling, data()),
        _importance.fisher(program, coupling, data(8, None), 0),
    ):
        for name, units in dead.items():
            assert not scores[name][list(units)].any()
            assert np.count_nonzero(scores[name]) > 0.5 * (coupling[name].size - len(units))
    smaller = Prune(macs=0.75, block=4, refit=False).run(program.clone(), context(program))
    assert error(smaller, program) < 1e-10


def test_taylor_is_the_change_of_the_loss(program: Program) -> None:
    """The derivative by a unit's mask, by brute force."""
    coupling, samples = couple(program), data(32)
    group = coupling["up.weight:0"]
    scores = _importance.taylor(program, coupling, dataclasses.replace(samples, batch_size=32), batches=True)
    weight = program.weights()["down.weight"]

    def loss() -> float:
        return float(F.cross_entropy(program(*samples.inputs)[0], samples.targets).detach())

    for unit in range(0, group.size, 7):
        kept = weight[:, unit].detach().clone()
        with torch.no_grad():
            weight[:, unit] = kept * 1.001
            up = loss()
            weight[:, unit] = kept * 0.999
            down = loss()
            weight[:, unit] = kept
        assert abs(up - down) / 0.002 == pytest.approx(scores[group.name][unit], rel=0.05, abs=2e-4)


def test_one_layer_is_solved_as_least_squares_solves_it(program: Program) -> None:
    coupling = couple(program)
    keep = {"one.weight:0": list(range(0, 24, 2))}
    smaller, copies = cut(program, keep, coupling)
    assert _refit.refit(program, smaller, copies, coupling, keep, data(256), 0, {}) == _refit.Refitted(
        5, ("deep",), 256
    )
    hidden: list[Tensor] = []
    (x,) = data(256).inputs
    module = torch.fx.Interpreter(program.graph)

    class Reader(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            found = super().run_node(n)
            if n.target is torch.ops.aten.tanh.default:
                hidden.append(found)
            return found

    with torch.no_grad():
        wanted = module.run(x)[0]
        Reader(program.graph).run(x)
    rows = torch.cat([hidden[0][:, ::2], torch.ones(256, 1)], 1).double().numpy()
    old, made = (
        torch.cat([p.weights()["two.weight"], p.weights()["two.bias"][:, None]], 1).detach().double().numpy()
        for p in (shrink(program, keep), smaller)
    )
    damp = 1e-3 * np.square(rows).sum() / rows.shape[1]  # as so many rows more that ask for the old weights
    more = np.vstack([rows, damp**0.5 * np.eye(rows.shape[1])])
    targets = np.vstack([wanted.double().numpy(), damp**0.5 * old.T])
    solved = np.linalg.lstsq(more, targets, rcond=None)[0].T
    assert np.abs(made - solved).max() < 1e-3 * np.abs(solved).max()


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_refitting_lessens_the_error(program: Program, method: Any) -> None:
    plain, refitted = (
        Prune(macs=0.6, method=method, block=4, refit=refit).run(program.clone(), context(program))
        for refit in (False, True)
    )
    assert error(refitted, program) < 0.5 * error(plain, program)


def test_what_is_not_refitted_is_told(program: Program) -> None:
    ctx = context(program)
    Prune(macs=0.8).run(program.clone(), ctx)
    assert ctx.notes == ["not refitted (grouped, tied or large): deep"]
    assert (ctx.stats["refitted"], ctx.stats["refit_samples"]) == (5, 64)


def test_nothing_removed_and_everything_refitted_is_the_same_network(program: Program) -> None:
    coupling = couple(program)
    smaller, copies = cut(program, {}, coupling)
    _refit.refit(program, smaller, copies, coupling, {}, data(256), 0, {})
    assert error(smaller.retraced(), program) < 1e-8


def test_the_greedy_choice_is_near_the_best(program: Program) -> None:
    coupling = couple(program)
    generator = np.random.default_rng(0)
    scores = {g.name: np.sort(generator.random(g.size)) for g in coupling.groups}
    total = macs(coupling)
    keep = selected(coupling, scores, 0.6, 8)
    left = {g.name: len(keep.get(g.name, range(g.size))) for g in coupling.groups}

    def lost(widths: dict[str, int]) -> float:
        return float(sum(scores[n][: coupling[n].size - w].sum() for n, w in widths.items()))

    names = [g.name for g in coupling.groups]
    ranges = [range(8, g.size + 1, 8) for g in coupling.groups]
    every = (dict(zip(names, widths, strict=True)) for widths in itertools.product(*ranges))
    best = min(lost(w) for w in every if macs(coupling, w) <= 0.6 * total)
    assert macs(coupling, left) <= 0.6 * total
    assert lost(left) <= 1.5 * best


def test_a_block_is_of_indices_not_of_units() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Flatten(), nn.Linear(12 * 16, 4))
    (group,) = couple(Program.capture(net, (torch.randn(2, 3, 4, 4),))).groups
    assert step_of(group, 8) == 8  # the convolution's axis, though each unit is 16 inputs of the linear layer
    heads = couple(Program.capture(_Heads(), (torch.randn(2, 5, 32),)))
    assert [(g.size, step_of(g, 8)) for g in heads.groups] == [(4, 1), (8, 2), (8, 2)]


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).view(-1, 5, 4, 8).transpose(1, 2) for p in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 5, 32))  # type: ignore[no-any-return]


def test_a_share_of_the_latency_is_searched_for(program: Program) -> None:
    asked = []

    def share(one: Program, of: Program) -> float:
        asked.append(macs(couple(one)) / macs(couple(of)))
        return 0.2 + 0.8 * asked[-1]  # a fifth is no multiplication

    ctx = context(program, share=share)
    smaller = Prune(latency=0.7, block=2).run(program.clone(), ctx)
    assert 0.63 <= 0.2 + 0.8 * macs(couple(smaller)) / macs(couple(program)) <= 0.7
    assert len(asked) == ctx.stats["tried"]
    with pytest.raises(PassError, match=r"prune: latency=0\.15 is out of reach: the fastest one tried takes 0\.[234]"):
        Prune(latency=0.15, block=2).run(program.clone(), context(program, share=share))


def test_refusals(program: Program) -> None:
    with pytest.raises(SpecError, match="give macs or latency, not both"):
        Prune(macs=0.5, latency=0.5)
    with pytest.raises(SpecError, match=r"1\.5: the share that is left lies between 0 and 1"):
        Prune(macs=1.5)
    with pytest.raises(PassError, match=r"macs=0\.01 is out of reach: a block of every group is 0\.\d+ of them"):
        Prune(macs=0.01).run(program.clone(), context(program))
    with pytest.raises(PassError, match=r"method=taylor needs data: give --train or --calib, or method=magnitude"):
        Prune(method="taylor").run(program.clone(), context(program, calib=None))
    with pytest.raises(PassError, match=r"needs one class a sample"):
        Prune(method="taylor").run(program.clone(), context(program, calib=data(classes=None)))
    with pytest.raises(PassError, match=r"labels go from 0 to 8, and the model has classes 0 to 4"):
        Prune(method="taylor").run(program.clone(), context(program, calib=data(classes=9)))
    with pytest.raises(PassError, match=r"latency needs a target that is timed or predicted"):
        Prune(latency=0.5).run(program.clone(), context(program))
    alone = Program.capture(nn.Linear(4, 3), (torch.randn(2, 4),))
    with pytest.raises(PassError, match=r"no axis of this program can shrink: it is an axis of the output"):
        Prune().run(alone, context(alone))
    fixed = program.specialised(2)
    for one, what in ((Prune(), "refit .refit=False leaves it out."), (Prune(method="fisher"), "method=fisher")):
        with pytest.raises(PassError, match=rf"prune: {what} needs a dynamic batch, and the program's is fixed at 2"):
            one.run(fixed.clone(), context(fixed))
    ctx = context(program, calib=None)
    Prune(macs=0.7).run(program.clone(), ctx)
    assert ctx.notes == ["nothing is refitted: there is no calibration data"]


def test_a_share_of_the_latency_is_never_taken_from_the_cache(program: Program, tmp_path: Path) -> None:
    """It stands for one device and hides the recorded answers; each answer is kept by itself."""
    from edgecompile.building.remembered import remembered

    class Shop:
        score = evaluate = None

        def tell(self, what: str, done: int, total: int) -> None:
            pass

    apply = remembered(Cache(tmp_path), {}, Shop(), "teacher")  # type: ignore[arg-type]
    widths = []
    for fixed_part in (0.0, 0.3):  # two devices

        def share(one: Program, of: Program, fixed_part: float = fixed_part) -> float:
            return fixed_part + (1 - fixed_part) * macs(couple(one)) / macs(couple(of))

        made = apply(Prune(latency=0.7, block=2, refit=False), program, context(program, share=share))
        widths.append(macs(couple(made)))
    assert widths[1] < widths[0]
    assert not (tmp_path / "entries").exists()


def test_a_large_embedding_does_not_take_the_samples_from_the_refit() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Embedding(200_000, 64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    ids = torch.randint(0, 200_000, (96, 5))
    made = Program.capture(wide, (ids[:2],))
    ctx = Context(made, calib=Arrays("ids", (ids,)))
    Prune(macs=0.6).run(made.clone(), ctx)
    assert ctx.stats["refit_samples"] == 96


@given(seed=st.integers(0, 10**6), few=st.booleans())
@settings(max_examples=20, deadline=None)
def test_layers_are_solved_as_least_squares_says_and_hold_on_where_samples_are_few(seed: int, few: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    old = truth + 0.1 * torch.randn(3, 12, generator=generator, dtype=torch.float64)
    halves = [_least_squares.Sums(), _least_squares.Sums()]
    rows, wanted = [], []
    for half in halves:
        x = torch.randn(8 if few else 400, 12, generator=generator, dtype=torch.float64)
        y = x @ truth.T + (3.0 if few else 0.1) * torch.randn(len(x), 3, generator=generator, dtype=torch.float64)
        half.add(x, y)
        rows.append(x)
        wanted.append(y)
        assert half.error(old) == pytest.approx(float((x @ old.T - y).pow(2).sum()), rel=1e-9)
    found = _least_squares.ridge(halves, old)
    best = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution.T
    if few:
        assert float((found - truth).norm()) < float((best - truth).norm())
    else:
        torch.testing.assert_close(found, best, atol=2e-2, rtol=0)


@given(seed=st.integers(0, 10**6), inputs=st.integers(2, 30), damp=st.sampled_from(_least_squares.DAMPS))
@settings(max_examples=30, deadline=None)
def test_few_rows_are_solved_by_their_number_and_give_the_same_weights(seed: int, inputs: int, damp: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(3, inputs, generator=generator, dtype=torch.float64)
    pairs = [[_least_squares.Sums(), _least_squares.Sums()], [_least_squares.Rows(), _least_squares.Rows()]]
    for half in range(2):
        for _ in range(2):
            x = torch.randn(4, inputs, generator=generator, dtype=torch.float64)
            y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
            for pair in pairs:
                pair[half].add(x, y)
    sums, rows = pairs
    assert sums[0].count == rows[0].count == 8
    assert sums[1].error(old) == pytest.approx(rows[1].error(old), rel=1e-9)
    torch.testing.assert_close(sums[0].solved(old, damp), rows[0].solved(old, damp), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(_least_squares.ridge(sums, old), _least_squares.ridge(rows, old), atol=1e-8, rtol=1e-8)


def test_a_matrix_that_rounding_made_indefinite_is_solved_all_the_same() -> None:
    matrix = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    right = torch.tensor([[3.0], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(_least_squares.definite(matrix, right), torch.ones(2, 1, dtype=torch.float64))
