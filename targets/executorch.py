"""ExecuTorch programs: a `.pte` that XNNPACK runs on a phone's CPU, and here in ExecuTorch's own Python runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from edgecompile.errors import TargetError, Unsupported
from edgecompile.program import Program, op_name
from edgecompile.rewrite import layer
from edgecompile.silence import silenced
from edgecompile.target import Artifact, QuantRule, Target
from edgecompile.targets.runners import text

if TYPE_CHECKING:
    from torch._ops import OpOverload

aten = torch.ops.aten
MAIN = "model.pte"
_CLAMPS = (aten.relu.default, aten.hardtanh.default, aten.relu6.default)
_SPATIAL = (aten.conv3d.default, aten.conv3d.padding, aten.conv_transpose3d.input)
_INTEGER = ("quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel")


@dataclass(frozen=True)
class ExecuTorch(Target):
    """A `.pte` for ExecuTorch, XNNPACK's part of it as large as it goes, the rest in its portable kernels.

    Operators outside XNNPACK are a note each. `limit_s` ends a lowering that takes longer.
    """

    name: ClassVar[str] = "executorch"
    runtime: ClassVar[str] = "ExecuTorch"
    activations: ClassVar[Literal["u8", "s8"]] = "s8"
    limit_s: int = 900

    def quantizable(self) -> Mapping[OpOverload, QuantRule]:
        """What XNNPACK runs in integers (`qs8`), as its partitioner's own table says."""
        return _TABLE

    def refuse(self, program: Program) -> list[str]:
        """Tensors of dynamic shape, dtypes that the runtime's kernels do not have, convolutions in three dimensions."""
        from edgecompile.targets._emit import float8, not_numbers

        _installed()
        reasons = [*not_numbers(program), *float8(program, "executorch")]
        for node in program.graph.graph.nodes:
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                continue
            if any(not isinstance(d, int) for d in value.shape):
                reasons.append(f"{layer(node)}: {op_name(node)} ({node.name}) has a dynamic shape: fix the batch")
            elif value.is_complex() or value.is_quantized:
                reasons.append(
                    f"{layer(node)}: {op_name(node)} ({node.name}) has {value.dtype}: ExecuTorch has no kernels for it"
                )
            elif node.target in _SPATIAL:
                reasons.append(
                    f"{layer(node)}: {op_name(node)} ({node.name}) has 5 axes: ExecuTorch's convolution has 3 or 4"
                )
        return list(dict.fromkeys(reasons))

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        """Write `model.pte`, `model.json` with its interface and `run.py`; the same program gives the same bytes."""
        if reasons := self.refuse(program):
            raise Unsupported("executorch", reasons)
        with tempfile.TemporaryDirectory(prefix="edgecompile-executorch-") as made:
            work = Path(made)
            torch.export.save(program.exported(), work / "program.pt2")
            found = self._lowered(work)
            if missing := found.get("missing"):
                raise Unsupported("executorch", [f"{op} has no kernel in ExecuTorch's runtime" for op in missing])
            (folder / MAIN).write_bytes((work / MAIN).read_bytes())
        described = {"inputs": list(program.input_names), "outputs": list(program.output_names)}
        said = json.dumps(described | {"metadata": dict(metadata)}, indent=2, sort_keys=True)
        (folder / "model.json").write_text(said + "\n", encoding="utf-8")
        (folder / "run.py").write_bytes(text("executorch_run.py"))
        outside = [f"{op}: {count} outside XNNPACK, in a portable kernel" for op, count in found["portable"].items()]
        facts = {k: found[k] for k in ("versions", "delegates", "portable")}
        integers = any(any(w in op_name(n) for w in _INTEGER) for n in program.graph.graph.nodes)
        return Artifact("executorch", folder, MAIN, tuple(outside), facts | {"tolerance": _tolerance(integers)})

    def _lowered(self, work: Path) -> dict[str, Any]:
        """Lower in a process of its own: what crashes there is one line here."""
        command = [sys.executable, "-m", "edgecompile.targets._executorch_worker", str(work)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONHASHSEED": "0"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=self.limit_s)
        except subprocess.TimeoutExpired:
            raise TargetError(f"executorch: lowering did not end within {self.limit_s} s: raise limit_s") from None
        result = work / "result.json"
        if done.returncode == 0 and result.exists():
            found: dict[str, Any] = json.loads(result.read_text())
            return found
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no message"]
        how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else "failed"
        raise TargetError(f"executorch: lowering {how}: {lines[-1].strip()[:300]}")

    def load(self, artifact: Artifact, threads: int = 1) -> Session | None:
        """The file in ExecuTorch's Python runtime with so many threads."""
        _installed()
        return Session(artifact.path, threads)


class Session:
    """A `.pte` in its runtime; callable with tensors, and `bound` gives the call that is timed."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._name = path.name
        try:
            with silenced(stderr=True, stdout=True):
                import executorch.kernels.quantized  # noqa: F401  kernels of what is quantized outside XNNPACK
                from executorch.extension.pybindings import portable_lib
                from executorch.runtime import Runtime

                portable_lib._unsafe_reset_threadpool(threads)
                self._program = Runtime.get().load_program(path.read_bytes())
                self._method: Any = self._program.load_method("forward")
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise TargetError(f"{path.name}: ExecuTorch does not load it: {said}") from error

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        try:
            found = self._method.execute([t.detach().contiguous() for t in inputs])
        except RuntimeError as error:
            said = (str(error).strip().splitlines() or ["no message"])[0][:300]
            raise TargetError(f"{self._name}: ExecuTorch does not run it: {said}") from error
        return tuple(t.clone() for t in found)  # the next run writes over what this one gives

    def bound(self, inputs: tuple[Tensor, ...]) -> Any:
        """A call without arguments that runs on these inputs: what a latency is measured of."""
        held, execute = [t.detach().contiguous() for t in inputs], self._method.execute

        def call() -> None:
            execute(held)

        return call


def _installed() -> None:
    if find_spec("executorch") is None:
        raise TargetError(
            "executorch: executorch is not installed: pip install 'edgecompile[executorch]'", rule="toolchain"
        )


def _tolerance(integers: bool) -> dict[str, float]:
    """How far another CPU may be off: a little, and where it rounds to integers by steps of these."""
    return {"rtol": 0.05 if integers else 1e-3, "atol": 1e-5}


_TABLE: dict[OpOverload, QuantRule] = {
    aten.conv2d.default: QuantRule(("input",), "weight", fuses=_CLAMPS),
    aten.linear.default: QuantRule(("input",), "weight", fuses=_CLAMPS),
    aten.add.Tensor: QuantRule(("self", "other"), fuses=_CLAMPS),
    aten.mul.Tensor: QuantRule(("self", "other")),
    aten.max_pool2d.default: QuantRule(("self",), output="shared"),
    aten.adaptive_avg_pool2d.default: QuantRule(("self",)),
    aten.flatten.using_ints: QuantRule(("self",), output="shared"),
    aten.reshape.default: QuantRule(("self",), output="shared"),
    aten.view.default: QuantRule(("self",), output="shared"),
    aten.permute.default: QuantRule(("self",), output="shared"),
}
