"""Each reason for which an exact pass leaves something as it is: the note that says so, and outputs that stay equal."""

# the table reads better with a case a line
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.pass_manager import Context
from edgecompile.passes.fold_constants import FoldConstants
from edgecompile.passes.fold_scale import FoldScale
from edgecompile.program import Program
from tests.passes.test_exact_passes import make, worst
from tests.passes.test_golden import Small
from tests.random_nets import randomise

IMAGE, ROWS, TOKENS = (2, 4, 6, 6), (2, 8), (2, 5, 8)


def conv(*args: int, **options: int | bool) -> nn.Conv2d:
    return nn.Conv2d(*args, **options)  # type: ignore[arg-type]


def net(forward: Callable[..., Tensor], **layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: randomise(Small(forward, **layers), 0)


def tied() -> nn.Module:
    model = Small(lambda m, x: m.a(m.b(x)) * 2, a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    model.b.weight = model.a.weight  # type: ignore[union-attr]
    return randomise(model, 0)


def overflowing() -> nn.Module:
    model = randomise(Small(lambda m, x: m.b(m.c(x)), c=nn.Conv2d(4, 4, 1), b=nn.BatchNorm2d(4)), 0)
    model.b.weight.data.fill_(1e38)  # type: ignore[union-attr]
    model.c.weight.data.fill_(1e4)  # type: ignore[union-attr]
    return model


BN = nn.BatchNorm2d
REFUSALS = [
    ("fold_bn", net(lambda m, x: m.b(x).relu(), b=BN(4)), IMAGE,
     "batch_norm (b) kept: no convolution or linear layer beside it"),
    ("fold_bn", net(lambda m, x: m.c(m.b(x)), b=BN(4), c=conv(4, 4, 3, padding=1)), IMAGE,
     "batch_norm (b) kept: conv2d pads its input with zeros"),
    ("fold_bn", net(lambda m, x: m.b(y := m.c(x)) + y, b=BN(4), c=conv(4, 4, 1)), IMAGE,
     "batch_norm (b) kept: the result of conv2d is used twice"),
    ("fold_bn", net(lambda m, x: m.b(m.c(m.c(x))), b=BN(4), c=conv(4, 4, 1)), IMAGE,
     "batch_norm (b) kept: c.weight is shared with conv2d"),
    ("fold_bn", net(lambda m, x: m.b(m.l(x)), l=nn.Linear(8, 8), b=nn.BatchNorm1d(5)), TOKENS,
     "batch_norm (b) kept: its channels are not the last axis of linear"),
    ("fold_bn", net(lambda m, x: m.b(m.c(x)), c=conv(4, 4, 1), b=BN(4, track_running_stats=False)), IMAGE,
     "batch_norm (b) kept: it takes its statistics from the batch"),
    ("fold_bn", overflowing, IMAGE, "batch_norm (b) kept: the weights of conv2d would not be finite"),
    ("fold_scale", net(lambda m, x: m.c(x - 3), c=conv(4, 4, 3, padding=1)), IMAGE,
     "sub (sub) kept: conv2d pads its input with zeros"),
    ("fold_scale", net(lambda m, x: (y := m.c(x)) * 3 + y, c=conv(4, 4, 1)), IMAGE,
     "mul (mul) kept: the result of conv2d is used twice"),
    ("fold_scale", tied, ROWS, "mul (mul) kept: a.weight is shared with linear"),
    ("merge_linear", tied, ROWS, "linear_1 (a) not merged with linear: a.weight is shared with linear_1"),
    ("merge_linear", net(lambda m, x: m.b(m.a(x)), a=nn.Linear(8, 2), b=nn.Linear(2, 8)), ROWS,
     "linear_1 (b) not merged with linear: 64 MACs at each place instead of 32"),
    ("fold_pad", net(lambda m, x: m.c(F.pad(x, (0, 1, 0, 1))), c=conv(4, 4, 3)), IMAGE,
     "pad (pad) kept: its sides differ ([0, 1, 0, 1]), which no convolution's own padding does"),
    ("fold_pad", net(lambda m, x: m.c(F.pad(x, (1, 1), value=2.0)), c=conv(4, 4, 3)), IMAGE,
     "pad (pad) kept: it does not pad with zeros"),
    ("fold_pad", net(lambda m, x: m.c(F.pad(x, (1, 1, 1, 1), "reflect")), c=conv(4, 4, 3)), IMAGE,
     "pad (pad) kept: it does not pad with zeros"),
    ("fold_pad", net(lambda m, x: m.c(F.pad(x, (-1, -1))), c=conv(4, 4, 3)), IMAGE,
     "pad (pad) kept: its sizes are negative or not fixed"),
    ("fold_pad", net(lambda m, x: m.c(F.pad(x, (0, 0, 0, 0, 1, 1))), c=conv(6, 4, 3)), IMAGE,
     "pad (pad) kept: it pads the batch or the channels"),
    ("fold_pad", net(lambda m, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3)), IMAGE,
     "pad (pad) kept: max_pool2d is a max pool, which pads with minus infinity"),
    ("fold_pad", net(lambda m, x: F.avg_pool2d(F.pad(x, (2, 2, 2, 2)), 3)), IMAGE,
     "pad (pad) kept: avg_pool2d may pad at most half its kernel"),
    ("fold_pad", net(lambda m, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 4, 2, 1, False, False)), IMAGE,
     "pad (pad) kept: avg_pool2d does not count its padding"),
    ("fold_pad", net(lambda m, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2, 0, True)), IMAGE,
     "pad (pad) kept: avg_pool2d rounds its size up"),
    ("fold_pad", net(lambda m, x: F.pad(x, (1, 1)).relu()), IMAGE, "pad (pad) kept: relu cannot pad by itself"),
    ("fold_pad", net(lambda m, x: m.c(F.pad(x, (1, 1)) + 1), c=nn.Conv2d(4, 4, 2, padding="same")), IMAGE,
     ["pad (pad) kept: add cannot pad by itself", "constant_pad_nd_default (c) kept: its sides differ "
      "([0, 1, 0, 1]), which no convolution's own padding does"]),
    ("reparameterize", net(lambda m, x: m.a(x) + m.b(x), a=conv(4, 4, 3, padding=1), b=conv(4, 4, 3, padding=1, groups=2)),
     IMAGE, "conv2d_1 (b) not merged with conv2d: they are different operators or have different groups"),
    ("reparameterize", net(lambda m, x: m.a(x) + m.b(x)[:, :, :6, :6], a=conv(4, 4, 1), b=conv(4, 4, 3, padding=2)), IMAGE, None),
    ("reparameterize", net(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
     b=nn.Conv2d(4, 4, (3, 1), padding=(1, 0))), IMAGE,
     "conv2d_1 (b) not merged with conv2d: neither kernel holds the other, and their union would need more MACs"),
    ("reparameterize", net(lambda m, x: m.a(x) + m.b(x), a=conv(4, 4, 3, padding=2, dilation=2), b=conv(4, 4, 3, padding=1)),
     IMAGE, "conv2d_1 (b) not merged with conv2d: their dilations differ"),
    ("reparameterize", net(lambda m, x: m.a(x) + m.b(x), a=conv(4, 4, 5, padding=0, stride=2), b=conv(4, 4, 1, stride=5)),
     (2, 4, 5, 5), "conv2d_1 (b) not merged with conv2d: their strides differ"),
    ("reparameterize", net(lambda m, x: m.a(x) + m.b(x), a=conv(4, 4, 2, stride=2), b=conv(4, 4, 1, stride=2)),
     IMAGE, "conv2d_1 (b) not merged with conv2d: their centres differ"),
    ("reparameterize", net(lambda m, x: m.a(x) + m.b(x), a=conv(4, 4, 3, padding=1), b=BN(4)), IMAGE, None),
    ("fold_lora", net(lambda m, x: m.w(x) + m.b(m.a(x)), w=conv(4, 4, 3, padding=1), a=conv(4, 1, 1), b=conv(1, 4, 1)),
     IMAGE, "add (add) kept: conv2d_1 has another kernel, stride, padding or dilation than conv2d"),
    ("fold_lora", net(lambda m, x: m.w(x) + m.b(m.a(x)), w=conv(4, 4, 1, groups=2), a=conv(4, 1, 1), b=conv(1, 4, 1)),
     IMAGE, "add (add) kept: conv2d or conv2d_1 has groups"),
    ("fold_lora", net(lambda m, x: (y := m.w(x)) + m.b(m.a(x)) * y.tanh(), w=nn.Linear(8, 8), a=nn.Linear(8, 1),
     b=nn.Linear(1, 8)), ROWS, None),
    ("fold_lora", net(lambda m, x: (y := m.w(x)) + m.b(m.a(x)) + y.tanh(), w=nn.Linear(8, 8), a=nn.Linear(8, 1),
     b=nn.Linear(1, 8)), ROWS, "add (add) kept: the result of linear is used twice"),
    ("remove_identity", net(lambda m, x: torch.dropout(x, 0.5, True)), ROWS,
     "dropout kept: it drops at random, in training mode"),
    ("remove_identity", net(lambda m, x: x.clone().as_strided((2, 8), (8, 1)) + 1), ROWS, "copies kept: as_strided reads memory by strides"),
    ("fold_constants", net(lambda m, x: x + torch.ones(400, 400).sum(0)[:8] + torch.zeros(3, 300, 300)[:, :2, :8].sum(0)), ROWS, None),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("name", "model", "sizes", "note"), REFUSALS, ids=lambda v: v if isinstance(v, str) else "")
def test_refusal(
    name: str, model: Callable[[], nn.Module], sizes: tuple[int, ...], note: str | list[str] | None
) -> None:
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    program = Program.capture(model(), (x,))
    ctx = Context(teacher=program)
    after = make(name).run(program.clone(), ctx).retraced()
    assert ctx.notes == ([note] if isinstance(note, str) else note or [])
    if name != "remove_identity" or "random" not in str(note):
        wanted = program(x)
        assert all(torch.equal(a.isfinite(), b.isfinite()) for a, b in zip(after(x), wanted, strict=True))
        assert not wanted[0].isfinite().all() or worst(after(x), wanted) < 1e-5


def test_a_constant_larger_than_what_it_replaces_is_computed_each_time() -> None:
    program = Program.capture(
        net(lambda m, x: x + torch.arange(8 * 40_000).view(40_000, 8).float().cumsum(0))(),
        (torch.zeros(40_000, 8),),
        False,
    )
    ctx = Context(teacher=program)
    program = make("remove_identity").run(program, Context(teacher=program)).retraced()
    before = str(program)
    after = FoldConstants().run(program, ctx).retraced()
    assert str(after) == before
    assert ctx.notes == ["cumsum (cumsum) kept: its 1250 KiB would replace 0 KiB of weights"]


def test_layer_norm_goes_into_the_linear_layers_on_request() -> None:
    model = net(
        lambda m, x: m.a(y := m.n(x)) + m.b(y).relu(), n=nn.LayerNorm(8), a=nn.Linear(8, 8), b=nn.Linear(8, 8, False)
    )
    x = torch.randn(TOKENS, generator=torch.Generator().manual_seed(0))
    program = Program.capture(model(), (x,))
    ctx = Context(teacher=program)
    after = FoldScale(layer_norm=True).run(program.clone(), ctx).retraced()
    assert ctx.stats == {"layer_norms": 1}
    assert {"n.weight", "n.bias"} & set(after.weights()) == set()
    assert worst(after(x), program(x)) < 1e-5
    assert FoldScale().run(program.clone(), ctx).retraced().weights().keys() == program.weights().keys()


def after(name: str, model: nn.Module, sizes: tuple[int, ...]) -> tuple[Program, Program]:
    program = Program.capture(randomise(model, 0), (torch.randn(sizes, generator=torch.Generator().manual_seed(0)),))
    return program, make(name).run(program.clone(), Context(teacher=program)).retraced()


def test_transposes_are_composed_in_their_order() -> None:
    program, joined = after(
        "cancel_transposes", Small(lambda m, x: x.permute(0, 2, 3, 1).transpose(1, 2)), (2, 3, 4, 5)
    )
    assert "permute(%x, [0, 3, 2, 1])" in str(joined)
    assert torch.equal(joined(*program.inputs)[0], program(*program.inputs)[0])


def test_a_pad_that_adds_and_cuts_is_a_shift_and_stays() -> None:
    program, same = after("remove_identity", Small(lambda m, x: F.pad(x, (1, -1))), ROWS)
    assert torch.equal(same(*program.inputs)[0], program(*program.inputs)[0])
    assert "pad(%x, [1, -1])" in str(same)


@pytest.mark.parametrize("name", ["fold_constants", "common_subexpressions"])
def test_uninitialised_memory_is_neither_stored_nor_shared(name: str) -> None:
    model = Small(lambda m, x: x + torch.empty(8) * 0 + torch.empty(8) * 0)
    assert str(after(name, model, ROWS)[1]).count("empty.memory_format") == 2


def test_new_biases_name_the_weight_of_the_teacher_that_they_come_from() -> None:
    model = Small(lambda m, x: m.b(m.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 4, bias=False))
    assert after("merge_linear", model, ROWS)[1].origin == {"b.weight": "b.weight", "b.bias": "a.bias"}
    model = Small(lambda m, x: m.n(m.c(x)), c=conv(4, 4, 1, bias=False), n=BN(4))
    assert after("fold_bn", model, IMAGE)[1].origin == {"c.weight": "c.weight", "c.bias": "n.bias"}
