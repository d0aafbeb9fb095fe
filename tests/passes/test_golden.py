"""What each exact pass does to a small program, as text before and after."""

# the texts are what the program prints, however long
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.pass_manager import Context
from edgecompile.passes import EXACT
from edgecompile.program import Program
from tests.passes.test_exact_passes import make
from tests.random_nets import randomise


class Small(nn.Module):
    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


IMAGE, ROWS = (2, 4, 6, 6), (2, 8)
CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "fold_bn": (
        Small(lambda m, x: m.b(m.c(x)), c=nn.Conv2d(4, 4, 3, bias=False), b=nn.BatchNorm2d(4)),
        IMAGE,
    ),
    "fold_scale": (
        Small(lambda m, x: (m.l(x) * 3 + 2) / m.b.running_var, l=nn.Linear(8, 8), b=nn.BatchNorm1d(8)),
        ROWS,
    ),
    "fold_lora": (
        Small(
            lambda m, x: m.base(x) + 2.0 * m.b(m.a(x)),
            base=nn.Linear(8, 8),
            a=nn.Linear(8, 2, bias=False),
            b=nn.Linear(2, 8, bias=False),
        ),
        ROWS,
    ),
    "fold_pad": (Small(lambda m, x: m.c(F.pad(x, (1, 1, 2, 2))), c=nn.Conv2d(4, 4, 3)), IMAGE),
    "fold_constants": (
        Small(lambda m, x: torch.where(torch.arange(8) < 3, x, m.l.weight.t() @ torch.ones(8)), l=nn.Linear(8, 8)),
        ROWS,
    ),
    "common_subexpressions": (Small(lambda m, x: torch.tanh(x) * (torch.tanh(x) + 1)), ROWS),
    "cancel_transposes": (
        Small(lambda m, x: torch.relu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).flatten(2).view(-1, 144)),
        IMAGE,
    ),
    "remove_identity": (
        Small(
            lambda m, x: (m.d(x).contiguous().view(x.shape[0], 8).to(torch.float32) * 1 + 0).relu().relu().double(),
            d=nn.Dropout(0.1),
        ),
        ROWS,
    ),
    "remove_branches": (
        Small(lambda m, x: torch.cat([torch.where(m.d.mask, x, -x), x[:, :0]], 1), d=nn.Identity()),
        ROWS,
    ),
    "merge_linear": (
        Small(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(4, 8, 3, padding=1), b=nn.Conv2d(8, 2, 1, bias=False)),
        IMAGE,
    ),
    "reparameterize": (
        Small(
            lambda m, x: m.a(x) + m.b(x) + x,
            a=nn.Conv2d(4, 4, 3, padding=1, groups=2),
            b=nn.Conv2d(4, 4, 1, groups=2, bias=False),
        ),
        IMAGE,
    ),
}
CASES["remove_branches"][0].d.register_buffer("mask", torch.ones(8, dtype=torch.bool))  # type: ignore[union-attr]


def capture(model: nn.Module, sizes: tuple[int, ...]) -> Program:
    return Program.capture(randomise(model, 0), (torch.zeros(sizes),))


def shown(name: str) -> tuple[str, str, list[str]]:
    model, sizes = CASES[name]
    program = capture(model, sizes)
    before = str(program)
    ctx = Context(teacher=program)
    after = make(name).run(program, ctx).retraced()
    return before, str(after), ctx.notes


GOLDEN: dict[str, tuple[str, str]] = {
    "fold_bn": (
        """
program(x: float32[batch, 4, 6, 6])
  %conv2d = conv2d(%x, c.weight: float32[4, 4, 3, 3]) : float32[batch, 4, 4, 4]
  %batch_norm = batch_norm(%conv2d, b.weight: float32[4], b.bias: float32[4], b.running_mean: float32[4], b.running_var: float32[4], False, 0.1, 1e-05, False) : float32[batch, 4, 4, 4]
  return output=%batch_norm
""",
        """
program(x: float32[batch, 4, 6, 6])
  %conv2d = conv2d(%x, c.weight: float32[4, 4, 3, 3], c.bias: float32[4]) : float32[batch, 4, 4, 4]
  return output=%conv2d
""",
    ),
    "fold_scale": (
        """
program(x: float32[batch, 8])
  %linear = linear(%x, l.weight: float32[8, 8], l.bias: float32[8]) : float32[batch, 8]
  %mul = mul.Tensor(%linear, 3) : float32[batch, 8]
  %add = add.Tensor(%mul, 2) : float32[batch, 8]
  %div = div.Tensor(%add, b.running_var: float32[8]) : float32[batch, 8]
  return output=%div
""",
        """
program(x: float32[batch, 8])
  %linear = linear(%x, l.weight: float32[8, 8], l.bias: float32[8]) : float32[batch, 8]
  return output=%linear
""",
    ),
    "fold_lora": (
        """
program(x: float32[batch, 8])
  %linear = linear(%x, base.weight: float32[8, 8], base.bias: float32[8]) : float32[batch, 8]
  %linear_1 = linear(%x, a.weight: float32[2, 8]) : float32[batch, 2]
  %linear_2 = linear(%linear_1, b.weight: float32[8, 2]) : float32[batch, 8]
  %mul = mul.Tensor(%linear_2, 2.0) : float32[batch, 8]
  %add = add.Tensor(%linear, %mul) : float32[batch, 8]
  return output=%add
""",
        """
program(x: float32[batch, 8])
  %linear = linear(%x, base.weight: float32[8, 8], base.bias: float32[8]) : float32[batch, 8]
  return output=%linear
""",
    ),
    "fold_pad": (
        """
program(x: float32[batch, 4, 6, 6])
  %pad = pad(%x, [1, 1, 2, 2]) : float32[batch, 4, 10, 8]
  %conv2d = conv2d(%pad, c.weight: float32[4, 4, 3, 3], c.bias: float32[4]) : float32[batch, 4, 8, 6]
  return output=%conv2d
""",
        """
program(x: float32[batch, 4, 6, 6])
  %conv2d = conv2d(%x, c.weight: float32[4, 4, 3, 3], c.bias: float32[4], [1, 1], [2, 1]) : float32[batch, 4, 8, 6]
  return output=%conv2d
""",
    ),
    "fold_constants": (
        """
program(x: float32[batch, 8])
  %arange = arange(8, device=cpu, pin_memory=False) : int64[8]
  %lt = lt.Scalar(%arange, 3) : bool[8]
  %t = t(l.weight: float32[8, 8]) : float32[8, 8]
  %ones = ones([8], device=cpu, pin_memory=False) : float32[8]
  %matmul = matmul(%t, %ones) : float32[8]
  %where = where.self(%lt, %x, %matmul) : float32[batch, 8]
  return output=%where
""",
        """
program(x: float32[batch, 8])
  %where = where.self(constant.lt: bool[8], %x, constant.matmul: float32[8]) : float32[batch, 8]
  return output=%where
""",
    ),
    "common_subexpressions": (
        """
program(x: float32[batch, 8])
  %tanh = tanh(%x) : float32[batch, 8]
  %tanh_1 = tanh(%x) : float32[batch, 8]
  %add = add.Tensor(%tanh_1, 1) : float32[batch, 8]
  %mul = mul.Tensor(%tanh, %add) : float32[batch, 8]
  return output=%mul
""",
        """
program(x: float32[batch, 8])
  %tanh = tanh(%x) : float32[batch, 8]
  %add = add.Tensor(%tanh, 1) : float32[batch, 8]
  %mul = mul.Tensor(%tanh, %add) : float32[batch, 8]
  return output=%mul
""",
    ),
    "cancel_transposes": (
        """
program(x: float32[batch, 4, 6, 6])
  %permute = permute(%x, [0, 2, 3, 1]) : float32[batch, 6, 6, 4]
  %relu = relu(%permute) : float32[batch, 6, 6, 4]
  %permute_1 = permute(%relu, [0, 3, 1, 2]) : float32[batch, 4, 6, 6]
  %flatten = flatten.using_ints(%permute_1, 2) : float32[batch, 4, 36]
  %view = view(%flatten, [-1, 144]) : float32[batch, 144]
  return output=%view
""",
        """
program(x: float32[batch, 4, 6, 6])
  %relu = relu(%x) : float32[batch, 4, 6, 6]
  %reshape = reshape(%relu, [-1, 144]) : float32[batch, 144]
  return output=%reshape
""",
    ),
    "remove_identity": (
        """
program(x: float32[batch, 8])
  %sym_size_int_1 = sym_size.int(%x, 0) : SymInt
  %dropout = dropout(%x, 0.1, False) : float32[batch, 8]
  %view = view(%dropout, [%sym_size_int_1, 8]) : float32[batch, 8]
  %_assert_tensor_metadata_default = _assert_tensor_metadata(%view, dtype=torch.float32, device=cpu, layout=torch.strided) : NoneType
  %to = to.dtype(%view, torch.float32) : float32[batch, 8]
  %mul_2 = mul.Tensor(%to, 1) : float32[batch, 8]
  %add = add.Tensor(%mul_2, 0) : float32[batch, 8]
  %relu = relu(%add) : float32[batch, 8]
  %relu_1 = relu(%relu) : float32[batch, 8]
  %_assert_tensor_metadata_default_1 = _assert_tensor_metadata(%relu_1, dtype=torch.float32, device=cpu, layout=torch.strided) : NoneType
  %to_1 = to.dtype(%relu_1, torch.float64) : float64[batch, 8]
  return output=%to_1
""",
        """
program(x: float32[batch, 8])
  %relu = relu(%x) : float32[batch, 8]
  %_to_copy = _to_copy(%relu, dtype=torch.float64) : float64[batch, 8]
  return output=%_to_copy
""",
    ),
    "remove_branches": (
        """
program(x: float32[batch, 8])
  %neg = neg(%x) : float32[batch, 8]
  %where = where.self(d.mask: bool[8], %x, %neg) : float32[batch, 8]
  %slice_1 = slice.Tensor(%x, 0, 0, 9223372036854775807) : float32[batch, 8]
  %slice_2 = slice.Tensor(%slice_1, 1, 0, 0) : float32[batch, 0]
  %cat = cat([%where, %slice_2], 1) : float32[batch, 8]
  return output=%cat
""",
        """
program(x: float32[batch, 8])
  return output=%x
""",
    ),
    "merge_linear": (
        """
program(x: float32[batch, 4, 6, 6])
  %conv2d = conv2d(%x, a.weight: float32[8, 4, 3, 3], a.bias: float32[8], [1, 1], [1, 1]) : float32[batch, 8, 6, 6]
  %conv2d_1 = conv2d(%conv2d, b.weight: float32[2, 8, 1, 1]) : float32[batch, 2, 6, 6]
  return output=%conv2d_1
""",
        """
program(x: float32[batch, 4, 6, 6])
  %conv2d = conv2d(%x, b.weight: float32[2, 4, 3, 3], b.bias: float32[2], [1, 1], [1, 1]) : float32[batch, 2, 6, 6]
  return output=%conv2d
""",
    ),
    "reparameterize": (
        """
program(x: float32[batch, 4, 6, 6])
  %conv2d = conv2d(%x, a.weight: float32[4, 2, 3, 3], a.bias: float32[4], [1, 1], [1, 1], [1, 1], 2) : float32[batch, 4, 6, 6]
  %conv2d_1 = conv2d(%x, b.weight: float32[4, 2, 1, 1], None, [1, 1], [0, 0], [1, 1], 2) : float32[batch, 4, 6, 6]
  %add = add.Tensor(%conv2d, %conv2d_1) : float32[batch, 4, 6, 6]
  %add_1 = add.Tensor(%add, %x) : float32[batch, 4, 6, 6]
  return output=%add_1
""",
        """
program(x: float32[batch, 4, 6, 6])
  %conv2d = conv2d(%x, a.weight: float32[4, 2, 3, 3], a.bias: float32[4], [1, 1], [1, 1], [1, 1], 2) : float32[batch, 4, 6, 6]
  return output=%conv2d
""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name: str) -> None:
    before, after, notes = shown(name)
    assert (before, after, notes) == (GOLDEN[name][0].strip("\n"), GOLDEN[name][1].strip("\n"), [])


def test_every_exact_pass_has_a_golden_text() -> None:
    assert set(CASES) == set(EXACT)
