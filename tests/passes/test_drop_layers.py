"""Depth: branches are found in any graph, what is dropped is gone and nothing else, the order is by what is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgecompile.axes import couple, macs
from edgecompile.data import Arrays
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context
from edgecompile.passes._branches import Without, branches, dropped
from edgecompile.passes.drop_layers import DropLayers
from edgecompile.program import Program
from tests.axes.zoo import captured


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.on = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), True

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x))) if self.on else x


class Stack(nn.Module):
    """Residual blocks and one with a projection, behind a sum that is no block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.place = nn.Linear(6, 8), nn.Parameter(torch.randn(8))
        self.blocks = nn.ModuleList([Block(8) for _ in range(4)])
        self.wide, self.short, self.head = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.place
        for block in self.blocks:
            x = block(x)
        x = torch.tanh(self.wide(x)) + self.short(x)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.fixture
def stack() -> Stack:
    torch.manual_seed(3)
    return Stack()


def program(stack: Stack) -> Program:
    return Program.capture(stack, (torch.randn(2, 6),))


def context(made: Program, **given: Any) -> Context:
    noise = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return Context(made, calib=Arrays("noise", (noise,)), **given)


def test_branches_are_found_and_the_way_in_is_none(stack: Stack) -> None:
    made = program(stack)
    found = branches(made, couple(made))
    assert [b.name for b in found] == [f"blocks.{i}.a" for i in range(4)] + ["short", "wide"]
    assert [b.macs for b in found] == [256] * 4 + [96] * 2


SLOW = [pytest.param(n, c, marks=pytest.mark.slow) for n, c in (("gpt2", 4), ("llama", 4), ("swin", 8))]


@pytest.mark.parametrize(("name", "count"), [("vit", 4), ("bert", 4), *SLOW])
def test_branches_of_architectures(name: str, count: int) -> None:
    made = captured(name)
    found = branches(made, couple(made))
    assert len(found) == count
    for branch in found:
        wanted = Without(made, [branch]).run(*made.inputs)
        shallow = dropped(made, [branch])[0].retraced()
        torch.testing.assert_close(shallow(*made.inputs)[0], wanted[0])
        assert macs(couple(shallow)) <= macs(couple(made)) - branch.macs
        assert shallow.interface == made.interface


def test_branches_one_behind_the_other_all_go(stack: Stack) -> None:
    made = program(stack)
    found = branches(made, couple(made))[:4]
    for gone in (found[:2], found[1::-1], found[:3], [found[2], found[0], found[1]]):
        wanted = Without(made, gone).run(*made.inputs)
        shallow = dropped(made, gone)[0].retraced()
        torch.testing.assert_close(shallow(*made.inputs)[0], wanted[0])
        assert macs(couple(shallow)) == macs(couple(made)) - 256 * len(gone)


def test_without_a_block_is_the_module_without_it(stack: Stack) -> None:
    made = program(stack)
    found = branches(made, couple(made))
    shallow = dropped(made, [found[1], found[3]])[0].retraced()
    stack.blocks[1].on = stack.blocks[3].on = False  # type: ignore[assignment]
    x = torch.randn(5, 6)
    torch.testing.assert_close(shallow(x)[0], stack(x))
    assert not any(name.startswith(("blocks.1", "blocks.3")) for name in shallow.weights())


def test_a_branch_that_does_nothing_goes_first(stack: Stack) -> None:
    with torch.no_grad():
        stack.blocks[2].b.weight.zero_()  # type: ignore[union-attr, operator]
        stack.blocks[2].b.bias.zero_()  # type: ignore[union-attr, operator]
    made = program(stack)
    ctx = context(made)
    shallow = DropLayers(macs=0.85, refit=False).run(made.clone(), ctx)
    assert ctx.notes == ["without blocks.2.a"]
    x = torch.randn(5, 6)
    torch.testing.assert_close(shallow(x)[0], made(x)[0])


def test_every_other(stack: Stack) -> None:
    made = program(stack)
    ctx = context(made)
    DropLayers(macs=0.65, order="every_other", refit=False).run(made.clone(), ctx)
    assert ctx.notes == ["without blocks.1.a, blocks.3.a"]


def test_refitting_lessens_what_is_lost(stack: Stack) -> None:
    made = program(stack)
    (x,) = context(made).calib.inputs  # type: ignore[union-attr]
    lost = []
    for refit in (False, True):
        shallow = DropLayers(macs=0.6, refit=refit).run(made.clone(), context(made))
        lost.append(float((shallow(x)[0] - made(x)[0]).detach().pow(2).mean()))
    assert lost[1] < 0.7 * lost[0]


def test_a_share_of_the_latency(stack: Stack) -> None:
    made = program(stack)
    ctx = context(made, share=lambda one, of: 0.5 + 0.5 * macs(couple(one)) / macs(couple(of)))
    shallow = DropLayers(latency=0.8).run(made.clone(), ctx)
    assert macs(couple(shallow)) / macs(couple(made)) <= 0.6


def test_refusals(stack: Stack) -> None:
    made = program(stack)
    with pytest.raises(SpecError, match="give macs or latency, not both"):
        DropLayers(macs=0.5, latency=0.5)
    with pytest.raises(PassError, match="needs calibration data: give --calib"):
        DropLayers().run(made.clone(), Context(made))
    with pytest.raises(PassError, match=r"0\.01 is out of reach: 0\.\d+ is left without all 5 branches"):
        DropLayers(macs=0.01).run(made.clone(), context(made))
    with pytest.raises(PassError, match="latency needs a target that is timed or predicted: give macs"):
        DropLayers(latency=0.5).run(made.clone(), context(made))
    plain = Program.capture(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 6),))
    with pytest.raises(PassError, match="no sum of this program has a branch that could be left out: use prune"):
        DropLayers().run(plain, context(plain))
