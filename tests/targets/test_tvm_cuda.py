"""TVM for GPUs: what the library holds by its bytes, how build.sh makes it, what a block takes, what is refused."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
pytest.importorskip("tvm")

from edgecompile.errors import SpecError, TargetError
from edgecompile.program import Program
from edgecompile.targets import _tvm_cuda, _tvm_cuda_link, _tvm_graph
from edgecompile.targets._tvm_cuda_link import FATBIN, gpu_code, section
from edgecompile.targets.tvm import Tvm

pytestmark = pytest.mark.filterwarnings("ignore")
Find = Callable[[str, str], str]
NET = nn.Sequential(nn.Conv2d(3, 18, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18 * 25, 10)).eval()
CODE = FATBIN + bytes(range(256)) * 3


@pytest.fixture(scope="module")
def compiled() -> tuple[Any, str, Any, dict[str, tuple[str, int]]]:
    """A small net for sm_80: executable, CUDA source, scheduled module, rules."""
    exported = torch.export.export(NET, (torch.zeros(1, 3, 7, 7),))
    where = _tvm_cuda.target("sm_80")
    module, rules = _tvm_cuda.scheduled(_tvm_cuda.fused(_tvm_cuda.imported(exported, "float32"), where), where)
    executable = _tvm_graph.executable(module, where)
    return executable, _tvm_cuda.source_of(executable), module, rules


@pytest.fixture
def without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tvm_cuda_link.shutil, "which", lambda name: None)


def test_every_function_has_a_rule_and_fits_the_gpu(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, source, module, rules = compiled
    found = {f.name: f for f in _tvm_cuda.functions(module, rules, source, "sm_80")}
    assert set(found) == set(rules)
    (conv,) = (f for f in found.values() if f.rule == "Matmul")
    assert conv.operations >= 2 * 25 * 18 * 27
    assert 0 < conv.threads <= 1024
    assert 0 < conv.shared_bytes <= 48 * 1024
    monkeypatch.setattr(_tvm_cuda, "SHARED", conv.shared_bytes - 1)
    with pytest.raises(TargetError, match=rf"{conv.name}: 1 kernels, .* bytes of shared memory a block: sm_80 takes"):
        _tvm_cuda.functions(module, rules, source, "sm_80")


def test_threads_and_shared_memory_are_read_from_the_source() -> None:
    source = """extern "C" __global__ void __launch_bounds__(96) a_kernel(float* x);
extern "C" __global__ void __launch_bounds__(96) a_kernel(float* x) {
  __shared__ alignas(64) float s_ptr[10];
  alignas(64) float t_ptr[999];
  __shared__ alignas(64) half h_ptr[3];
}
extern "C" __global__ void a_kernel_1(float* x) {
}
"""
    assert _tvm_cuda.kernels(source) == {"a_kernel": (96, 46), "a_kernel_1": (1, 0)}


@pytest.mark.usefixtures("without_nvcc")
def test_without_a_compiler_the_library_holds_source_and_build_sh_makes_it(compiled: Any, tmp_path: Path) -> None:
    """A stand-in for nvcc writes known bytes: the rest of the library must be the same around them."""
    executable, source, *_ = compiled
    files, why = _tvm_cuda_link.linked(executable, source, "sm_80", "g++", tmp_path)
    assert (files, why) == (["model.so", "kernels.cu", "host.o", "build.sh"], "no nvcc here")
    held = (tmp_path / "model.so").read_bytes()
    assert gpu_code(held) == "source"
    assert source.encode() in held
    board = tmp_path / "board"
    board.mkdir()
    for name in files:
        shutil.copyfile(tmp_path / name, board / name)
    environment = os.environ | {"NVCC": "no_nvcc"}
    done = subprocess.run(["sh", "build.sh"], cwd=board, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("build.sh: no_nvcc is not found: install it")
    (tmp_path / "code").write_bytes(CODE)
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {tmp_path / "code"} "$2"\n')
    nvcc.chmod(0o755)
    subprocess.run(["sh", "build.sh"], cwd=board, env=os.environ | {"NVCC": str(nvcc)}, check=True)
    assert {p.name for p in (board / "built").iterdir()} == {"model.so"}
    made = (board / "built" / "model.so").read_bytes()
    assert gpu_code(made) == "fatbin"
    packed = section((tmp_path / "devc.o").read_bytes(), b".rodata")
    assert _with_code(packed, source.encode(), CODE) in made
    assert source.encode() not in made


def _with_code(packed: bytes, source: bytes, code: bytes) -> bytes:
    """Packed modules with machine code in place of the source, by another way than build.sh: replace, then lengths."""
    text = struct.pack("<Q", 4) + b"cuda"
    start = packed.rindex(text, 0, packed.rindex(text))  # kind, then format
    content = packed[start + len(text) + 8 :]
    arguments = content[len(text) : -len(source) - 8]
    content = struct.pack("<Q", 5) + b"cubin" + arguments + struct.pack("<Q", len(code)) + code
    body = packed[8 : start + len(text)] + struct.pack("<Q", len(content)) + content
    return struct.pack("<Q", len(body)) + body


def test_half_precision_is_for_a_gpu_and_integers_are_for_a_cpu() -> None:
    with pytest.raises(SpecError, match="dtype=float16 is for a GPU, arch=sm_87, sm_80 or sm_90, not for arch=host"):
        Tvm(dtype="float16")
    assert Tvm(arch="sm_87", dtype="float16").quantizable() == {}

    class Quantized(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = torch.ops.quantized_decomposed
            given = (0.1, 0, -128, 127, torch.int8)
            return q.dequantize_per_tensor(q.quantize_per_tensor(x, *given), *given)

    reasons = Tvm(arch="sm_87").refuse(Program.capture(Quantized(), (torch.randn(2, 8),)).specialised(1))
    assert len(reasons) == 2
    assert all(reason.endswith("tvm has no INT8 for sm_87") for reason in reasons)


def test_packed_modules_of_another_form_are_refused() -> None:
    with pytest.raises(TargetError, match="does not hold its CUDA module as this TVM writes it"):
        _tvm_cuda_link.parts(struct.pack("<QQ", 20, 4) + b"cuda" + bytes(8), b"x")


def test_build_sh_is_portable(apt_tool: Find) -> None:
    shellcheck = apt_tool("shellcheck", "shellcheck")
    folder = Path(_tvm_cuda_link.runners.__file__).parent
    subprocess.run([shellcheck, *map(str, sorted(folder.glob("tvm_*.sh")))], check=True)


def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("no nvcc in PATH")
    return found


def images(library: bytes) -> set[tuple[str, int]]:
    """Kind and architecture of every image in a library's fatbin."""
    at = library.index(FATBIN)
    head, size = struct.unpack_from("<HQ", library, at + 6)
    at, end, found = at + head, at + head + size, set()
    while at < end:
        kind, _, own, length = struct.unpack_from("<HHIQ", library, at)
        found.add(({1: "ptx", 2: "cubin"}[kind], struct.unpack_from("<I", library, at + 28)[0]))
        at += own + length
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "compiler"), [("sm_87", "aarch64-linux-gnu-g++"), ("sm_80", "g++")])
def test_a_fatbin_for_the_gpu_with_the_same_bytes_twice(
    arch: Any, compiler: str, tmp_path: Path, apt_tool: Find
) -> None:
    nvcc()
    if compiler != "g++":
        apt_tool(compiler, "g++-aarch64-linux-gnu")
    program, hashes = Program.capture(NET, (torch.zeros(2, 3, 7, 7),)).specialised(1), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        artifact = Tvm(arch=arch).emit(program, tmp_path / name, {})
        files = sorted(p for p in artifact.folder.rglob("*") if p.is_file())
        hashes.append([(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert hashes[0] == hashes[1]
    library = artifact.path.read_bytes()
    assert artifact.facts["gpu_code"] == "fatbin"
    assert images(library) == {("cubin", int(arch[3:])), ("ptx", int(arch[3:]))}
    assert library[18] == (183 if arch == "sm_87" else 62)  # the machine in an ELF header
    assert not (artifact.folder / "build.sh").exists()
    assert "needs a GPU of" in str(artifact.facts["not_run_here"])
    assert Tvm(arch=arch).load(artifact) is None


LOAD = """
import ctypes, os, sys
import tvm
ctypes.CDLL(os.path.join(os.path.dirname(tvm.__file__), "lib", "libtvm_runtime_cuda.so"), mode=ctypes.RTLD_GLOBAL)
module = tvm.runtime.load_module(sys.argv[1])
while module.kind != "cuda":
    (module,) = module.imports
print(all(module.implements_function(name) for name in sys.argv[2:]), module.implements_function("no_such_kernel"))
"""


@pytest.mark.slow
def test_tvms_cuda_runtime_finds_the_kernels_in_the_library(compiled: Any, tmp_path: Path) -> None:
    """The runtime itself reads the library; libraries with nothing but names stand in for the driver's."""
    nvcc()
    import tvm

    executable, source, *_ = compiled
    assert _tvm_cuda_link.linked(executable, source, "sm_80", "g++", tmp_path)[1] == ""
    runtime = (Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so").read_bytes()
    names = sorted({n.decode() for n in re.findall(rb"\0(cu(?:da)?[A-Z]\w+)(?=\0)", runtime)})
    (tmp_path / "names.c").write_text("".join(f"int {n}(void) {{ return 100; }}\n" for n in names))
    (tmp_path / "versions").write_text("libcudart.so.13 { *; };")
    for library, more in (("libcuda.so.1", []), ("libcudart.so.13", ["-Wl,--version-script=versions"])):
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{library}", *more, "-w", "-o", library]
        subprocess.run(["gcc", *flags, "names.c"], cwd=tmp_path, check=True)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model.so"), *_tvm_cuda.kernels(source)]
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.slow
def test_shared_memory_is_what_the_assembler_says(compiled: Any, tmp_path: Path) -> None:
    _, source, *_ = compiled
    (tmp_path / "kernels.cu").write_text(source)
    command = [nvcc(), "-w", "-arch=sm_80", "-cubin", "-Xptxas", "-v", "-o", "kernels.cubin", "kernels.cu"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    used = dict(re.findall(r"Compiling entry function '(\w+)'.*?Used \d+ registers([^\n]*)", told, re.DOTALL))
    for name, (_, shared) in _tvm_cuda.kernels(source).items():
        found = re.search(r"(\d+) bytes smem", used[name])
        assert shared <= int(found[1] if found else 0) <= shared + 64 * source.count("__shared__")
    assert "bytes spill stores" in told
    assert set(re.findall(r"(\d+) bytes spill stores", told)) == {"0"}
