"""Programs as kernels: what joins what, the sizes of each product, and what is alive at once."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.cost.fuse import workload
from edgecompile.cost.work import Work
from edgecompile.program import Program
from tests.networks import NETWORKS
from tests.networks.macs import macs


class Small(nn.Module):
    """Layers of 8 channels and a forward that the test gives."""

    def __init__(self, forward: Callable[[Small, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def conv(inputs: int = 8, outputs: int = 8, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def fused(forward: Callable[..., Tensor], shape: tuple[int, ...] = (8, 8, 8), **layers: nn.Module) -> tuple[Work, ...]:
    """The operators of a network of one input, a sample of `shape`."""
    return workload(Program.capture(Small(forward, **layers), (torch.randn(2, *shape),))).works


def kinds(works: tuple[Work, ...]) -> list[str]:
    return [w.kind for w in works]


def test_a_product_takes_in_norm_activation_and_residual_sum() -> None:
    first, second = fused(
        lambda s, x: torch.relu(s.d(s.c(y := torch.relu(s.b(s.a(x))))) + y),
        a=conv(3),
        b=nn.BatchNorm2d(8),
        c=conv(bias=False),
        d=nn.BatchNorm2d(8),
        shape=(3, 8, 8),
    )
    assert first.nodes == ("conv2d", "batch_norm", "relu")
    assert second.nodes == ("conv2d_1", "batch_norm_1", "add", "relu_1")
    assert (first.kind, first.macs, first.m, first.n, first.k, first.groups) == ("conv", 64 * 8 * 27, 64, 8, 27, 1)
    assert (first.reads, first.writes, first.weights) == (3 * 64, 8 * 64, 8 * 27 + 8 + 4 * 8)
    # the sum adds what the product itself reads: one read
    assert (second.reads, second.writes, second.weights) == (8 * 64, 8 * 64, 8 * 72 + 4 * 8)
    assert (first.layer, second.layer) == ("a", "c")


@pytest.mark.parametrize(
    "activation",
    [
        lambda y: y * torch.sigmoid(y),
        lambda y: y * 0.5 * (1 + torch.erf(y * 0.7071)),
        lambda y: y * F.relu6(y + 3) / 6,
        F.silu,
        F.gelu,
        F.hardswish,
    ],
)
def test_activations_in_several_steps_join_their_product(activation: Callable[[Tensor], Tensor]) -> None:
    (work,) = fused(lambda s, x: activation(s.a(x)), a=conv())
    assert (work.kind, work.reads, work.writes) == ("conv", 512, 512)


def test_a_residual_from_elsewhere_is_one_more_read() -> None:
    *_, last = fused(lambda s, x: s.b(s.a(x)) + x, a=conv(), b=conv())
    assert last.nodes == ("conv2d_1", "add")
    assert (last.reads, last.writes) == (2 * 512, 512)


def test_the_product_of_squeeze_and_excite_is_its_own() -> None:
    def forward(s: Small, x: Tensor) -> Tensor:
        y = torch.relu(s.a(x))
        return y * torch.sigmoid(s.c(torch.relu(s.b(F.adaptive_avg_pool2d(y, 1)))))

    works = fused(forward, a=conv(), b=conv(8, 2, 1), c=conv(2, 8, 1))
    assert kinds(works) == ["conv", "pool", "conv", "conv", "pointwise"]
    assert works[3].nodes == ("conv2d_2", "sigmoid")
    assert (works[4].reads, works[4].writes, works[4].macs) == (512 + 8, 512, 0)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (4, 4)).transpose(1, 2)


def qkv(s: Small, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(heads(getattr(s, name)(x)) for name in "qkv")


LINEARS = ("q", "k", "v", "o")


def linears() -> dict[str, nn.Module]:
    return {name: nn.Linear(16, 16) for name in LINEARS}


def test_queries_keys_and_values_are_one_product_and_attention_is_one_operator() -> None:
    def library(s: Small, x: Tensor) -> Tensor:
        return s.o(F.scaled_dot_product_attention(*qkv(s, x)).transpose(1, 2).flatten(2))

    def written_out(s: Small, x: Tensor) -> Tensor:
        q, k, v = qkv(s, x)
        return s.o((torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v).transpose(1, 2).flatten(2))

    for forward in (library, written_out):
        product, attention, out = fused(forward, (6, 16), **linears())
        assert kinds((product, attention, out)) == ["linear", "attention", "linear"]
        assert (product.m, product.n, product.k, product.reads, product.writes) == (6, 48, 16, 96, 288)
        assert product.macs == 6 * 48 * 16
        assert (attention.macs, attention.reads, attention.writes) == (2 * 4 * 6 * 6 * 4, 288, 96)
        assert (attention.m, attention.k, attention.groups) == (6, 4, 4)
        assert (out.reads, out.writes) == (96, 96)


def test_linear_layers_of_other_inputs_stay_apart() -> None:
    assert kinds(fused(lambda s, x: s.q(x) + s.k(x * 2), (6, 16), **linears())) == ["linear", "pointwise", "linear"]


def test_a_softmax_by_itself_and_a_norm_with_the_sum_before_it() -> None:
    works = fused(lambda s, x: torch.softmax(s.n(x + torch.tanh(x)), -1), (6, 16), n=nn.LayerNorm(16))
    assert kinds(works) == ["norm", "softmax"]
    assert works[0].nodes == ("tanh", "add", "layer_norm")


def test_views_dropout_and_padding_cost_nothing_and_a_concatenation_is_a_copy() -> None:
    def forward(s: Small, x: Tensor) -> Tensor:
        y = s.a(F.pad(x, (1, 1, 1, 1)))
        return torch.cat([s.drop(y), torch.relu(s.b(y))], 1).flatten(1).view(-1, 4, 256)

    works = fused(forward, a=nn.Conv2d(8, 8, 3), b=conv(), drop=nn.Dropout())
    assert kinds(works) == ["conv", "conv", "concat"]
    assert works[0].reads == 512  # not the padded size
    assert (works[2].reads, works[2].writes) == (1024, 1024)


def test_a_turn_that_no_product_takes_in_is_a_copy() -> None:
    assert kinds(fused(lambda s, x: torch.relu(x).permute(0, 2, 3, 1) * 2)) == ["pointwise", "copy", "pointwise"]
    assert kinds(fused(lambda s, x: F.pad(torch.relu(x), (1, 1, 1, 1)))) == ["pointwise", "copy"]


@pytest.mark.parametrize(
    ("layer", "kind", "sizes"),
    [
        (conv(8, 24, groups=8), "depthwise", (64, 3, 9, 8)),
        (conv(8, 8, groups=8), "depthwise", (64, 1, 9, 8)),
        (conv(8, 12, groups=2), "conv", (64, 6, 36, 2)),
        (conv(8, 4, 5, stride=2), "conv", (16, 4, 200, 1)),
        (nn.ConvTranspose2d(8, 6, 2, stride=2), "conv", (64, 24, 8, 1)),
        (nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), "conv", (64, 12, 4, 2)),
        (nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), "depthwise", (64, 4, 1, 8)),
    ],
)
def test_sizes_of_convolutions(layer: nn.Module, kind: str, sizes: tuple[int, ...]) -> None:
    (work,) = fused(lambda s, x: s.a(x), a=layer)
    assert (work.kind, (work.m, work.n, work.k, work.groups)) == (kind, sizes)
    assert work.macs == prod(sizes) == macs(layer, (torch.randn(2, 8, 8, 8),))


def test_recurrent_layers() -> None:
    layer = nn.LSTM(16, 5, batch_first=True)
    (work,) = fused(lambda s, x: s.a(x)[0], (6, 16), a=layer)
    assert (work.kind, work.macs) == ("recurrent", 6 * 4 * 5 * (16 + 5))


def test_a_table_that_is_looked_up_is_not_read_whole() -> None:
    program = Program.capture(nn.Embedding(1000, 8), (torch.zeros(2, 6, dtype=torch.long),))
    load = workload(program)
    (work,) = load.works
    assert (work.kind, work.reads, work.writes, work.weights, load.constants) == ("gather", 6, 48, 0, 8000)


def test_an_operator_without_a_rule_is_listed_and_priced() -> None:
    load = workload(Program.capture(Small(lambda s, x: torch.linalg.inv(x) * 2), (torch.eye(4).expand(2, 4, 4),)))
    assert dict(load.unknown) == {"linalg_inv": "aten.linalg_inv.default"}
    assert load.works[0].kind == "other"
    assert (load.works[0].reads, load.works[0].writes) == (16, 16)


DEFAULT = ("squeezenet1_1", "resnet18", "mobilenet_v3_small", "efficientformer_l1")


@pytest.mark.parametrize(
    "name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if "large" not in n]
)
def test_macs_of_reference_networks(name: str) -> None:
    pytest.importorskip("transformers")
    module, inputs = NETWORKS[name].build()
    load = workload(Program.capture(module, inputs))
    assert (load.batch, dict(load.unknown)) == (1, {})
    assert load.macs == macs(module, inputs)


def test_the_peak_holds_what_is_read_and_written_at_once() -> None:
    def peak(forward: Callable[..., Tensor], **layers: nn.Module) -> int:
        return workload(Program.capture(Small(forward, **layers), (torch.randn(2, 3, 8, 8),))).peak_elements

    image, wide, small = 3 * 64, 8 * 64, 2 * 64
    assert peak(lambda s, x: s.a(x), a=conv(3)) == image + wide
    assert peak(lambda s, x: s.b(s.a(x)), a=conv(3), b=conv()) == wide + wide
    assert peak(lambda s, x: s.b(s.a(x)) + x.sum(), a=conv(3), b=conv(8, 2)) == image + wide + small
    assert peak(lambda s, x: (s.a(x), s.c(s.b(x))), a=conv(3, 2), b=conv(3), c=conv()) == small + wide + wide  # type: ignore[arg-type,return-value]
