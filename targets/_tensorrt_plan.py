"""Engines where a GPU is: TensorRT's own plan built in place, torch-tensorrt's program, and loading either.

Not run on the machines that this was written on, which had no GPU.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecompile.errors import TargetError
from edgecompile.program import Program
from edgecompile.target import Artifact, Run


def capability() -> int | None:
    """The compute capability of this machine's GPU, 80 for an A100; None without one."""
    from edgecompile.targets.runners.tensorrt_run import Cuda, CudaError

    try:
        return Cuda().capability()
    except CudaError:
        return None


def available(sm: int) -> bool:
    """Whether TensorRT itself (not TensorRT-RTX) and a GPU of that capability are here."""
    return importlib.util.find_spec("tensorrt") is not None and capability() == sm


def build(folder: Path, limit_s: float) -> dict[str, Any]:
    """Build `model.plan` with the bundle's own run.py in a child process; facts of what was built.

    The timing cache stays beside the plan: with it, a rebuild makes the same choices.
    """
    command = [sys.executable, str(folder / "run.py"), "--build"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise TargetError(f"tensorrt: TensorRT took over {limit_s:g} s to build the plan: raise limit_s") from None
    if done.returncode or not (folder / "model.plan").is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise TargetError(f"tensorrt: TensorRT built no plan ({how}): {last[:300]}")
    cache = hashlib.sha256((folder / "timing.cache").read_bytes()).hexdigest()
    return {"timing_cache_sha256": cache, "built_by": "tensorrt", "not_run_here": ""}


def save_torch_tensorrt(program: Program, folder: Path, dtype: str) -> dict[str, Any]:
    """`model.ep` by torch-tensorrt, which falls back to torch for what TensorRT lacks; facts with the coverage."""
    try:
        torch_tensorrt: Any = importlib.import_module("torch_tensorrt")
    except (ImportError, OSError) as error:  # it needs a torch that was built for CUDA even to be imported
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TargetError(
            f"tensorrt: torch-tensorrt does not import ({first[:200]}): pip install 'edgecompile[nvidia]'",
            rule="toolchain",
        ) from error
    exported = program.exported()
    inputs = [t.cuda() for t in program.inputs]
    precision = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    wanted = {torch.float32, precision}
    coverage = torch_tensorrt.dynamo.compile(exported, inputs=inputs, enabled_precisions=wanted, dryrun=True)
    compiled = torch_tensorrt.dynamo.compile(exported, inputs=inputs, enabled_precisions=wanted)
    torch_tensorrt.save(compiled, str(folder / "model.ep"), inputs=inputs)
    engines = sum("_run_on_acc" in name for name, _ in coverage.named_children())
    return {"torch_tensorrt": torch_tensorrt.__version__, "torch_tensorrt_engines": engines}


def load(artifact: Artifact) -> Run | None:
    """An artifact's engine in its runtime; None without an engine, a GPU or the runtime."""
    module = "tensorrt_rtx" if artifact.kind == "tensorrt-rtx" else "tensorrt"
    built = artifact.path.suffix in (".rtx", ".plan") and artifact.path.is_file()
    if not built or importlib.util.find_spec(module) is None or capability() is None:
        return None
    return Loaded(artifact.folder)


class Loaded:
    """An engine; callable with tensors, and `bound` gives the call that is timed."""

    def __init__(self, folder: Path) -> None:
        from edgecompile.targets.runners.tensorrt_run import Engine

        self.engine = Engine(str(folder))

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = {n: t.detach().contiguous().numpy() for n, t in zip(self.engine.inputs, inputs, strict=True)}
        return tuple(torch.from_numpy(value) for value in self.engine(given).values())

    def bound(self, inputs: tuple[Tensor, ...]) -> Any:
        """A call without arguments that runs on these inputs, which lie on the GPU already."""
        self(inputs)
        return self.engine.again
