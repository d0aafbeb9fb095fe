"""The schedule rules' code, compiled and run in this process, against torch on shapes that tiles do not divide."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
pytest.importorskip("tvm")

from edgecompile.targets import _tvm_graph, _tvm_machine
from edgecompile.targets._tvm_choice import Task, choose
from edgecompile.targets._tvm_elements import Simd

pytestmark = pytest.mark.filterwarnings("ignore")
FLAGS = _tvm_machine.flags()
MACHINES = [_tvm_machine.host(FLAGS), _tvm_machine.host(f for f in FLAGS if not f.startswith("avx512"))]


def compiled(
    module: nn.Module, inputs: tuple[Tensor, ...], machine: _tvm_machine.Machine = MACHINES[0]
) -> tuple[Callable[..., list[Tensor]], list[_tvm_graph.Function]]:
    """The module as a library in this process, and the functions it consists of."""
    import tvm
    from tvm import relax

    graph = _tvm_graph.imported(torch.export.export(module.eval(), inputs))
    scheduled, functions = _tvm_graph.lowered(graph, machine.target(), machine.simd)
    run = relax.VirtualMachine(_tvm_graph.executable(scheduled, machine.target()), tvm.cpu())["main"]
    return lambda *xs: [
        torch.from_numpy(v.numpy()) for v in run(*(tvm.runtime.tensor(x.numpy()) for x in xs))
    ], functions


class Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *xs: Tensor) -> Tensor:
        return self.function(*xs)


class Gate(nn.Module):
    """An image scaled by a gate that is computed from it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 1)
        self.r, self.e = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return y * torch.sigmoid(self.e(F.silu(self.r(y.mean((2, 3), keepdim=True)))))


def _between(channels: int, inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 1), inner, nn.Conv2d(channels, channels, 1))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(5, 44, 3, padding=1), nn.ReLU()), ((1, 5, 13, 13),)),
    "conv strided, batch 3": (lambda: nn.Conv2d(16, 33, 3, 2, 1), ((3, 16, 15, 11),)),
    "conv dilated": (lambda: nn.Conv2d(8, 16, 3, padding=2, dilation=2), ((1, 8, 9, 9),)),
    "conv of few columns": (lambda: nn.Conv2d(8, 3, 1), ((2, 8, 7, 7),)),
    "conv oblong": (lambda: nn.Conv2d(8, 20, (1, 5), padding=(0, 2)), ((1, 8, 6, 19),)),
    "conv with a norm": (lambda: nn.Sequential(nn.Conv2d(8, 20, 3), nn.BatchNorm2d(20), nn.ReLU6()), ((1, 8, 9, 9),)),
    "norm alone": (lambda: nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 20, 1)), ((2, 8, 5, 5),)),
    "conv1d": (lambda: nn.Conv1d(8, 20, 5, 2, 2), ((2, 8, 31),)),
    "depthwise": (lambda: nn.Conv2d(40, 40, 3, padding=1, groups=40), ((2, 40, 13, 9),)),
    "depthwise 5x5 strided": (lambda: nn.Conv2d(33, 33, 5, 2, 2, groups=33), ((1, 33, 17, 14),)),
    "depthwise of few channels": (lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3), ((1, 3, 9, 9),)),
    "depthwise with a multiplier": (lambda: nn.Conv2d(8, 16, 3, padding=1, groups=8), ((1, 8, 9, 9),)),
    "grouped": (lambda: nn.Conv2d(64, 64, 3, padding=1, groups=16), ((2, 64, 9, 9),)),
    "grouped, odd": (lambda: nn.Conv2d(12, 18, 3, padding=1, groups=6), ((1, 12, 9, 9),)),
    "transposed conv": (lambda: nn.ConvTranspose2d(8, 20, 3, 2, 1, 1, groups=2), ((2, 8, 5, 7),)),
    "transposed conv, cut": (lambda: nn.ConvTranspose2d(8, 20, 2, 2, 2), ((1, 8, 5, 7),)),
    "linear": (lambda: nn.Sequential(nn.Linear(37, 77), nn.GELU(), nn.Linear(77, 5)), ((2, 61, 37),)),
    "linear of one row": (lambda: nn.Linear(100, 1000), ((1, 100),)),
    "linear of many small rows": (lambda: nn.Linear(24, 40), ((9, 2, 24),)),
    "matmul": (lambda: Call(torch.matmul), ((2, 3, 19, 7), (2, 3, 7, 21))),
    "matmul, narrow": (lambda: Call(torch.matmul), ((2, 9, 7), (2, 7, 5))),
    "attention": (lambda: Call(lambda x: F.scaled_dot_product_attention(x, x, x)), ((2, 3, 29, 16),)),
    "attention, causal": (lambda: Call(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
                          ((1, 2, 17, 8),)),
    "max pool": (lambda: _between(20, nn.MaxPool2d(3, 2, 1)), ((2, 20, 13, 13),)),
    "average pool": (lambda: _between(20, nn.AvgPool2d(3, 2, 1)), ((1, 20, 13, 13),)),
    "average pool of what is there": (lambda: _between(20, nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
                                      ((1, 20, 13, 13),)),
    "mean": (lambda: nn.Sequential(nn.Conv2d(4, 40, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), ((2, 4, 9, 9),)),
    "pad": (lambda: _between(20, nn.ZeroPad2d((1, 2, 0, 3))), ((1, 20, 6, 6),)),
    "gate": (lambda: Gate(40), ((2, 40, 7, 7),)),
    "softmax": (lambda: nn.Softmax(-1), ((3, 5, 197),)),
    "softmax, short": (lambda: nn.Softmax(-1), ((3, 5, 7),)),
    "layer norm": (lambda: nn.LayerNorm(100), ((3, 5, 100),)),
    "layer norm, short": (lambda: nn.LayerNorm(6), ((3, 5, 6),)),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(4, 24), nn.GELU()), ((2, 24, 9, 7),)),
    "group norm, a channel each": (lambda: nn.Sequential(nn.Conv1d(2, 24, 5), nn.GroupNorm(24, 24), nn.GELU()),
                                   ((2, 2, 403),)),
    "group norm without weights": (lambda: nn.GroupNorm(2, 6, affine=False), ((2, 6, 50),)),
    "activations": (lambda: nn.Sequential(nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.Hardswish(), nn.ELU()),
                    ((3, 5, 37),)),
    "transpose": (lambda: Call(lambda x: x.permute(0, 2, 3, 1) * 2), ((2, 37, 5, 19),)),
    "split": (lambda: Call(lambda x: torch.cat([a * (i + 1) for i, a in enumerate(x.split(7, 1))], 2)), ((2, 21, 5),)),
    "concatenation": (lambda: Call(lambda x: torch.cat([x, x * 2, x[:, :3]], 1)), ((2, 21, 5, 5),)),
    "pad by nothing": (lambda: Call(lambda x: F.pad(x, (0, 0, 0, 0)) * 2), ((2, 3, 5),)),
    "moved and cast": (lambda: Call(lambda x: (x > 0).to(torch.device("cpu"), torch.float32) * x), ((2, 3, 5),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.cpu)
def test_a_rule_takes_it_and_it_equals_torch(name: str, machine: _tvm_machine.Machine) -> None:
    torch.manual_seed(0)
    make, shapes = CASES[name]
    module = make().eval()
    for value in module.buffers():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    inputs = tuple(torch.randn(s) for s in shapes)
    run, functions = compiled(module, inputs, machine)
    with torch.no_grad():
        torch.testing.assert_close(run(*inputs)[0], module(*inputs), rtol=1e-4, atol=2e-5)
    assert not [f for f in functions if f.rule is None and f.operations > 50_000]


@pytest.mark.parametrize("value", [-200.0, -88.0, -1e-6, 0.0, 1e-6, 3.0, 88.0, 200.0])
def test_functions_hold_at_the_ends_of_their_range(value: float) -> None:
    x = torch.full((1, 32), value)
    functions = (torch.sigmoid, torch.tanh, torch.erf, lambda v: torch.softmax(v, -1), lambda v: torch.exp(-v.abs()))
    for function in functions:
        run, _ = compiled(Call(function), (x,))
        torch.testing.assert_close(run(x)[0], function(x), rtol=1e-6, atol=3e-7)


def test_a_masked_score_weighs_nothing() -> None:
    mask = torch.tensor([[True, False, True]]).expand(3, 3)
    q = torch.randn(1, 1, 3, 8)
    module = Call(lambda x, m: F.scaled_dot_product_attention(x, x, x, attn_mask=m))
    run, _ = compiled(module, (q, mask.contiguous()))
    torch.testing.assert_close(run(q, mask.contiguous())[0], module(q, mask), rtol=1e-5, atol=1e-6)


def test_a_tile_fits_the_registers() -> None:
    for simd in (Simd(16, 32), Simd(8, 16), Simd(4, 32)):
        for rows in (1, 3, 7, 13, 56, 197):
            for columns in (1, 17, 44, 1000):
                tile = choose(Task("float", rows, columns, 9), simd)
                assert tile.rows * tile.vectors + tile.vectors + 1 <= simd.registers
                assert tile.rows <= rows


def test_what_no_rule_takes_is_listed_with_its_operations() -> None:
    _, functions = compiled(Call(lambda x: torch.cumsum(x, 1)), (torch.randn(2, 30),))
    assert [f.rule for f in functions] == [None]
    assert functions[0].operations > 0
