"""Quantized programs as kernels: what runs in integers, what requantisation costs, what the dtypes make of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.cost.columns import columns
from edgecompile.cost.estimate import estimate
from edgecompile.cost.fuse import workload
from edgecompile.cost.work import Work, Workload
from edgecompile.data import Arrays
from edgecompile.device import DeviceProfile
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program
from edgecompile.targets.onnx import Onnx


class Cnn(nn.Module):
    """Convolutions, a residual sum, pools and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.left = nn.Conv2d(16, 16, 3, padding=1)
        self.right = nn.Conv2d(16, 16, 1, bias=False)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = F.max_pool2d(torch.relu(self.left(y) + self.right(y)), 2)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


def noise(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def quantized(options: str = "") -> tuple[Workload, Workload]:
    """The operators of the network before and after `quantize`."""
    torch.manual_seed(0)
    program = Program.capture(Cnn().eval(), (noise(2),))
    context = Context(program, target=Onnx(), calib=Arrays("noise", (noise(40),), batch_size=16))
    result, _ = PassManager(parse(f"quantize({options})", PASSES)).run(program, context)
    return workload(program), workload(result)


@pytest.fixture(scope="module")
def pair() -> tuple[Workload, Workload]:
    return quantized()


def products(load: Workload) -> list[Work]:
    return [w for w in load.works if w.macs]


def test_products_read_and_hold_integers(pair: tuple[Workload, Workload]) -> None:
    before, after = pair
    assert (before.macs, not after.unknown) == (after.macs, True)
    assert all(w.weight_bits == 0 and w.int8_reads == w.int8_writes == 0 for w in before.works)
    assert [w.kind for w in products(after)] == ["conv", "conv", "conv", "linear"]
    for old, new in zip(products(before), products(after), strict=True):
        assert (new.kind, new.m, new.n, new.k, new.groups) == (old.kind, old.m, old.n, old.k, old.groups)
        assert (new.weight_bits, new.int8_reads) == (8, new.reads)
        assert new.reads == old.reads
    assert all(w.int8_writes == w.writes for w in products(after)[:-1])
    assert products(after)[-1].int8_writes == 0  # the output is float


def test_requantisation_joins_the_kernel_before_it_and_costs_one_where_it_stands_alone(
    pair: tuple[Workload, Workload],
) -> None:
    after = pair[1]
    stem, left, right, _ = products(after)
    assert [n.rstrip("_0123456789") for n in stem.nodes] == ["conv2d", "relu", "quantize_per_tensor"]
    assert len(left.nodes) == 2
    assert [n.rstrip("_0123456789") for n in right.nodes][-3:] == ["add", "relu", "quantize_per_tensor"]
    alone = [w for w in after.works if w.name.startswith("quantize")]
    assert alone[0].nodes == ("quantize_per_tensor",)
    assert (alone[0].reads, alone[0].writes, alone[0].int8_reads, alone[0].int8_writes) == (192, 192, 0, 192)
    assert all(w.kind == "pointwise" and w.int8_writes == w.writes for w in alone)
    assert not any(name.startswith("dequantize") for w in after.works for name in w.nodes)


def test_bytes_and_dtypes_follow(pair: tuple[Workload, Workload]) -> None:
    before, after = pair
    c = columns(after.works, "fp16", uniform=False)
    for i, work in enumerate(after.works):
        assert c.dtype[i] == ("int8" if work.int8_reads else "fp16")
        assert c.read_bytes[i] == 2 * work.reads - work.int8_reads
        assert c.write_bytes[i] == 2 * work.writes - work.int8_writes
        assert c.weight_bytes[i] == work.weights * (1 if work.weight_bits else 2)
    uniform = columns(before.works, "fp16")
    assert set(uniform.dtype) == {"fp16"}
    assert (uniform.weight_bytes == 2 * columns(before.works, "int8").weight_bytes).all()


def test_weights_of_eight_bits_count_less_memory(pair: tuple[Workload, Workload]) -> None:
    before, after = (estimate(load, "galaxy-s24") for load in pair)
    assert (before.dtype, after.dtype) == ("fp16", "int8+fp16")
    assert after.memory_mb < before.memory_mb
    assert {row.dtype for row in after.rows if row.macs} == {"int8"}


def test_float_layers_stay_float() -> None:
    _, after = quantized("keep_float=('head',)")
    head = products(after)[-1]
    assert (head.kind, head.weight_bits) == ("linear", 0)  # it may read integers, which it makes float
    c = columns(after.works, "fp16", uniform=False)
    assert c.dtype[after.works.index(head)] == "fp16"
    with_head = estimate(after, DeviceProfile.load("galaxy-s24"))
    assert {row.dtype for row in with_head.rows if row.macs} == {"int8", "fp16"}
