"""Exits: a prefix gives what the whole gives there, deep losses leave nothing above alone, the best one is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgecompile.axes import couple, macs
from edgecompile.data import Arrays
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context
from edgecompile.passes._exits import settle_heads, ways
from edgecompile.passes.distill import Distill
from edgecompile.passes.exits import Exits
from edgecompile.program import Program
from tests.axes.zoo import captured


class Net(nn.Module):
    """Two stages of convolutions and a head behind pooling."""

    def __init__(self, widths: tuple[int, ...] = (8, 8, 12, 12)) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in zip((1, *widths), widths, strict=False)])
        self.head = nn.Linear(widths[-1], 5)
        for layer in (*self.convs, self.head):
            nn.init.normal_(layer.weight, 0, 2 * layer.weight[0].numel() ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def made() -> Program:
    torch.manual_seed(1)
    return Program.capture(Net().eval(), (torch.randn(2, 1, 8, 8),))


@pytest.fixture(scope="module")
def data(made: Program) -> Arrays:
    x = torch.randn(320, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return Arrays("noise", (x,), made(x)[0].argmax(1))


def test_each_ending_gives_what_the_whole_gives_there(made: Program) -> None:
    found = ways("exits", made, 3)
    x = torch.randn(5, 1, 8, 8)
    everything = found.program(x)
    assert len(everything) == 4
    torch.testing.assert_close(everything[0], made(x)[0])
    for i in range(3):
        ending = found.ending(i)
        torch.testing.assert_close(ending(x)[0], everything[i + 1])
        assert ending.interface == made.interface
        assert macs(couple(ending)) == pytest.approx(found.exits[i].macs * macs(couple(made)), abs=12 * 5 + 1)
    torch.testing.assert_close(found.ending(3)(x)[0], made(x)[0])


def test_the_loss_of_an_exit_moves_nothing_behind_it(made: Program) -> None:
    found = ways("exits", made, 3)
    weights = {n: w.requires_grad_() for n, w in found.program.weights().items()}
    outputs = found.program(torch.randn(5, 1, 8, 8))
    for i in range(3):
        moved = torch.autograd.grad(outputs[i + 1].sum(), list(weights.values()), retain_graph=True, allow_unused=True)
        names = {n for n, g in zip(weights, moved, strict=True) if g is not None}
        own = {n for n in names if n.startswith("exits_")}
        assert own == {n for n in weights if n.startswith(f"exits_{i}")}
        assert {n for n in names - own if n.endswith("weight")} == {f"convs.{k}.weight" for k in range(i + 1)}


def test_heads_are_fitted_by_least_squares(made: Program, data: Arrays) -> None:
    found = ways("exits", made, 3)
    settle_heads(found, data)
    x = data.inputs[0]
    with torch.no_grad():
        outputs = found.program(x)
        y, last = made(x)[0].double(), float("inf")
        for i in range(3):
            reached = x
            for k in range(i + 1):
                reached = torch.relu(
                    nn.functional.conv2d(
                        reached, made.weights()[f"convs.{k}.weight"], made.weights()[f"convs.{k}.bias"], padding=1
                    )
                )
            rows = torch.nn.functional.pad(reached.mean((2, 3)).double(), (0, 1), value=1.0)
            best = rows @ torch.linalg.lstsq(rows, y, driver="gelsd").solution
            least, error = (float((v.double() - y).pow(2).mean()) for v in (best, outputs[i + 1]))
            assert error <= least + 0.01 * float(y.var())
            assert least < last
            last = least


@pytest.mark.parametrize("name", ["bert", "vit", "resnet"])
def test_architectures_end_anywhere(name: str) -> None:
    made = captured(name)
    found = ways("exits", made, 2)
    ending = found.ending(0)
    assert ending.interface == made.interface
    assert macs(couple(ending)) < macs(couple(made))
    ending.retraced()


def test_a_value_that_is_returned_on_the_way_leaves_no_exit_before_it() -> None:
    class Both(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x), self.convs[0](x)

    early = Program.capture(Both().eval(), (torch.randn(2, 1, 8, 8),))
    with pytest.raises(PassError, match="exits: the program returns a value from before its last layers"):
        ways("exits", early, 2)


class Decides(Net):
    """The class too, as a whole number."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits, logits.argmax(-1)


def test_outputs_that_are_no_floats_are_there_behind_each_exit(data: Arrays) -> None:
    torch.manual_seed(1)
    made = Program.capture(Decides().eval(), (torch.randn(2, 1, 8, 8),))
    ctx = Context(made, calib=data, train=data)
    found = Exits(losses="kl", steps=20, batch=32, macs=0.6, count=3).run(made.clone(), ctx)
    assert found.interface == made.interface
    logits, decided = found(data.inputs[0])
    assert torch.equal(logits.argmax(-1), decided)


def test_exits_are_trained_and_the_best_within_the_budget_is_taken(made: Program, data: Arrays) -> None:
    ctx = Context(made, calib=data, train=data)
    student = made.clone()
    with torch.no_grad():
        student.weights()["convs.0.weight"].copy_(torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(5)))
    before = Exits(losses="kl", steps=0, macs=0.6, count=3).run(student.clone(), ctx)
    after_ctx = Context(made, calib=data, train=data)
    after = Exits(losses="kl", steps=120, batch=32, macs=0.6, count=3).run(student.clone(), after_ctx)
    taken = [n for n in after_ctx.notes if n.endswith("taken")]
    assert len(taken) == 1
    assert macs(couple(after)) <= 0.6 * macs(couple(made)) + 60
    x = data.inputs[0]
    with torch.no_grad():
        log = [p(x)[0].log_softmax(-1) for p in (made, before, after)]
        losses = [float(nn.functional.kl_div(v, log[0], reduction="batchmean", log_target=True)) for v in log[1:]]
    assert losses[1] < losses[0]
    again = Exits(losses="kl", steps=120, batch=32, macs=0.6, count=3).run(
        student.clone(), Context(made, calib=data, train=data)
    )
    for name, value in after.weights().items():
        assert torch.equal(value, again.weights()[name])


def test_what_has_no_exit_is_refused(made: Program, data: Arrays) -> None:
    with pytest.raises(PassError, match="needs training data"):
        Exits().run(made.clone(), Context(made))
    with pytest.raises(PassError, match=r"0.01 is out of reach: the first exit leaves"):
        Exits(macs=0.01).run(made.clone(), Context(made, train=data))
    short = Program.capture(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()).eval(), (torch.randn(2, 1, 8, 8),))
    with pytest.raises(PassError, match="does not narrow to one value"):
        Exits().run(short, Context(short, train=data))
    with pytest.raises(SpecError, match="trained by one worker"):
        Exits(workers=2)
    with pytest.raises(SpecError, match="not both"):
        Exits(macs=0.5, latency=0.5)
    with pytest.raises(PassError, match="give losses of outputs"):
        Exits(losses="mse", count=2).run(made.clone(), Context(made, train=data))


def test_auxiliary_heads_are_trained_and_gone(made: Program, data: Arrays) -> None:
    student = made.clone()
    with torch.no_grad():
        student.weights()["convs.1.weight"].mul_(0.5)
    options: dict[str, Any] = {"losses": "kl", "steps": 40, "batch": 32}
    plain_ctx, ctx = Context(made, calib=data, train=data), Context(made, calib=data, train=data)
    plain = Distill(**options).run(student.clone(), plain_ctx)
    found = Distill(**options, heads=2).run(student.clone(), ctx)
    assert found.interface == made.interface
    assert [str(n.target) for n in found.graph.graph.nodes] == [str(n.target) for n in made.graph.graph.nodes]
    assert not torch.equal(found.weights()["convs.0.weight"], plain.weights()["convs.0.weight"])
    with torch.no_grad():
        x = data.inputs[0]
        log = [p(x)[0].log_softmax(-1) for p in (made, student, found)]
        losses = [float(nn.functional.kl_div(v, log[0], reduction="batchmean", log_target=True)) for v in log[1:]]
    assert losses[1] < 0.5 * losses[0]
    with pytest.raises(PassError, match="distill: heads: what lies between layers is not compared"):
        Distill(losses="mse", steps=1, batch=32, heads=1).run(student.clone(), ctx)
    with pytest.raises(SpecError, match="heads is 0 or more"):
        Distill(heads=1, workers=2)
