"""TVM with our schedule rules against ONNX Runtime, one operator class a row, one thread, interleaved.

    python -m tests.bench.tvm_kernels [CLASS ...] [--avx2]

A row is a chain of layers of one class, so that the change of layout at both ends, which both runtimes make, weighs
little. `slow` marks what takes more than 1.2 times ONNX Runtime's time.
"""

from __future__ import annotations

import os

os.environ.update(TVM_NUM_THREADS="1", OMP_NUM_THREADS="1", TVM_FFI_DISABLE_TORCH_C_DLPACK="1")

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOW = 1.2
Case = tuple[Callable[[], nn.Module], tuple[int, ...]]


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def chain(count: int, make: Callable[[], nn.Module], between: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """The same layer several times, an activation between."""
    return nn.Sequential(*[m for _ in range(count) for m in (make(), between())])


def conv(i: int, o: int, k: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution that keeps the size unless it has a stride."""
    return nn.Conv2d(i, o, k, stride, k // 2, groups=groups)


def surrounded(channels: int, inner: nn.Module) -> nn.Module:
    """A layer between two pointwise convolutions, where both runtimes have their own layout."""
    return nn.Sequential(conv(channels, channels, 1), inner, conv(channels, channels, 1))


def attention(x: Tensor) -> Tensor:
    """Scores and mixture of heads."""
    return F.scaled_dot_product_attention(x, x * 0.5, x + 1)


CASES: dict[str, Case] = {
    "conv 3x3 64 @56": (lambda: chain(3, lambda: conv(64, 64, 3)), (1, 64, 56, 56)),
    "conv 3x3 128 @28": (lambda: chain(4, lambda: conv(128, 128, 3)), (1, 128, 28, 28)),
    "conv 3x3 256 @14": (lambda: chain(4, lambda: conv(256, 256, 3)), (1, 256, 14, 14)),
    "conv 3x3 512 @7": (lambda: chain(4, lambda: conv(512, 512, 3)), (1, 512, 7, 7)),
    "conv 3x3 odd 44 @13": (lambda: chain(6, lambda: conv(44, 44, 3)), (1, 44, 13, 13)),
    "conv 3x3 48 @28 batch 4": (lambda: chain(4, lambda: conv(48, 48, 3)), (4, 48, 28, 28)),
    "conv 1x1 64-256-64 @56": (lambda: chain(2, lambda: nn.Sequential(conv(64, 256, 1), nn.ReLU(), conv(256, 64, 1))),
                               (1, 64, 56, 56)),
    "conv 1x1 24-144-24 @28": (lambda: chain(3, lambda: nn.Sequential(conv(24, 144, 1), nn.ReLU(), conv(144, 24, 1))),
                               (1, 24, 28, 28)),
    "conv 1x1 160-960-160 @7": (lambda: chain(3, lambda: nn.Sequential(conv(160, 960, 1), nn.ReLU(),
                                                                       conv(960, 160, 1))), (1, 160, 7, 7)),
    "conv strided": (lambda: nn.Sequential(conv(32, 64, 3, 2), nn.ReLU(), conv(64, 128, 3, 2), nn.ReLU(),
                                           conv(128, 256, 1, 2)), (1, 32, 56, 56)),
    "stem 7x7": (lambda: nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), conv(64, 8, 1, 2)), (1, 3, 224, 224)),
    "stem 3x3": (lambda: nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), conv(32, 8, 1, 2)), (1, 3, 224, 224)),
    "patches 16x16": (lambda: nn.Conv2d(3, 384, 16, 16), (1, 3, 224, 224)),
    "depthwise 3x3 32 @112": (lambda: chain(4, lambda: conv(32, 32, 3, 1, 32)), (1, 32, 112, 112)),
    "depthwise 3x3 144 @28": (lambda: chain(6, lambda: conv(144, 144, 3, 1, 144)), (1, 144, 28, 28)),
    "depthwise 5x5 480 @14": (lambda: chain(6, lambda: conv(480, 480, 5, 1, 480)), (1, 480, 14, 14)),
    "depthwise 3x3 960 @7": (lambda: chain(6, lambda: conv(960, 960, 3, 1, 960)), (1, 960, 7, 7)),
    "grouped 3x3 128 in 32 @28": (lambda: chain(4, lambda: conv(128, 128, 3, 1, 32)), (1, 128, 28, 28)),
    "grouped 3x3 192 in 8 @14": (lambda: chain(4, lambda: conv(192, 192, 3, 1, 8)), (1, 192, 14, 14)),
    "linear 197x384-1536": (lambda: nn.Sequential(nn.Linear(384, 1536), nn.ReLU(), nn.Linear(1536, 384)),
                            (1, 197, 384)),
    "linear 128x768": (lambda: chain(2, lambda: nn.Linear(768, 768)), (1, 128, 768)),
    "linear odd 61x100-77": (lambda: chain(6, lambda: nn.Sequential(nn.Linear(100, 77), nn.ReLU(),
                                                                    nn.Linear(77, 100))), (61, 100)),
    "linear 1x1280-1000": (lambda: nn.Linear(1280, 1000), (1, 1280)),
    "batched matmul 12x128x32": (lambda: Call(attention), (1, 12, 128, 32)),
    "batched matmul 6x197x64": (lambda: Call(attention), (1, 6, 197, 64)),
    "max pool 3x3/2 64 @112": (lambda: surrounded(64, nn.MaxPool2d(3, 2, 1)), (1, 64, 112, 112)),
    "avg pool 2x2/2 64 @56": (lambda: surrounded(64, nn.AvgPool2d(2, 2)), (1, 64, 56, 56)),
    "mean 512 @14": (lambda: nn.Sequential(conv(512, 512, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                     (1, 512, 14, 14)),
    "pad 64 @56": (lambda: surrounded(64, nn.ZeroPad2d(2)), (1, 64, 56, 56)),
    "softmax 12x128x128": (lambda: nn.Softmax(-1), (12, 128, 128)),
    "softmax 6x197x197": (lambda: nn.Softmax(-1), (6, 197, 197)),
    "layer norm 128x384": (lambda: nn.LayerNorm(384), (128, 384)),
    "gelu 128x1536": (lambda: nn.GELU(), (128, 1536)),
    "silu 96 @56": (lambda: nn.SiLU(), (1, 96, 56, 56)),
    "linear+gelu 128x384-1536": (lambda: nn.Sequential(nn.Linear(384, 1536), nn.GELU()), (1, 128, 384)),
}  # fmt: skip


def pair(case: Case, avx2: bool = False) -> tuple[Callable[[], Any], Callable[[], Any], float, list[str]]:
    """A call of each runtime on the same module and input, their largest difference, functions without a rule."""
    import tvm
    from tvm import relax

    from edgecompile.silence import silenced
    from edgecompile.targets import _tvm_graph, _tvm_machine
    from edgecompile.targets.onnx import Session

    torch.manual_seed(0)
    module, x = case[0]().eval(), torch.randn(case[1])
    with silenced("torch.onnx", "torch.onnx._internal.exporter", "onnxscript", "onnx_ir", stdout=True):
        made = torch.onnx.export(module, (x,), dynamo=True, verbose=False, optimize=True, opset_version=20)
    assert made is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        made.save(path)
        session = Session(path)
    chosen = _tvm_machine.host([f for f in _tvm_machine.flags() if not avx2 or "avx512" not in f])
    graph = _tvm_graph.imported(torch.export.export(module, (x,)))
    scheduled, functions = _tvm_graph.lowered(graph, chosen.target(), chosen.simd)
    run = relax.VirtualMachine(_tvm_graph.executable(scheduled, chosen.target()), tvm.cpu())["main"]
    value = tvm.runtime.tensor(x.numpy())
    error = (torch.from_numpy(run(value)[0].numpy()) - session((x,))[0]).abs().max().item()
    return lambda: run(value), session.bound((x,)), error, [f.name for f in functions if f.rule is None]


def compared(first: Callable[[], Any], second: Callable[[], Any], rounds: int = 11) -> tuple[float, float]:
    """Median CPU milliseconds of both, taken in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    count = 1
    for _ in range(rounds):
        for kept, call in zip(times, (first, second), strict=True):
            call()
            start = time.process_time()
            for _ in range(count):
                call()
            kept.append((time.process_time() - start) / count * 1e3)
        count = max(1, min(200, int(8 / max(times[0][-1], 1e-3))))
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def main(arguments: list[str]) -> None:
    """Print the table."""
    words = [a for a in arguments if not a.startswith("--")]
    print(f"{'class':28s} {'TVM':>9s} {'ORT':>9s}   ratio   error")
    for name, case in CASES.items():
        if words and not any(w in name for w in words):
            continue
        ours, theirs, error, plain = pair(case, "--avx2" in arguments)
        a, b = compared(ours, theirs)
        mark = "  slow" if a > SLOW * b else ""
        missing = f"  no rule: {', '.join(plain)}" if plain else ""
        print(f"{name:28s} {a:7.3f}ms {b:7.3f}ms  {a / b:6.2f}  {error:.1e}{mark}{missing}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
