"""Predicted against measured latency on this CPU, for networks that no table was made for, float and INT8.

    python -m tests.bench.host [--threads 2] [--batch 4] [--only NAME ...] [--models FOLDER]
                                 [--profile SECONDS] [--no-measure]

Every network is priced first, then all are timed in interleaved rounds with bound inputs and outputs. A line a network
(predicted, measured, their ratio, how the nodes were priced), then the median, 90th percentile and worst error, and
the share of pairs whose measured latencies differ by over 8 % that the prediction puts in the right order. A median of
at most 4 %, a 90th percentile of at most 10 % and 97 % of the pairs hold. With one thread the clock is the thread's
own, so that being preempted by other processes does not count; with more it is the wall's, and each round gives its
quickest tenth: such figures need cores that nobody else uses. INT8 is ONNX Runtime's own, on random data.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecompile.hostcost import Priced, price, profile, runtime
from edgecompile.silence import silenced
from tests.networks import NETWORKS

Built = tuple[nn.Module, tuple[Tensor, ...]]
PUBLIC = (
    *("resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "squeezenet1_1"),
    *("shufflenet_v2_x0_5", "efficientnet_b0", "googlenet", "regnet_y_800mf", "mobileone_s0", "repvit_m0_9"),
    *("efficientformer_l1", "levit_128s", "mobilevit_v2_1_0", "convnext_tiny"),
)
INTEGER = ("resnet18", "resnet50", "mobilenet_v2", "squeezenet1_1", "efficientnet_b0")


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which has a convolution where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(inner, outer, 3, stride), conv(outer, outer, 3, act=False)
        plain = inner == outer and stride == 1
        self.short = nn.Identity() if plain else conv(inner, outer, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.short(x))


class Inverted(nn.Module):
    """Widen, depthwise, narrow: MobileNet's block."""

    def __init__(self, inner: int, outer: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = inner * factor
        self.body = nn.Sequential(
            conv(inner, wide, 1), conv(wide, wide, 3, stride, wide), conv(wide, outer, 1, act=False)
        )
        self.adds = inner == outer and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class Block(nn.Module):
    """A pre-normalised transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.one(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        a = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + self.out(a)
        return x + self.mlp(self.two(x))


class Patches(nn.Module):
    """A small vision transformer."""

    def __init__(self, width: int, depth: int, heads: int, side: int, patch: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.place = nn.Parameter(torch.randn(1, (side // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


def conv(inner: int, outer: int, kernel: int, stride: int = 1, group: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution, batch norm, and ReLU if `act`."""
    layer = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=group, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outer), *([nn.ReLU()] if act else []))


def tail(width: int) -> list[nn.Module]:
    """Pooling and a classifier."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 100)]


def small_resnet(widths: Sequence[int], depth: int, side: int = 32) -> Built:
    """ResNet-20 of CIFAR when `depth` is 3 and the widths are 16, 32, 64."""
    layers: list[nn.Module] = [conv(3, widths[0], 3)]
    for index, (inner, outer) in enumerate(zip([widths[0], *widths], widths, strict=False)):
        layers += [Residual(inner if i == 0 else outer, outer, 2 if i == 0 and index else 1) for i in range(depth)]
    return nn.Sequential(*layers, *tail(widths[-1])), (torch.randn(1, 3, side, side),)


def small_mobilenet(widths: Sequence[int], factor: int, side: int = 64) -> Built:
    """Two inverted blocks a width."""
    layers: list[nn.Module] = [conv(3, widths[0], 3, 2)]
    for inner, outer in itertools.pairwise([widths[0], *widths]):
        layers += [Inverted(inner, outer, 2 if inner != outer else 1, factor), Inverted(outer, outer, 1, factor)]
    return nn.Sequential(*layers, conv(widths[-1], 4 * widths[-1], 1), *tail(4 * widths[-1])), (
        torch.randn(1, 3, side, side),
    )


def small_vit(width: int, depth: int, heads: int, side: int = 32, patch: int = 4) -> Built:
    """A vision transformer of 64 tokens unless the side says otherwise."""
    return Patches(width, depth, heads, side, patch), (torch.randn(1, 3, side, side),)


SMALL: dict[str, Callable[[], Built]] = {
    "resnet20": partial(small_resnet, (16, 32, 64), 3),
    "resnet20_pruned": partial(small_resnet, (16, 32, 48), 2),
    "resnet20_ragged": partial(small_resnet, (12, 28, 44), 3),
    "resnet_wide": partial(small_resnet, (48, 112, 208), 2),
    "resnet_96": partial(small_resnet, (32, 80, 176, 304), 1, 64),
    "mobilenet_tiny": partial(small_mobilenet, (16, 32, 48), 3),
    "mobilenet_small": partial(small_mobilenet, (16, 32, 64, 112), 6, 96),
    "mobilenet_pruned": partial(small_mobilenet, (16, 48, 80, 144), 4, 128),
    "vit_tiny": partial(small_vit, 96, 4, 3),
    "vit_pruned": partial(small_vit, 144, 6, 3),
    "vit_small": partial(small_vit, 256, 8, 4, 112, 8),
}
SMALL_INTEGER = ("resnet20", "resnet_wide", "resnet_96", "mobilenet_small", "mobilenet_pruned", "vit_tiny", "vit_small")


def names() -> list[str]:
    """All networks of the benchmark; `-int8` behind a name is its quantized form."""
    plain = [*SMALL, *PUBLIC]
    return [*plain, *(f"{name}-int8" for name in (*SMALL_INTEGER, *INTEGER))]


def onnx_file(name: str, folder: Path, batch: int) -> Path:
    """The network as an ONNX file, made unless it is in the folder already."""
    path = folder / f"{name}-b{batch}.onnx"
    if path.exists():
        return path
    if name.endswith("-int8"):
        return _quantized(onnx_file(name.removesuffix("-int8"), folder, batch), path)
    torch.manual_seed(0)
    module, inputs = SMALL[name]() if name in SMALL else NETWORKS[name].build()
    inputs = tuple(torch.cat([t[:1]] * batch) for t in inputs)
    import onnx
    import onnxsim

    with silenced("torch.onnx", "torch.onnx._internal.exporter", "onnxscript", "onnx_ir", stdout=True):
        made = torch.onnx.export(
            module.eval(), inputs, dynamo=True, verbose=False, optimize=True, opset_version=20, external_data=False
        )
        assert made is not None
        model, _ = onnxsim.simplify(made.model_proto)
    onnx.save(model, path)
    return path


def _quantized(plain: Path, out: Path) -> Path:
    from onnxruntime import quantization as ort

    live = runtime.session(plain, optimise=True)
    rng = np.random.default_rng(0)

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: Iterator[Any] = iter(
                {i.name: rng.standard_normal(i.shape, dtype=np.float32) for i in live.get_inputs()} for _ in range(3)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.samples, None)

    prepared = out.with_suffix(".prepared")
    with silenced("root", stdout=True):
        ort.quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        ort.quantize_static(
            str(prepared), str(out), Reader(), quant_format=ort.QuantFormat.QDQ, per_channel=True,
            activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8,
        )  # fmt: skip
    prepared.unlink()
    return out


def timed(files: dict[str, Path], threads: int, rounds: int = 9, slot_s: float = 0.03) -> dict[str, list[float]]:
    """Milliseconds of every network, a median a round.

    With more threads a session's workers spin on after a run and would steal from the next: a pause ends that.
    """
    calls = {}
    for name, path in files.items():
        live = runtime.session(path, threads, optimise=True)
        feed = {i.name: runtime.made_up(tuple(i.shape), 1) for i in live.get_inputs()}
        calls[name] = runtime.bound(live, feed)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls)[:: -1 if index % 2 else 1]:
            if threads > 1:
                time.sleep(0.05)
            found[name].append(runtime.typical_us(calls[name], threads, slot_s, 3) / 1000)
    return found


def ordered(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float, int]:
    """Share of the pairs with measured times over 8 % apart that the prediction orders rightly, and their count."""
    rows = list(zip(predicted, measured, strict=True))
    right = [
        (p1 < p2) == (m1 < m2)
        for (p1, m1), (p2, m2) in itertools.combinations(rows, 2)
        if max(m1, m2) > 1.08 * min(m1, m2)
    ]
    return sum(right) / max(len(right), 1), len(right)


def report(priced: dict[str, Priced], measured: dict[str, list[float]]) -> bool:
    """Print the table and its summary; whether the goal holds."""
    ratios = {}
    for name, found in priced.items():
        real = statistics.median(measured[name])
        ratios[name] = found.ms / real
        sources = Counter[str]()
        for row in found.rows:
            sources[row.source] += row.ms / found.ms
        how = ", ".join(f"{source} {share:.0%}" for source, share in sources.most_common())
        inside = "" if found.low <= real <= found.high else "  OUTSIDE"
        print(
            f"{name:22s} {found.ms:8.3f} / {real:8.3f} ms {ratios[name]:.3f} {len(found.rows):4d} nodes, {how}{inside}"
        )
    for label, chosen in (("float", [n for n in ratios if not n.endswith("-int8")]),
                          ("INT8", [n for n in ratios if n.endswith("-int8")]), ("all", list(ratios))):  # fmt: skip
        if chosen:
            errors = np.abs(np.array([ratios[n] for n in chosen]) - 1)
            share, pairs = ordered([priced[n].ms for n in chosen], [statistics.median(measured[n]) for n in chosen])
            middle, high, worst = float(np.median(errors)), float(np.quantile(errors, 0.9)), float(errors.max())
            print(
                f"{label:6s} {len(chosen):3d} networks: median {middle:.1%}, p90 {high:.1%}, worst {worst:.1%}"
                f"; {share:.1%} of {pairs} pairs in order"
            )
    quantiles = np.quantile([1 / r for r in ratios.values()], [0.05, 0.95])
    print(f"measured / predicted, 5 % and 95 %: {quantiles[0]:.3f} {quantiles[1]:.3f}")
    return middle <= 0.04 and high <= 0.10 and share >= 0.97


def main(arguments: Sequence[str]) -> None:
    """Make the files, price them, time them, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--models", type=Path, default=None)
    parser.add_argument("--profile", type=float, default=0.0)
    parser.add_argument("--no-measure", action="store_true")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as text:
        folder = chosen.models or Path(text)
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: onnx_file(name, folder, chosen.batch) for name in chosen.only or names()}
        if chosen.profile:
            profile(threads=chosen.threads, seconds=chosen.profile)
        start = time.perf_counter()
        priced = {name: price(path, chosen.threads, not chosen.no_measure) for name, path in files.items()}
        print(
            f"priced {len(files)} networks in {time.perf_counter() - start:.1f} s;"
            f" {chosen.threads} threads, batch {chosen.batch}"
        )
        for note in sorted({note for found in priced.values() for note in found.notes}):
            print(f"note: {note}")
        holds = report(priced, timed(files, chosen.threads))
        print("holds" if holds else "MISSED")


if __name__ == "__main__":
    main(sys.argv[1:])
