"""TVM libraries: float32 kernels from our own schedule rules, for this CPU or for aarch64, run and measured here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from edgecompile.errors import TargetError, Unsupported
from edgecompile.program import Program, op_name
from edgecompile.rewrite import layer
from edgecompile.target import Artifact, Target
from edgecompile.targets import runners

if TYPE_CHECKING:
    from edgecompile.targets._tvm_session import Session

LARGE = 1_000_000
"""Operations from which a function without a schedule rule is refused: TVM's plain loops may be 100 times slower."""
_TYPES = (torch.float32, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True)
class Tvm(Target):
    """A shared library for TVM's runtime, float32, one thread, compiled in a process of its own.

    `arch` is `host` (this CPU's vectors), `aarch64` (Linux, with NEON) or `android` (objects that the NDK links).
    `vectors` narrows what `host` uses. Functions that no schedule rule takes are listed; one of more than a million
    operations is refused unless `allow_slow`. The compiler is stopped after `limit_s` seconds.
    """

    name: ClassVar[str] = "tvm"
    arch: Literal["host", "aarch64", "android"] = "host"
    vectors: Literal["auto", "avx2"] = "auto"
    allow_slow: bool = False
    limit_s: int = 900

    def refuse(self, program: Program) -> list[str]:
        """Operators that the importer cannot take, and weights and inputs of types that no kernel has, all of them."""
        _installed()
        from edgecompile.targets._tvm_import import prepared, unknown

        reasons = []
        for node in program.graph.graph.nodes:
            value = node.meta.get("val")
            if node.op == "call_function" and "quantize" in str(node.target):
                reasons.append(f"{layer(node)}: {op_name(node)} ({node.name}): tvm emits float32 only, no INT8")
            elif isinstance(value, torch.Tensor) and value.dtype not in _TYPES:
                reasons.append(
                    f"{layer(node)}: {op_name(node)} ({node.name}) has {value.dtype}: tvm emits float32 only"
                )
            elif isinstance(value, torch.Tensor) and any(not isinstance(d, int) for d in value.shape):
                reasons.append(
                    f"{layer(node)}: {op_name(node)} ({node.name}) has a dynamic shape: tvm needs fixed ones"
                )
        if reasons:
            return list(dict.fromkeys(reasons))
        for node, why in unknown(prepared(program.exported())):
            origin = node.meta.get("custom", {}).get("origin", node.name)
            reasons.append(f"{layer(node)}: {op_name(node)} ({origin}) {why}")
        return list(dict.fromkeys(reasons))

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        """Write the library, `model.json` with its interface and `run.py`; the same program gives the same bytes."""
        _installed()
        if reasons := self.refuse(program):
            raise Unsupported("tvm", reasons)
        linker = _linker(self.arch)
        with tempfile.TemporaryDirectory(prefix="edgecompile-tvm-") as text:
            work = Path(text)
            torch.export.save(program.exported(), work / "program.pt2")
            order = {"arch": self.arch, "vectors": self.vectors, "linker": linker, "large": LARGE}
            (work / "order.json").write_text(json.dumps(order | {"allow_slow": self.allow_slow}))
            found = self._compiled(work)
            for name in found["files"]:
                shutil.copyfile(work / name, folder / name)
        _describe(program, folder, found["main"], metadata)
        (folder / "run.py").write_bytes(runners.text("tvm_run.py"))
        if self.arch == "android":
            (folder / "build.sh").write_bytes(runners.text("tvm_link.sh"))
        if self.arch == "aarch64":
            (folder / "build.sh").write_bytes(runners.text("tvm_build.sh"))
            (folder / "tvm_run.cc").write_bytes(runners.text("tvm_run.cc"))
        return Artifact("tvm", folder, found["main"], tuple(_notes(found)), self._facts(found))

    def _compiled(self, work: Path) -> dict[str, Any]:
        """Run the compiler in a process of its own: what crashes there is one line here."""
        command = [sys.executable, "-m", "edgecompile.targets._tvm_worker", str(work)]
        path = os.pathsep.join(p for p in sys.path if p)
        environment = os.environ | {"PYTHONPATH": path, "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1", "PYTHONHASHSEED": "0"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=self.limit_s)
        except subprocess.TimeoutExpired:
            raise TargetError(
                f"tvm: the compiler did not end within {self.limit_s} s: raise limit_s, or leave tvm out"
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

    def _facts(self, found: Mapping[str, Any]) -> dict[str, object]:
        kept = {k: found[k] for k in ("versions", "machine", "functions", "compile_s")}
        kept.pop("compile_s")  # a time would make every build's manifest another
        reason = {
            "host": None,
            "aarch64": "needs an aarch64 machine or qemu-user with TVM's aarch64 runtime",
            "android": "objects: the NDK links them and TVM's runtime must be built for Android",
        }[self.arch]
        facts: dict[str, object] = {**kept, "arch": self.arch, "tolerance": {"rtol": 1e-4, "atol": 1e-4}}
        return facts if reason is None else facts | {"not_run_here": reason}

    def load(self, artifact: Artifact, threads: int = 1) -> Session | None:
        """The library in TVM's virtual machine, on one thread whatever `threads` says; None for another CPU."""
        from edgecompile.targets._tvm_machine import runs_here
        from edgecompile.targets._tvm_session import Session

        if self.arch != "host" or not runs_here(artifact.facts.get("machine")):
            return None
        _installed()
        return Session(artifact.path)


def _installed() -> None:
    missing = [p for p in ("tvm", "tvm_ffi") if find_spec(p) is None]
    if missing:
        raise TargetError(f"tvm: {missing[0]} is not installed: pip install 'edgecompile[tvm]'", rule="toolchain")


def _linker(arch: str) -> str:
    """The C++ compiler that links for an architecture; objects need none."""
    names = {"host": ("g++", "clang++", "c++"), "aarch64": ("aarch64-linux-gnu-g++",), "android": ("",)}[arch]
    found = next((n for n in names if not n or shutil.which(n)), None)
    if found is None:
        package = "g++-aarch64-linux-gnu" if arch == "aarch64" else "g++"
        raise TargetError(f"tvm: no {names[0]} to link with: apt-get install {package}", rule="toolchain")
    return found


def _describe(program: Program, folder: Path, main: str, metadata: Mapping[str, str]) -> None:
    """The library's interface, which TVM has no place for inside."""

    def row(name: str, value: torch.Tensor) -> dict[str, object]:
        return {"name": name, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}

    rows = {
        "inputs": [row(n, t) for n, t in zip(program.input_names, program.inputs, strict=True)],
        "outputs": [row(n, o.meta["val"]) for n, o in zip(program.output_names, program.outputs(), strict=True)],
    }
    described = {"library": main, "metadata": dict(metadata), **rows}
    lines = [f"{kind[:-1]} {row['name']}" for kind in ("inputs", "outputs") for row in rows[kind]]
    (folder / "interface.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "model.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _notes(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{f['name']}: no schedule rule, {f['operations']} operations in TVM's plain loops"
        for f in found["functions"]
        if f["rule"] is None
    ]
