"""INT8 in TVM against the same quantized program in ONNX Runtime, operator classes and networks, one thread.

    python -m tests.bench.tvm_int8 [NAME ...] [--kernels] [--networks] [--avx2]

A row is a module that `quantize` has put Q/DQ into for ONNX Runtime; both run that program, interleaved. `slow` marks
what takes more than 1.2 times ONNX Runtime's time; the cosine is between both outputs.
"""

from __future__ import annotations

import os

os.environ.update(TVM_NUM_THREADS="1", OMP_NUM_THREADS="1", TVM_FFI_DISABLE_TORCH_C_DLPACK="1")

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecompile.data import Arrays, digest_of
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import EXACT, PASSES
from edgecompile.program import Program
from edgecompile.silence import silenced
from edgecompile.targets.onnx import Onnx
from edgecompile.teacher import Teacher
from tests.bench import networks
from tests.bench.tvm_kernels import CASES, SLOW, compared

KERNELS = [n for n in CASES if n.split()[0] in ("conv", "stem", "depthwise", "grouped", "linear", "max", "mean", "pad")]
NETWORKS = (*networks.NAMES, "mobilenet_v2")


def kernel(name: str) -> Program:
    """A row of the float table, with a batch of its own size."""
    torch.manual_seed(0)
    make, shape = CASES[name]
    pair = (2, *shape[1:])
    return _quantized(Program.capture(make().eval(), (torch.randn(pair),)), _noise(pair)).specialised(shape[0])


def network(name: str) -> Program:
    """A network behind the exact passes, quantized with its own calibration data."""
    found = _mobilenet() if name == "mobilenet_v2" else networks.teacher(name)
    return _quantized(found.program, found.calib).specialised(1)


def _noise(shape: tuple[int, ...]) -> Arrays:
    return Arrays("noise", (torch.randn(shape[0] * 4, *shape[1:]),), batch_size=shape[0])


def _quantized(program: Program, calib: Any) -> Program:
    text = f"{', '.join(EXACT)}, quantize(samples=16, smooth=False, bias_correction=False)"
    with silenced("nncf", "torchao", "torch.utils._pytree", "root", stdout=True):
        made, _ = PassManager(parse(text, PASSES)).run(program, Context(program, target=Onnx(), calib=calib))
    return made


def _mobilenet() -> Teacher:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    torch.manual_seed(0)
    model = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # its own start vanishes with depth
    program = Program.capture(model, {"pixel_values": torch.randn(2, 3, 224, 224)})
    calib = Arrays("noise", (torch.randn(32, 3, 224, 224),), batch_size=8)
    return Teacher("mobilenet_v2", program, digest_of(program), calib, calib)


def pair(program: Program, avx2: bool) -> tuple[Callable[[], Any], Callable[[], Any], float, list[Any]]:
    """A call of each runtime on the program's inputs, the cosine of their outputs, TVM's functions."""
    import tvm
    from tvm import relax

    from edgecompile.targets import _tvm_graph, _tvm_machine

    machine = _tvm_machine.named("host", "avx2" if avx2 else "auto")
    with tempfile.TemporaryDirectory() as folder:
        session = Onnx().load(Onnx().emit(program, Path(folder), {}))
        graph = _tvm_graph.imported(program.exported(), machine.simd)
    scheduled, functions = _tvm_graph.lowered(graph, machine.target(), machine.simd)
    run = relax.VirtualMachine(_tvm_graph.executable(scheduled, machine.target()), tvm.cpu())["main"]
    inputs = tuple(torch.randn(t.shape) if t.is_floating_point() else t for t in program.inputs)
    values = [tvm.runtime.tensor(t.numpy()) for t in inputs]
    ours, theirs = torch.from_numpy(run(*values)[0].numpy()), session(inputs)[0]
    cosine = torch.cosine_similarity(ours.flatten().double(), theirs.flatten().double(), 0).item()
    bound: Any = session
    return lambda: run(*values), bound.bound(inputs), cosine, functions


def main(arguments: list[str]) -> None:
    """Print the table."""
    words = [a for a in arguments if not a.startswith("--")]
    both = not {"--kernels", "--networks"} & set(arguments)
    names = list(KERNELS) if both or "--kernels" in arguments else []
    names += NETWORKS if both or "--networks" in arguments else []
    print(f"{'INT8':28s} {'TVM':>9s} {'ORT':>9s}   ratio  cosine  rules")
    for name in names:
        if words and not any(w in name for w in words):
            continue
        made = kernel(name) if name in CASES else network(name)
        ours, theirs, cosine, functions = pair(made, "--avx2" in arguments)
        a, b = compared(ours, theirs, 21 if name in NETWORKS else 11)
        rules = ", ".join(sorted({str(f.rule) for f in functions if f.operations > 10_000}))
        mark = "  slow" if a > SLOW * b else ""
        print(f"{name:28s} {a:7.3f}ms {b:7.3f}ms  {a / b:6.2f}  {cosine:.5f}  {rules}{mark}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
