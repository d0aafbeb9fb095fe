"""SmoothQuant: the float function stays, outlier channels cost less, and nothing happens where nothing is won."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgecompile.data import Arrays
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.passes._placement import place
from edgecompile.passes._smooth import smooth
from edgecompile.program import Program
from edgecompile.rewrite import aten, nodes
from edgecompile.targets.onnx import Onnx


class Block(nn.Module):
    """A layer norm with outlier channels, read by two linear layers and, when `residual`, by a sum as well."""

    def __init__(self, residual: bool, outlier: float, tied: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.norm, self.one, self.two = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        if tied:
            self.two.weight = self.one.weight
        self.norm.weight.data[::7] *= outlier

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = torch.tanh(self.one(y)) + self.two(y)
        return z + y if self.residual else z


def block(residual: bool = False, outlier: float = 50.0, tied: bool = False, seed: int = 0) -> Program:
    torch.manual_seed(seed)
    return Program.capture(Block(residual, outlier, tied).eval(), (torch.randn(2, 5, 16),))


def smoothed(program: Program, seed: int = 1) -> tuple[Program, int]:
    own = program.clone()
    batch = torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(seed))
    done = smooth(own, place(own, Onnx().quantizable(), lambda n: False), [(batch,)])
    return own.retraced(), done


@pytest.mark.parametrize("residual", [False, True])
def test_the_division_goes_into_a_norm_that_nobody_else_reads_and_else_becomes_one_product(residual: bool) -> None:
    program, done = smoothed(block(residual))
    assert done == 1
    assert len(list(nodes(program, aten.mul.Tensor))) == (1 if residual else 0)


@given(st.booleans(), st.sampled_from([1.0, 20.0, 300.0]), st.integers(0, 20))
@settings(max_examples=15)
@pytest.mark.slow
def test_the_float_function_stays(residual: bool, outlier: float, seed: int) -> None:
    program = block(residual, outlier, seed=seed)
    after, _ = smoothed(program, seed + 1)
    x = torch.randn(3, 5, 16)
    (wanted,), (found,) = program(x), after(x)
    assert (wanted - found).abs().max() <= 1e-5 * wanted.abs().max()


def test_nothing_happens_where_a_weight_has_another_reader() -> None:
    assert smoothed(block(tied=True))[1] == 0


def test_nothing_happens_where_all_channels_are_alike() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(16, 16)
            self.one.weight.data = self.one.weight.data.sign()

        def forward(self, x: Tensor) -> Tensor:
            return self.one((9 * x).clamp(-1, 1))

    assert smoothed(Program.capture(Flat().eval(), (torch.randn(2, 5, 16),)))[1] == 0


@pytest.mark.parametrize("residual", [False, True])
def test_outlier_channels_cost_less(residual: bool) -> None:
    program = block(residual)
    data = Arrays("calib", (torch.randn(64, 5, 16, generator=torch.Generator().manual_seed(3)),))
    x = torch.randn(64, 5, 16, generator=torch.Generator().manual_seed(4))
    wanted = program(x)[0].detach()

    def noise_db(pipeline: str) -> float:
        context = Context(program, target=Onnx(), calib=data)
        result, _ = PassManager(parse(pipeline, PASSES)).run(program, context)
        error = (result(x)[0] - wanted).detach()
        return float(10 * torch.log10(error.square().sum() / wanted.square().sum()))

    assert noise_db("quantize") < noise_db("quantize(smooth=False)") - 5
