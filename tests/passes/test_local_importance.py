"""`obs` and `kcm` against what they claim: least squares on what is left, inverses, brute force, and duplicates."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgecompile.axes import couple, cut
from edgecompile.data import Arrays
from edgecompile.passes import _local, _removal
from edgecompile.program import Program


class Feed(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, inner), nn.Linear(inner, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def feed(inner: int, seed: int) -> tuple[Program, Arrays, Tensor]:
    """The program, its data, and what the second layer reads [samples, inner], float64."""
    torch.manual_seed(seed)
    model = Feed(inner).eval()
    x = torch.randn(64, 5)
    return Program.capture(model, (x[:2],)), Arrays("noise", (x,)), torch.relu(model.up(x)).detach().double()


def ridge(x: Tensor, weight: Tensor, kept: list[int]) -> float:
    """The least damped error of giving x w' + b by some of the inputs, as a share of the damped power of x w'."""
    x = x - x.mean(0)
    damped = _local.shrunk(x.T @ x / len(x), len(x))
    root = torch.linalg.cholesky(damped).T
    wanted = root @ weight.T
    found = torch.linalg.lstsq(root[:, kept], wanted, driver="gelsd").solution if kept else torch.zeros(0, len(weight))
    error = wanted - (root[:, kept] @ found if kept else 0)
    return float(error.pow(2).sum() / wanted.pow(2).sum())


@given(seed=st.integers(0, 10**6), inner=st.integers(2, 9))
@settings(max_examples=15, deadline=None)
def test_the_errors_of_obs_add_up_to_least_squares_on_what_is_left(seed: int, inner: int) -> None:
    program, data, x = feed(inner, seed)
    coupling = couple(program)
    (group,) = coupling.groups
    scores = _local.obs(program, coupling, data, 0)[group.name]
    weight = program.weights()["down.weight"].detach().double()
    order = np.argsort(scores, kind="stable")
    greedy, smallest = 0.0, 0.0
    for count in range(1, inner + 1):
        kept = [int(i) for i in order[count:]]
        before, greedy = greedy, ridge(x, weight, kept)
        smallest = max(smallest, greedy - before)
        assert scores[order[count - 1]] == pytest.approx(smallest, rel=1e-4, abs=1e-9)
    best = min((ridge(x, weight, list(set(range(inner)) - {i})), i) for i in range(inner))
    assert scores[order[0]] == pytest.approx(best[0], rel=1e-4, abs=1e-9)


@given(seed=st.integers(0, 10**6), inner=st.integers(3, 9))
@settings(max_examples=15, deadline=None)
def test_layers_that_read_what_is_cut_make_up_for_it_as_least_squares_would(seed: int, inner: int) -> None:
    program, data, x = feed(inner, seed)
    coupling = couple(program)
    keep = {coupling.groups[0].name: list(range(1, inner))}
    smaller, copies = cut(program, keep, coupling)
    with torch.no_grad():
        _local.compensate(smaller, copies, coupling, keep, _local.statistics(program, coupling, data, 0))
        (wanted,), (found,) = program(data.inputs[0]), smaller(data.inputs[0])
    rows = torch.cat([x[:, 1:], torch.ones(len(x), 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(rows, wanted.double(), driver="gelsd").solution
    least, error = (float((y.double() - wanted.double()).pow(2).mean()) for y in (rows @ best, found))
    assert error <= least + 0.2 * float(wanted.var()) + 1e-9  # few samples: it holds on to the weights
    assert float((found - wanted).mean(0).abs().max()) < 1e-5


def test_few_samples_do_not_make_inputs_look_superfluous() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 40, generator=generator, dtype=torch.float64)
    truth = torch.eye(40, dtype=torch.float64)
    few = _local.shrunk(x[:20].T @ x[:20] / 20, 20)
    plain = x[:20].T @ x[:20] / 20 + _local._DAMP * torch.eye(40)
    assert float((few - truth).pow(2).sum()) < 0.2 * float((plain - truth).pow(2).sum())
    assert float(torch.linalg.inv(few).diagonal().max()) < 2 < 20 < float(torch.linalg.inv(plain).diagonal().max())
    many = x.T @ x / 4000
    mixed = many @ torch.diag(torch.linspace(0.01, 4, 40, dtype=torch.float64)) @ many
    assert float((_local.shrunk(mixed, 4000) - mixed).norm() / mixed.norm()) < 0.02


def test_greedy_is_near_brute_force() -> None:
    ratios = []
    for seed in range(12):
        program, data, x = feed(7, seed)
        coupling = couple(program)
        order = np.argsort(_local.obs(program, coupling, data, 0)[coupling.groups[0].name], kind="stable")
        weight = program.weights()["down.weight"].detach().double()
        found = ridge(x, weight, [int(i) for i in order[3:]])
        ratios.append(found / min(ridge(x, weight, list(kept)) for kept in combinations(range(7), 4)))
    assert np.mean(ratios) < 1.1


@pytest.mark.parametrize(("inner", "large"), [(40, 10), (90, 10), (90, 1000)])
def test_many_units_go_as_if_the_inverse_were_made_anew_each_time(
    inner: int, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at once where there are many; in float32 and in smaller matrices as they go, or not: the same."""
    monkeypatch.setattr(_local, "LARGE", large)
    monkeypatch.setattr(_removal, "LARGE", large)
    program, data, x = feed(inner, 3)
    group = couple(program).groups[0]
    scores = _local.obs(program, couple(program), data, 0)[group.name]
    x = x - x.mean(0)
    damped, weight = _local.shrunk(x.T @ x / len(x), len(x)), program.weights()["down.weight"].detach().double()
    left, wanted, at_once = list(range(inner)), [], 1 if inner <= 64 else -(-inner // 32)
    while left:
        inverse = torch.linalg.inv(damped[left][:, left])
        root = torch.linalg.cholesky(damped).T
        now = torch.linalg.lstsq(root[:, left], root @ weight.T).solution.T
        order = torch.argsort(now.pow(2).sum(0) / inverse.diagonal(), stable=True)[:at_once]
        wanted += [left[i] for i in order.tolist()]
        left = [unit for place, unit in enumerate(left) if place not in order.tolist()]
    found = np.argsort(scores, kind="stable").tolist()
    assert found[: inner // 2] == wanted[: inner // 2]
    assert np.mean(np.array(found) == np.array(wanted)) > 0.9


def test_heads_and_kernels_go_as_blocks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3)).eval()
    x = torch.randn(16, 1, 9, 9)
    program = Program.capture(model, (x[:2],))
    coupling = couple(program)
    ((reader,),) = _local.readers(program, coupling).values()
    assert reader.columns.shape == (6, 9)
    first = _local.obs(program, coupling, Arrays("noise", (x,)), 0)[coupling.groups[0].name]
    rows = nn.functional.unfold(torch.relu(model[0](x)), 3).transpose(1, 2).reshape(-1, 54).detach().double()
    wanted = min(
        ridge(rows, reader.weight, [c for c in range(54) if c not in reader.columns[unit]]) for unit in range(6)
    )
    assert first.min() == pytest.approx(wanted, rel=1e-4)


def test_units_that_are_alike_share_what_they_stand_for() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(8, 5, dtype=torch.float64)
    vectors[6] = vectors[5] + 1e-6
    found = _local.standing(vectors)
    assert float(found[[5, 6]].max()) < 0.7
    assert float(found[:5].min()) > 0.8
    kernel = torch.exp(-((torch.cdist(vectors, vectors) / 3) ** 2))
    worth = []
    c = torch.full((8, 8), 1 / 8, dtype=torch.float64)
    for _ in range(50):
        worth.append(float(kernel.trace() - 2 * (kernel @ c).trace() + (c.T @ kernel @ c).trace()))
        c = c * (kernel / (kernel @ c)).sqrt()
    assert all(b <= a + 1e-12 for a, b in pairwise(worth))


def test_kcm_asks_for_no_gradients_and_finds_the_quiet_ones() -> None:
    program, data, x = feed(8, 3)
    coupling = couple(program)
    with torch.inference_mode():
        scores = _local.kcm(program, coupling, data, 0)[coupling.groups[0].name]
    size = x.pow(2).mean(0).sqrt()
    dead = [i for i in range(8) if size[i] == 0]
    assert all(scores[i] == 0 for i in dead)
    assert np.corrcoef(scores, size.numpy())[0, 1] > 0.5
