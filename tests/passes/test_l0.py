"""Gates: formulas against sampling, the pressure reaches its target, what is cut is what the gates closed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgecompile.axes import couple, cut, macs
from edgecompile.data import Arrays
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context
from edgecompile.passes._gates import Gates, open_probability, sampled, settled
from edgecompile.passes.l0 import L0
from edgecompile.program import Program
from tests.axes.zoo import captured


@pytest.mark.parametrize(("alpha", "opened", "mean"), [(-3.0, 0.198, 0.060), (0.0, 0.832, 0.5), (2.0, 0.973, 0.857)])
def test_gates_are_open_as_often_as_the_formula_says(alpha: float, opened: float, mean: float) -> None:
    chance = torch.rand(400_000, generator=torch.Generator().manual_seed(0))
    drawn = sampled(torch.full_like(chance, alpha), chance)
    assert float((drawn > 0).double().mean()) == pytest.approx(opened, abs=3e-3)
    assert float(open_probability(torch.tensor(alpha))) == pytest.approx(opened, abs=1e-3)
    assert float(drawn.mean()) == pytest.approx(mean, abs=3e-3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 24, 3)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.b(torch.relu(self.a(x)))))
        return self.head(torch.relu(self.c(x)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def made() -> Program:
    torch.manual_seed(0)
    return Program.capture(Net().eval(), (torch.randn(2, 1, 10, 10),))


@pytest.fixture(scope="module")
def data(made: Program) -> Arrays:
    x = torch.randn(256, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Arrays("noise", (x,), made(x)[0].argmax(1))


@given(seed=st.integers(0, 10**6), params=st.booleans())
@settings(max_examples=8, deadline=None)
def test_the_expected_size_is_the_mean_of_sizes(made: Program, seed: int, params: bool) -> None:
    gates = Gates.of(made, couple(made))
    assert [g.size for g in gates.groups] == [16, 16, 24]
    generator = torch.Generator().manual_seed(seed)
    opened = torch.rand(gates.count, generator=generator)
    sizes = []
    for _ in range(3000):
        drawn = torch.rand(gates.count, generator=generator) < opened
        left = {g.name: int(drawn[gates.starts[g.name] :][: g.size].sum()) for g in gates.groups}
        sizes.append(gates.size(left, params))
    spread = torch.tensor(sizes)
    assert float(gates.expected(opened, params)) == pytest.approx(
        float(spread.mean()), abs=5 * float(spread.std()) / 50
    )
    counted = sum(w.numel() for n, w in made.weights().items()) if params else macs(couple(made))
    assert gates.size({}, params) == counted


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "bert", "vit", "llama"])
def test_folded_and_cut_is_what_closed_gates_give(name: str) -> None:
    made = captured(name)
    coupling = couple(made)
    gates = Gates.of(made, coupling)
    assert gates.groups
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(gates.count, generator=generator) * 0.8 + 0.2
    keep = {
        g.name: sorted(torch.randperm(g.size, generator=generator)[: max(1, g.size // 2)].tolist())
        for g in gates.groups
    }
    masked, folded = made.clone(), made.clone()
    closed = values.clone()
    for group in gates.groups:
        gone = [u for u in range(group.size) if u not in keep[group.name]]
        closed[[gates.starts[group.name] + u for u in gone]] = 0
    gates.fold(masked, closed)
    gates.fold(folded, values)
    smaller = cut(folded, keep, couple(folded))[0].retraced()
    for one, two in zip(smaller(*made.inputs), masked(*made.inputs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"macs": 0.4}, {"params": 0.3}])
def test_the_pressure_reaches_its_target_and_so_does_the_program(
    made: Program, data: Arrays, options: dict[str, Any]
) -> None:
    ctx = Context(made, calib=data, train=data)
    one = L0(steps=250, batch=32, losses="kl", gate_rate=0.1, block=1, **options)
    found = one.run(made.clone(), ctx)
    share = next(iter(options.values()))
    assert abs(ctx.stats["expected"] - share) <= 0.02
    whole, left = (
        (macs(couple(p)) if "macs" in options else sum(w.numel() for w in p.weights().values())) for p in (made, found)
    )
    assert 0.8 * share <= left / whole <= share
    again = one.run(made.clone(), Context(made, calib=data, train=data))
    for name, value in found.weights().items():
        assert torch.equal(value, again.weights()[name])
    assert found.interface == made.interface


def test_open_gates_change_little() -> None:
    assert float(settled(torch.tensor(4.6))) == pytest.approx(0.996, abs=1e-3)


def test_what_has_no_gates_is_refused(made: Program, data: Arrays) -> None:
    with pytest.raises(PassError, match=r"l0: 0.001 is out of reach: a block of every group leaves"):
        L0(macs=0.001).run(made.clone(), Context(made, train=data))
    with pytest.raises(PassError, match="l0: needs training data"):
        L0().run(made.clone(), Context(made))
    plain = Program.capture(nn.Linear(4, 3).eval(), (torch.randn(2, 4),))
    with pytest.raises(PassError, match="no group of which a closed gate"):
        L0().run(plain, Context(plain, train=data))
    with pytest.raises(SpecError, match="not both"):
        L0(macs=0.5, params=0.5)
    with pytest.raises(SpecError, match="one worker"):
        L0(workers=2)
