"""What a library's folder holds for a machine without Python: a runner built for it, its source, and what checks it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgecompile.errors import TargetError
from edgecompile.targets import runners
from edgecompile.targets._tensorrt_plan import capability

GLIBC = (2, 35)
"""The newest C library that a bundle may need: JetPack 6 has it."""
LARGE = 20_000_000
"""Operations from which a function without tiles for a GPU is told of."""
MACHINES = {"aarch64": "aarch64", "sm_87": "aarch64", "sm_80": "x86_64", "sm_90": "x86_64"}
"""Machines that get a runner, as uname calls them, by the target's `arch`."""


def equip(folder: Path, compiler: str, arch: str) -> None:
    """Put the runner, its source, `build_runner.sh` and `check.sh` into a folder."""
    runner(folder / "tvm_run", compiler)
    (folder / "tvm_run.cc").write_bytes(runners.text("tvm_run.cc"))
    packages = " ".join(f"{name}=={version(name)}" for name in ("apache-tvm", "apache-tvm-ffi"))
    for name, script in (("build_runner.sh", "tvm_build.sh"), ("check.sh", "tvm_check.sh")):
        text = runners.text(script).decode().replace("@MACHINE@", MACHINES[arch])
        (folder / name).write_text(text.replace("@PACKAGES@", packages), encoding="utf-8")


def runner(into: Path, compiler: str) -> None:
    """Compile `tvm_run` with a cross compiler, for runtime libraries that are not here.

    A library with nothing but the names of TVM's functions stands in for the device's `libtvm_ffi.so` at the link.
    """
    from tvm_ffi import libinfo

    headers = Path(libinfo.find_include_path())
    with tempfile.TemporaryDirectory(prefix="edgecompile-runner-") as text:
        work = Path(text)
        (work / "tvm_run.cc").write_bytes(runners.text("tvm_run.cc"))
        includes = [f"-I{p}" for p in dict.fromkeys((str(headers), libinfo.find_dlpack_include_path()))]
        mapped = f"-ffile-prefix-map={headers}=include"  # messages of the headers name their file
        _ran([compiler, "-std=c++17", "-O2", "-Wno-psabi", mapped, *includes, "-c", "tvm_run.cc", "-o", "run.o"], work)
        wanted = sorted(set(re.findall(rb"\0(TVMFFI\w+)(?=\0)", (work / "run.o").read_bytes())))
        (work / "names.c").write_text("".join(f"void {n.decode()}(void) {{}}\n" for n in wanted))
        stand_in = ["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libtvm_ffi.so", "-x", "c"]
        _ran([compiler, *stand_in, "names.c", "-o", "libtvm_ffi.so"], work)
        _ran([compiler, "run.o", "-o", "tvm_run", "-L.", "-ltvm_ffi", "-ldl", "-s", "-Wl,--build-id=none"], work)
        shutil.copyfile(work / "tvm_run", into)
    into.chmod(0o755)


def _ran(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise TargetError(f"tvm: {command[0]} does not compile the runner: {first.strip()[:300]}")


def needs(arch: str) -> str:
    """What a library needs that is not here, "" where it runs on this machine."""
    if arch.startswith("sm_"):
        return (
            f"needs a GPU of {arch}, an {MACHINES[arch]} CPU and TVM's CUDA runtime; the library in cpu/ needs no GPU"
        )
    return {
        "host": "",
        "aarch64": "needs an aarch64 machine or qemu-user with TVM's aarch64 runtime",
        "android": "objects: the NDK links them and TVM's runtime must be built for Android",
    }[arch]


def gpu_here(arch: str) -> bool:
    """Whether a GPU that takes the kernels of `arch`, and TVM's CUDA runtime, are on this machine.

    A fatbin holds machine code for `arch` and PTX beside it, from which the driver compiles for newer GPUs.
    """
    if not arch.startswith("sm_") or platform.machine() != MACHINES[arch] or find_spec("tvm") is None:
        return False
    if (found := capability()) is None or found < int(arch.removeprefix("sm_")):
        return False
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    import tvm

    return bool(tvm.cuda().exist)


ON_PHONE = (
    "`build.sh` is for a computer with the Android NDK: `NDK=/path/to/ndk sh build.sh` links `model.so` for arm64. An",
    "app brings it with TVM's runtime for arm64 (of the version in `manifest.json`, built with the same NDK), loads it",
    "with `tvm::ffi::Module::LoadFromFile`, and calls `main` of the Relax virtual machine with the inputs in the order",
    "of `model.json`. `selftest.py` and `run.py` need Python and TVM on the phone, which Android does not have.",
)
"""What the page beside objects for Android says."""


def gpu_facts(gpu: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """For a manifest: what the library holds for the GPU, by its bytes, and its kernels."""
    tolerance = {"rtol": 2e-2, "atol": 1e-3} if dtype == "float16" else {"rtol": 1e-4, "atol": 1e-4}
    return {"gpu_code": gpu["code"], "gpu_functions": gpu["functions"], "gpu_dtype": dtype, "tolerance": tolerance}


def gpu_notes(gpu: Mapping[str, Any], arch: str) -> list[str]:
    """What somebody with the GPU must know."""
    here = "on JetPack 6, which has CUDA 12," if arch == "sm_87" else "beside an older CUDA"
    notes = [] if gpu_here(arch) else [f"no GPU of {arch} is here: these kernels were not run"]
    notes += [
        "a predicted latency is of TensorRT's kernels, not of TVM's",
        f"TVM's published CUDA runtime is for CUDA 13: {here} it must be built from its source",
    ]
    notes += [
        f"{f['name']}: {f['operations']} operations, a thread for every result ({f['rule']}): slow"
        for f in gpu["functions"]
        if f["rule"] in ("Fallback", "threads") and f["operations"] > LARGE
    ]
    if gpu["code"] == "source":
        notes.insert(0, f"the library holds CUDA source, no machine code ({gpu['why']}): sh build.sh on the board")
    return notes


def libraries(found: Mapping[str, Any]) -> dict[str, str]:
    """The library for each device that a folder's runner knows."""
    if "gpu" not in found:
        return {"cpu": "model.so"}
    return {"cpu": "cpu/model.so", "cuda": "model.so" if found["gpu"]["code"] == "fatbin" else "built/model.so"}


def interface(
    libraries: Mapping[str, str], tolerance: Mapping[str, float], inputs: Sequence[str], outputs: Sequence[str]
) -> str:
    """`interface.txt`, which `tvm_run` reads: library by device, tolerance of golden outputs, names in order."""
    lines = [f"library {device} {name}" for device, name in libraries.items()]
    lines.append(f"tolerance {tolerance['rtol']:g} {tolerance['atol']:g}")
    lines += [f"input {n}" for n in inputs] + [f"output {n}" for n in outputs]
    return "\n".join(lines) + "\n"
