"""TVM libraries: float32 and INT8 kernels from our own schedule rules, for this CPU or another, measured here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from edgecompile.errors import SpecError, TargetError, Unsupported
from edgecompile.program import Program, op_name
from edgecompile.rewrite import layer
from edgecompile.spec import parse_duration
from edgecompile.target import Artifact, QuantRule, Target
from edgecompile.targets import _tvm_board, _tvm_int8, runners

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from edgecompile.targets._tvm_session import Session

LARGE = 1_000_000
"""Operations from which a function without a schedule rule is refused: TVM's plain loops may be 100 times slower."""
_TYPES = (torch.float32, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True)
class Tvm(Target):
    """A shared library for TVM's runtime, float32 and INT8, one thread, compiled in a process of its own.

    `arch` is `host` (this CPU's vectors), `aarch64` (Linux, with NEON), `android` (objects that the NDK links), `sm_87`
    (CUDA kernels for Orin), `sm_80` (A100) or `sm_90` (H100), each with a library for the CPU beside it. `dtype` is
    what the GPU multiplies in: `float16` uses tensor cores where all sizes of a product are above 64, and sums in
    float32. `vectors` narrows what `host` uses. Functions that no schedule rule takes are listed; one of more than a
    million operations is refused unless `allow_slow`. The compiler is stopped after `limit_s` seconds, and what `tune`
    gives it besides: `20m` or `90s` to measure on this CPU other tiles for the sums that take most of the time. What
    was measured is kept in the cache, and the next build takes it from there.
    """

    name: ClassVar[str] = "tvm"
    runtime: ClassVar[str] = "TVM"
    arch: Literal["host", "aarch64", "android", "sm_87", "sm_80", "sm_90"] = "host"
    dtype: Literal["float32", "float16"] = "float32"
    vectors: Literal["auto", "avx2"] = "auto"
    allow_slow: bool = False
    limit_s: int = 900
    tune: str = ""

    def __post_init__(self) -> None:
        if self._tune_s and self.arch != "host":
            raise SpecError(f"tune={self.tune} measures on this CPU: it is for arch=host, not for arch={self.arch}")
        if self.dtype != "float32" and not self.arch.startswith("sm_"):
            raise SpecError(f"dtype={self.dtype} is for a GPU, arch=sm_87, sm_80 or sm_90, not for arch={self.arch}")

    def tuning(self, text: str) -> Target:
        """With this time for kernels where they are this CPU's and no time was given."""
        return replace(self, tune=text) if self.arch == "host" and not self.tune else self

    @property
    def _tune_s(self) -> float:
        return parse_duration(self.tune, "tune") if self.tune else 0.0

    @property
    def _integers(self) -> bool:
        return not self.arch.startswith("sm_")

    def quantizable(self) -> Mapping[OpOverload, QuantRule]:
        """What our schedule rules compute in integers on a CPU; nothing on a GPU."""
        return _tvm_int8.TABLE if self._integers else {}

    def refuse(self, program: Program) -> list[str]:
        """Operators that the importer cannot take, and weights and inputs of types that no kernel has, all of them."""
        _installed()
        from edgecompile.targets._emit import float8, not_numbers
        from edgecompile.targets._tvm_import import prepared, unknown

        if reasons := [*not_numbers(program), *float8(program, "tvm")]:
            return reasons
        for node in program.graph.graph.nodes:
            value = node.meta.get("val")
            if node.op == "call_function" and "quantize" in str(node.target) and not self._integers:
                reasons.append(f"{layer(node)}: {op_name(node)} ({node.name}): tvm has no INT8 for {self.arch}")
            elif isinstance(value, torch.Tensor) and value.dtype not in _TYPES:
                reasons.append(
                    f"{layer(node)}: {op_name(node)} ({node.name}) has {value.dtype}: tvm has no kernels for it"
                )
            elif isinstance(value, torch.Tensor) and any(not isinstance(d, int) for d in value.shape):
                reasons.append(
                    f"{layer(node)}: {op_name(node)} ({node.name}) has a dynamic shape: tvm needs fixed ones"
                )
        if reasons:
            return list(dict.fromkeys(reasons))
        exported = prepared(program.exported())
        for node, why in [*unknown(exported), *_tvm_int8.refused(exported)]:
            origin = node.meta.get("custom", {}).get("origin", node.name)
            reasons.append(f"{layer(node)}: {op_name(node)} ({origin}) {why}")
        return list(dict.fromkeys(reasons))

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        """Write the library, `model.json` with its interface and `run.py`; the same program gives the same bytes."""
        from edgecompile.targets._tvm_import import prepared

        if reasons := self.refuse(program):
            raise Unsupported("tvm", reasons)
        linker = _linker(self.arch)
        with tempfile.TemporaryDirectory(prefix="edgecompile-tvm-") as text:
            work = Path(text)
            torch.export.save(program.exported(), work / "program.pt2")
            order = {"arch": self.arch, "vectors": self.vectors, "linker": linker, "large": LARGE, "dtype": self.dtype}
            order |= {"allow_slow": self.allow_slow, "tune_s": self._tune_s}
            (work / "order.json").write_text(json.dumps(order))
            found = self._compiled(work)
            found["between"] = _tvm_int8.between(prepared(program.exported())) if self._integers else []
            for name in found["files"]:
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(work / name, folder / name)
        facts = self._facts(found, program)
        _describe(program, folder, found, metadata, facts["tolerance"])
        (folder / "run.py").write_bytes(runners.text("tvm_run.py"))
        if self.arch == "android":
            (folder / "build.sh").write_bytes(runners.text("tvm_link.sh"))
        if self.arch in _tvm_board.MACHINES:
            _tvm_board.equip(folder, linker, self.arch)
        return Artifact("tvm", folder, found["main"], tuple(_notes(found, self.arch)), facts)

    def _compiled(self, work: Path) -> dict[str, Any]:
        """Run the compiler in a process of its own: what crashes there is one line here."""
        command = [sys.executable, "-m", "edgecompile.targets._tvm_worker", str(work)]
        path = os.pathsep.join(p for p in sys.path if p)
        environment = os.environ | {"PYTHONPATH": path, "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1", "PYTHONHASHSEED": "0"}
        limit_s = self.limit_s + self._tune_s
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise TargetError(
                f"tvm: the compiler did not end within {limit_s:.0f} s: raise limit_s, or leave tvm out"
            ) from None
        result = work / "result.json"
        if done.returncode == 0 and result.exists():
            found: dict[str, Any] = json.loads(result.read_text())
            if slow := found.get("refused"):
                raise Unsupported("tvm", slow)
            return found
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no message"]
        how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else "failed"
        raise TargetError(f"tvm: the compiler {how}: {lines[-1].strip()[:300]}")

    def _facts(self, found: Mapping[str, Any], program: Program) -> dict[str, Any]:
        kept = {k: found[k] for k in ("versions", "machine", "functions", "compile_s")}
        kept.pop("compile_s")  # a time would make every build's manifest another
        reason = "" if _tvm_board.gpu_here(self.arch) else _tvm_board.needs(self.arch)
        facts: dict[str, Any] = {**kept, "arch": self.arch, "tolerance": {"rtol": 1e-4, "atol": 1e-4}}
        if any("quantize" in str(n.target) for n in program.graph.graph.nodes):
            facts["tolerance"] = {"rtol": 0.05, "atol": 1e-4}  # another CPU may round one step the other way
        if tuned := found.get("tuned"):
            facts["tuned"] = tuned["tiles"]
        if gpu := found.get("gpu"):
            facts |= _tvm_board.gpu_facts(gpu, self.dtype)
        if self.arch == "android":
            facts["on_device"] = list(_tvm_board.ON_PHONE)
        return facts if not reason else facts | {"not_run_here": reason}

    def load(self, artifact: Artifact, threads: int = 1) -> Session | None:
        """The library in TVM's virtual machine, on one thread whatever `threads` says; None for another CPU or GPU."""
        from edgecompile.targets._tvm_machine import runs_here
        from edgecompile.targets._tvm_session import Session

        arch = str(artifact.facts.get("arch", self.arch))
        if not runs_here(artifact.facts.get("machine")) or not (arch == "host" or _tvm_board.gpu_here(arch)):
            return None
        _installed()
        return Session(artifact.path, "cpu" if arch == "host" else "cuda")


def _installed() -> None:
    missing = [p for p in ("tvm", "tvm_ffi") if find_spec(p) is None]
    if missing:
        raise TargetError(f"tvm: {missing[0]} is not installed: pip install 'edgecompile[tvm]'", rule="toolchain")


def _linker(arch: str) -> str:
    """The C++ compiler that links for an architecture; objects need none."""
    cross = arch in ("aarch64", "sm_87")
    names = ("",) if arch == "android" else ("aarch64-linux-gnu-g++",) if cross else ("g++", "clang++", "c++")
    found = next((n for n in names if not n or shutil.which(n)), None)
    if found is None:
        package = "g++-aarch64-linux-gnu" if cross else "g++"
        raise TargetError(f"tvm: no {names[0]} to link with: apt-get install {package}", rule="toolchain")
    return found


def _describe(
    program: Program,
    folder: Path,
    found: Mapping[str, Any],
    metadata: Mapping[str, str],
    tolerance: Mapping[str, float],
) -> None:
    """The library's interface, which TVM has no place for inside."""

    def row(name: str, value: torch.Tensor) -> dict[str, object]:
        return {"name": name, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}

    rows = {
        "inputs": [row(n, t) for n, t in zip(program.input_names, program.inputs, strict=True)],
        "outputs": [row(n, o.meta["val"]) for n, o in zip(program.output_names, program.outputs(), strict=True)],
    }
    libraries = _tvm_board.libraries(found)
    described = {"library": found["main"], "libraries": libraries, "metadata": dict(metadata), **rows}
    text = _tvm_board.interface(libraries, tolerance, program.input_names, program.output_names)
    (folder / "interface.txt").write_text(text, encoding="utf-8")
    (folder / "model.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _notes(found: Mapping[str, Any], arch: str) -> list[str]:
    plain = [
        f"{f['name']}: no schedule rule, {f['operations']} operations in TVM's plain loops"
        for f in found["functions"]
        if f["rule"] is None
    ]
    plain += [f"{name} runs in floats between integers" for name in found["between"]]
    if tuned := found.get("tuned"):
        ratio = "" if tuned["ratio"] is None else f", {tuned['ratio']:.2f}x the time of the estimated ones"
        plain.append(f"tuned: {tuned['tried']} tiles tried, {len(tuned['tiles'])} not the estimated ones{ratio}")
    return plain + (_tvm_board.gpu_notes(found["gpu"], arch) if "gpu" in found else [])
