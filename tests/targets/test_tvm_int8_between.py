"""What stands between integer layers in the TVM target: sums, moves and means equal integers, the rest torch's Q/DQ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.targets import _tvm_int8
from tests.targets.test_tvm_int8 import Grid, Layer, X, Y, compiled, conv

pytestmark = pytest.mark.filterwarnings("ignore")


class Two(nn.Module):
    """Two layers and an operator on what they write."""

    def __init__(self, after: Any, a: Grid, b: Grid, out: Grid) -> None:
        super().__init__()
        self.first, self.second = (Layer(conv(), (24, 8, 1, 1), X, g, i) for i, g in enumerate((a, b)))
        self.after, self.out = after, out

    def forward(self, x: Tensor) -> Tensor:
        return self.out.around(self.after(self.first(x), self.second(x)))


@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.relu, lambda x: x]))
@pytest.mark.slow
def test_a_sum_equals_fixed_point(seed: int, act: Any) -> None:
    random = np.random.default_rng(seed)
    a, b, out = (Grid(float(np.exp(random.uniform(-4, 0))), int(random.integers(0, 256))) for _ in range(3))
    module = Two(lambda p, q: act(p + q), a, b, out)
    x = torch.randn(1, 8, 9, 9)
    exported = torch.export.export(module.eval(), (x,))
    plans = list(_tvm_int8.planned(exported, False).sums.values())
    run, functions = compiled(module, (x,))
    left, right = module.first.expected(x), module.second.expected(x)
    if not plans:  # scales so far apart run in float
        assert {f.rule for f in functions} > {"int8 tile"}
        return
    one = 2 ** plans[0].bits
    shares = [round(g.scale / out.scale * one) for g in (a, b)]
    total = (left - a.zero) * shares[0] + (right - b.zero) * shares[1]
    least = out.zero if act is torch.relu else 0
    wanted = np.clip(np.rint(total / one) + out.zero, least, 255)
    np.testing.assert_array_equal(out.integers(run(x)), wanted)
    real = ((left - a.zero) * a.scale + (right - b.zero) * b.scale) / out.scale
    assert np.abs(np.clip(real + out.zero, least, 255) - wanted).max() < 0.51


class After(nn.Module):
    """An operator between a layer and a quantize of the same scale, or of another."""

    def __init__(self, function: Any, out: Grid = Y) -> None:
        super().__init__()
        self.layer, self.function, self.out = Layer(conv(), (20, 8, 1, 1), X, Y), function, out

    def forward(self, x: Tensor) -> Tensor:
        return self.out.around(self.function(self.layer(x)))


MOVES: dict[str, Any] = {
    "flatten": lambda x: x.flatten(1),
    "reshape": lambda x: x.reshape(1, 4, 5, -1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("machine", ["best", "avx2"])
def test_integers_are_passed_on(name: str, machine: str) -> None:
    module, x = After(MOVES[name]), torch.randn(1, 8, 9, 9)
    run, functions = compiled(module, (x,), machine)
    values = torch.from_numpy(module.layer.expected(x) - Y.zero).float()
    np.testing.assert_array_equal(Y.integers(run(x)), MOVES[name](values).numpy().astype(np.int64) + Y.zero)
    exported = torch.export.export(module, (x,))
    assert len(_tvm_int8.planned(exported, False).moves) >= 1
    assert not [f for f in functions if f.rule in ("tile", "rows", None)]


@pytest.mark.parametrize("seed", range(3))
def test_a_mean_is_rounded_once(seed: int) -> None:
    out = Grid(0.013 * (seed + 1), 90 + seed)
    module, x = After(nn.AdaptiveAvgPool2d(1), out), torch.randn(1, 8, 7, 7)
    run, _ = compiled(module, (x,))
    sums = (module.layer.expected(x) - Y.zero).sum((2, 3), keepdims=True)
    multiplier = np.float64(np.float32(Y.scale / (out.scale * 49)))
    wanted = np.clip(np.rint(sums * multiplier) + out.zero, 0, 255)
    np.testing.assert_array_equal(out.integers(run(x)), wanted)


def test_quantize_and_dequantize_alone_are_torchs_own() -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return replace(X, zero=7).around(torch.tanh(X.around(x)))

    x = torch.randn(300, 33) * 3
    run, functions = compiled(Alone(), (x,))
    found, wanted = run(x), Alone()(x)
    assert float((found != wanted).float().mean()) < 1e-3  # tanh is another
    assert float((found - wanted).abs().max()) < 1.01 * X.scale
    assert {f.rule for f in functions} <= {"elements", "int8 elements"}
    plain = nn.Module()
    plain.forward = X.around  # type: ignore[method-assign,assignment]
    run, _ = compiled(plain, (x,))
    assert torch.equal(run(x), X.around(x))
