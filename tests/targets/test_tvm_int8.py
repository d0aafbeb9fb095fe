"""INT8 in the TVM target: each integer operator equals numpy's integers bit for bit, with every dot product."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
pytest.importorskip("tvm")

from edgecompile.targets import _tvm_graph, _tvm_machine

pytestmark = pytest.mark.filterwarnings("ignore")
Q = torch.ops.quantized_decomposed
FLAGS = _tvm_machine.flags()
AVX2 = frozenset(f for f in FLAGS if not f.startswith("avx512"))
MACHINES = {
    "best": _tvm_machine.host(FLAGS),
    "avx512 pairs": _tvm_machine.host(FLAGS - {"avx512_vnni"}),
    "avx2": _tvm_machine.host(AVX2),
    "plain": _tvm_machine.host(()),
}
Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Grid:
    """A quantized tensor's integers."""

    scale: float
    zero: int
    signed: bool = False

    @property
    def ends(self) -> tuple[int, int]:
        return (-128, 127) if self.signed else (0, 255)

    def quantize(self, x: Tensor) -> Tensor:
        kind = torch.int8 if self.signed else torch.uint8
        return Q.quantize_per_tensor(x, self.scale, self.zero, *self.ends, kind)  # type: ignore[no-any-return]

    def around(self, x: Tensor) -> Tensor:
        kind = torch.int8 if self.signed else torch.uint8
        return Q.dequantize_per_tensor(self.quantize(x), self.scale, self.zero, *self.ends, kind)  # type: ignore[no-any-return]

    def integers(self, values: Tensor) -> Numbers:
        return np.rint(values.double().numpy() / self.scale).astype(np.int64) + self.zero


class Layer(nn.Module):
    """A quantized layer: what reads it is `function(x, weight, bias)`."""

    def __init__(self, function: Any, shape: tuple[int, ...], x: Grid, y: Grid | None, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.function, self.x, self.y, self.act = function, x, y, nn.Identity()
        self.register_buffer("w", torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8))
        inner = float(np.prod(shape[1:]))
        spread = torch.rand(shape[0], generator=generator).double() * 4 - 2
        scale = (y.scale if y else 1.0) * 60 / (x.scale * 5000 * inner**0.5) * torch.exp(spread)
        self.register_buffer("scale", scale.float())
        self.register_buffer("zeros", torch.zeros(shape[0], dtype=torch.int8))
        self.bias = nn.Parameter(torch.randn(shape[0], generator=generator) * (y.scale if y else 1.0) * 40)

    def forward(self, x: Tensor) -> Tensor:
        w = Q.dequantize_per_channel(self.w, self.scale, self.zeros, 0, -127, 127, torch.int8)
        out = self.act(self.function(self.x.around(x), w, self.bias))
        return out if self.y is None else self.y.around(out)

    def sums(self, x: Tensor) -> Tensor:
        """Exact: integers below 2**53 in float64."""
        integers = self.x.quantize(x).double() - self.x.zero
        return self.function(integers, self.w.double(), None)  # type: ignore[no-any-return]

    def expected(self, x: Tensor) -> Numbers:
        """int32 sums, times a float32 multiplier in float64, rounded to even."""
        assert self.y is not None
        sums = self.sums(x).numpy()
        products = self.scale.double().numpy() * self.x.scale
        empty = ~self.w.flatten(1).any(1).numpy()
        bias = self.bias.detach().double().numpy()
        steps = np.clip(np.rint(bias / np.where(empty, self.y.scale, products)), -(2**30), 2**30)
        multiplier = np.where(empty, 1.0, (products / self.y.scale).astype(np.float32).astype(np.float64))
        column = (-1,) if self.function is F.linear else (-1, *[1] * (sums.ndim - 2))
        rounded = np.rint((sums + steps.reshape(column)) * multiplier.reshape(column))
        low, high = self.y.ends
        bounds = {nn.ReLU: (0.0, np.inf), nn.ReLU6: (0.0, 6.0), nn.Identity: (-np.inf, np.inf)}[type(self.act)]
        low, high = (np.clip(np.rint(b / self.y.scale) + self.y.zero, low, high) for b in bounds)
        return np.clip(rounded + self.y.zero, low, high).astype(np.int64)


def compiled(module: nn.Module, inputs: tuple[Tensor, ...], machine: str = "best") -> tuple[Any, list[Any]]:
    """The module as a library for a machine, and the rules of its functions."""
    import tvm
    from tvm import relax

    made = MACHINES[machine]
    graph = _tvm_graph.imported(torch.export.export(module.eval(), inputs), made.simd)
    scheduled, functions = _tvm_graph.lowered(graph, made.target(), made.simd)
    run = relax.VirtualMachine(_tvm_graph.executable(scheduled, made.target()), tvm.cpu())["main"]

    def call(*xs: Tensor) -> Tensor:
        return torch.from_numpy(run(*(tvm.runtime.tensor(x.numpy()) for x in xs))[0].numpy())

    return call, functions


def conv(**given: Any) -> Callable[..., Tensor]:
    return lambda x, w, b: F.conv2d(x, w, b, **given)


X, Y = Grid(0.02, 119), Grid(0.05, 131)
CASES: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "conv 1x1": (conv(), (48, 32, 1, 1), (2, 32, 9, 7)),
    "conv 3x3": (conv(padding=1), (44, 20, 3, 3), (1, 20, 13, 13)),
    "conv of 3 channels": (conv(padding=1, stride=2), (32, 3, 3, 3), (1, 3, 17, 15)),
    "conv of few columns": (conv(), (3, 8, 1, 1), (1, 8, 7, 7)),
    "conv of 24 columns": (conv(), (24, 17, 1, 1), (1, 17, 8, 8)),
    "conv strided, dilated": (conv(padding=2, stride=2, dilation=2), (33, 16, 3, 3), (1, 16, 15, 11)),
    "conv oblong": (conv(padding=(0, 2)), (20, 8, 1, 5), (1, 8, 6, 19)),
    "grouped": (conv(padding=1, groups=8), (64, 8, 3, 3), (1, 64, 9, 9)),
    "grouped, odd": (conv(padding=1, groups=6), (18, 2, 3, 3), (1, 12, 9, 9)),
    "depthwise": (conv(padding=1, groups=40), (40, 1, 3, 3), (2, 40, 9, 13)),
    "depthwise 5x5": (conv(padding=2, stride=2, groups=33), (33, 1, 5, 5), (1, 33, 17, 14)),
    "depthwise dilated": (conv(padding=2, dilation=2, groups=16), (16, 1, 3, 3), (1, 16, 9, 9)),
    "depthwise of few channels": (conv(padding=1, groups=3), (3, 1, 3, 3), (1, 3, 9, 9)),
    "depthwise with a multiplier": (conv(padding=1, groups=8), (16, 1, 3, 3), (1, 8, 9, 9)),
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, 2, 2), (20, 8, 5), (2, 8, 31)),
    "linear": (F.linear, (77, 37), (2, 61, 37)),
    "linear of one row": (F.linear, (100, 64), (1, 64)),
    "linear of a vector": (F.linear, (32, 20), (20,)),
    "linear of many small rows": (F.linear, (40, 24), (9, 2, 24)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("machine", ["best", "avx2"])
def test_a_layer_equals_integers(name: str, machine: str) -> None:
    function, weight, shape = CASES[name]
    layer = Layer(function, weight, X, Y)
    x = torch.randn(shape) * 2
    run, functions = compiled(layer, (x,), machine)
    found = Y.integers(run(x))
    np.testing.assert_array_equal(found, layer.expected(x))
    assert len(np.unique(found)) > min(50, found.size // 2)
    assert "int8 tile" in {f.rule for f in functions}
    assert not [f for f in functions if f.rule in ("tile", None)]


@pytest.mark.parametrize("name", ["conv 3x3", "depthwise", "linear", "conv of few columns"])
@pytest.mark.parametrize("machine", ["avx512 pairs", "plain"])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6()], ids=["relu", "relu6"])
def test_other_machines_and_clamps_and_signed_integers(name: str, machine: str, act: nn.Module) -> None:
    function, weight, shape = CASES[name]
    out = Grid(0.05, -5, signed=True)
    layer = Layer(function, weight, Grid(0.02, 3, signed=True), out)
    layer.act = act
    x = torch.randn(shape) * 2
    run, _ = compiled(layer, (x,), machine)
    np.testing.assert_array_equal(out.integers(run(x)), layer.expected(x))


@pytest.mark.parametrize("machine", MACHINES)
def test_the_largest_sums_are_exact(machine: str) -> None:
    """6000 products of 255 by 127 and -127: no 16-bit sum saturates and no sum loses its low bits to float32."""
    torch.manual_seed(0)
    layer = Layer(F.linear, (18, 6000), Grid(1.0, 0), Grid(1.0, 128))
    layer.w[:] = torch.where(torch.rand(18, 6000) < 0.56, 127, -127)
    layer.w[0] = 127
    layer.scale[:] = torch.logspace(-6.5, -4, 18)
    layer.bias.data[:] = 3.3
    x = torch.where(torch.rand(5, 6000) < 0.9, 255.0, 254.0)
    x[0], x[0, 0] = 255.0, 254.0  # an odd number of odd products
    run, _ = compiled(layer, (x,), machine)
    sums = layer.sums(x)
    assert float(sums.max()) > 2**27
    assert float((sums % 2).sum()) > 0
    np.testing.assert_array_equal(layer.y.integers(run(x)), layer.expected(x))  # type: ignore[union-attr]


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1))
@pytest.mark.slow
def test_sums_next_to_a_tie_are_rounded_as_in_float64(seed: int) -> None:
    """Multipliers that put some sum as near to half a step as float32 can, exact ties too, over 512 channels."""
    random = np.random.default_rng(seed)
    layer = Layer(F.linear, (512, 4), Grid(1.0, 0), Grid(1.0, 0))
    layer.w[:] = torch.tensor([1, 0, 0, 0], dtype=torch.int8)
    sums = random.integers(2, 2 ** random.integers(2, 23, 512))
    steps = random.integers(0, 256, 512)
    scale = ((random.integers(0, 255, 512) + 0.5) / (sums + steps)).astype(np.float32)
    ties = random.random(512) < 0.2
    scale[ties] = 2.0 ** random.integers(-20, 0, int(ties.sum()))
    layer.scale[:] = torch.from_numpy(scale)
    layer.bias.data[:] = torch.from_numpy((sums * scale.astype(np.float64)).astype(np.float32))
    x = torch.zeros(256, 4)
    x[:, 0] = torch.arange(256)
    run, _ = compiled(layer, (x,))
    np.testing.assert_array_equal(Grid(1.0, 0).integers(run(x)), layer.expected(x))


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["best", "avx2", "plain"]))
@pytest.mark.slow
def test_layers_of_any_scales_equal_integers(seed: int, machine: str) -> None:
    random = np.random.default_rng(seed)
    grids = [
        Grid(float(np.exp(random.uniform(-9, 3))), int(random.integers(0, 256) - 128 * signed), bool(signed))
        for signed in random.integers(0, 2, 2)
    ]
    inner, outer, rows = (int(random.integers(1, n)) for n in (70, 90, 12))
    layer = Layer(F.linear, (outer, inner), grids[0], grids[1], seed % 1000)
    layer.scale *= torch.from_numpy(np.exp(random.uniform(-9, 3, outer)).astype(np.float32))
    layer.w[random.integers(0, outer)] = 0
    x = torch.from_numpy(random.normal(0, 100 * grids[0].scale, (rows, inner)).astype(np.float32))
    run, _ = compiled(layer, (x,), machine)
    np.testing.assert_array_equal(grids[1].integers(run(x)), layer.expected(x))


@pytest.mark.parametrize("machine", ["best", "avx2"])
def test_a_layer_may_end_in_floats(machine: str) -> None:
    layer = Layer(F.linear, (77, 37), X, None)
    x = torch.randn(61, 37)
    run, functions = compiled(layer, (x,), machine)
    product = layer.scale.double() * X.scale
    wanted = layer.sums(x) * product + layer.bias.double()
    np.testing.assert_allclose(run(x).numpy(), wanted.detach().numpy(), rtol=1e-6, atol=2e-5)
    assert "int8 tile" in {f.rule for f in functions}
