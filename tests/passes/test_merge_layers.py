"""Merging layers: what repeats is found in any graph, both rules give what they say, and what is kept was measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.axes import couple, macs
from edgecompile.data import Arrays
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context
from edgecompile.passes._stack import stacks
from edgecompile.passes.merge_layers import MergeLayers, merged
from edgecompile.program import Program
from tests.axes.zoo import captured


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        nn.init.normal_(self.norm.weight, 1, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(self.norm(x))))  # type: ignore[no-any-return]


class Stack(nn.Module):
    def __init__(self, count: int = 5) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList([Block() for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


def stack(seed: int = 3) -> Stack:
    torch.manual_seed(seed)
    return Stack().eval()


def program(model: nn.Module) -> Program:
    return Program.capture(model, (torch.randn(2, 6),))


def context(made: Program) -> Context:
    noise = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return Context(made, calib=Arrays("noise", (noise,)))


@pytest.mark.parametrize(
    ("name", "counts"), [("bert", [2]), ("vit", [2]), ("gpt2", [2]), ("llama", [2]), ("wav2vec2", [2])]
)
def test_layers_that_repeat_are_found_in_architectures(name: str, counts: list[int]) -> None:
    made = captured(name)
    found = [s for s in stacks(made, couple(made)) if len(s[0].nodes) > 8]
    assert [len(s) for s in found] == counts
    assert all(s[0].leaves is s[1].enters for s in found)


def test_last_leaves_the_last_layer_behind_the_first_ones_norm() -> None:
    model = stack()
    made = program(model)
    (found,) = stacks(made, couple(made))
    assert len(found) == 5
    smaller = merged(made, found[1:4], "last")
    with torch.no_grad():
        model.blocks[1].a, model.blocks[1].b = model.blocks[3].a, model.blocks[3].b
        del model.blocks[2:4]
        x = torch.randn(7, 6)
        torch.testing.assert_close(smaller(x)[0], model(x))


def test_sum_adds_the_differences() -> None:
    model = stack()
    made = program(model)
    (found,) = stacks(made, couple(made))
    smaller = merged(made, found[2:5], "sum")
    with torch.no_grad():
        for name in ("a", "b"):
            own = getattr(model.blocks[2], name)
            others = [getattr(model.blocks[i], name) for i in (3, 4)]
            for part in ("weight", "bias"):
                first = getattr(own, part).clone()
                getattr(own, part).add_(sum(getattr(o, part) - first for o in others))
        del model.blocks[3:5]
        x = torch.randn(7, 6)
        torch.testing.assert_close(smaller(x)[0], model(x))


@pytest.mark.parametrize("rule", ["sum", "last"])
def test_layers_that_do_nothing_merge_without_loss(rule: str) -> None:
    model = stack()
    with torch.no_grad():
        for block in model.blocks[2:]:
            block.b.weight.zero_()
            block.b.bias.zero_()
    made = program(model)
    small = MergeLayers(rule=rule, layers=3, least=0.999, macs=0.8).run(made.clone(), context(made))  # type: ignore[arg-type]
    x = torch.randn(9, 6)
    torch.testing.assert_close(small(x)[0], made(x)[0])
    (left,) = stacks(small, couple(small))
    assert len(left) == 3


def test_each_merge_takes_so_many_layers_and_keeps_the_outputs_near() -> None:
    model = stack()
    with torch.no_grad():
        for block in model.blocks:
            block.b.weight.mul_(0.2)
    made = program(model)
    ctx = context(made)
    small = MergeLayers(layers=2, least=0.8, macs=0.65).run(made.clone(), ctx)
    (left,) = stacks(small, couple(small))
    assert len(left) == 5 - ctx.stats["merged"]
    assert macs(couple(small)) <= 0.65 * macs(couple(made))
    x = torch.cat([b.inputs[0] for b in ctx.calib or ()])
    with torch.no_grad():
        found = F.cosine_similarity(small(x)[0], made(x)[0]).mean()
    assert float(found) > 0.8
    assert f"cosine {float(found):.3f}" in ctx.notes[-1]
    again = small.retraced()
    torch.testing.assert_close(again(x)[0], small(x)[0])


def test_what_cannot_be_merged_is_refused() -> None:
    made = program(stack())
    with pytest.raises(PassError, match="with merges above a cosine of 1 1 is left; lower least"):
        MergeLayers(least=1.0).run(made.clone(), context(made))
    with pytest.raises(PassError, match="needs calibration data"):
        MergeLayers().run(made.clone(), Context(made))
    plain = program(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval())
    with pytest.raises(PassError, match="no layers of this program repeat"):
        MergeLayers().run(plain, context(plain))
    with pytest.raises(SpecError, match="layers is 2 or more"):
        MergeLayers(layers=1)
    with pytest.raises(SpecError, match="use distill"):
        MergeLayers(refit=True)
