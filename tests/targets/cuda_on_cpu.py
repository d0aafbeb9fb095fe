"""CUDA source that TVM wrote, compiled for this CPU and run thread by thread: an oracle for kernels without a GPU."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
HALF = Path(__file__).with_name("cuda_half_on_cpu.h")
_SHARED = (
    (r"extern __shared__ __align__\(64\) uchar (\w+)\[\];", r"alignas(64) static uchar \1[1 << 18];"),
    (r"__shared__ (alignas\(\d+\))", r"\1 static"),
)
"""A block has its shared variables once, and blocks run one after the other."""
_SIGNATURE = r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\);'


class Emulated:
    """The kernels of one CUDA source; `run` launches one on numpy arrays."""

    def __init__(self, source: str, folder: Path) -> None:
        self.parameters = {name: [p.split() for p in text.split(",")] for name, text in re.findall(_SIGNATURE, source)}
        for name, text in (("cuda.h", ""), ("cuda_fp16.h", f'#include "{HALF}"'), ("mma.h", "")):
            (folder / name).write_text(text)
        made = source
        for old, new in _SHARED:
            made = re.sub(old, new, made)
        lines = [f'#include "{HEADER}"', made]
        for name, parameters in self.parameters.items():
            given = ", ".join(f"({p[0]})a[{i}]" for i, p in enumerate(parameters))
            lines.append(
                f'extern "C" void run_{name}(void** a, const unsigned* n) {{ '
                f"fibers::backwards = n[6]; fibers::Launch({{n[0], n[1], n[2]}}, "
                f"{{n[3], n[4], n[5]}}, [=] {{ {name}({given}); }}); }}"
            )
        (folder / "kernels.cc").write_text("\n".join(lines))
        flags = ["-std=c++17", "-O1", "-w", "-fpermissive", "-fno-strict-aliasing", "-ffp-contract=off"]
        command = ["g++", *flags, "-shared", "-fPIC", f"-I{folder}", "-o", "kernels.so", "kernels.cc"]
        subprocess.run(command, cwd=folder, check=True)
        self._library = ctypes.CDLL(str(folder / "kernels.so"))

    def run(self, name: str, arrays: Sequence[np.ndarray[Any, Any]], grid: Sequence[int], backwards: bool) -> None:
        """Launch a kernel: `arrays` in the order of its parameters, `grid` is blocks x, y, z and threads x, y, z.

        Threads take their turns from the first to the last or `backwards`: one of them shows a barrier that is missing.
        """
        pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        getattr(self._library, f"run_{name}")(pointers, (ctypes.c_uint * 7)(*grid, backwards))


def grids(function: Any) -> list[list[int]]:
    """Blocks and threads, x, y, z each, of every kernel that a scheduled function launches, in order."""
    import tvm_ffi
    from tvm import tirx

    body = _root(function).body
    found = []
    for nest in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        sizes: dict[str, int] = {}

        def visit(loop: Any, sizes: dict[str, int] = sizes) -> None:
            if loop.thread_binding is not None:
                tag = str(loop.thread_binding.thread_tag)
                sizes[tag] = max(sizes.get(tag, 1), int(loop.extent))

        tvm_ffi.structural_walk(nest, [(tirx.For, visit)], order="post")
        found.append([sizes.get(f"{kind}.{axis}", 1) for kind in ("blockIdx", "threadIdx") for axis in "xyz"])
    return found


def scratch(function: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What the kernels of one function hand to each other."""
    return {
        b.name: np.zeros([int(d) for d in b.shape], str(b.dtype))
        for b in _root(function).alloc_buffers
        if str(b.scope()) in ("", "global")
    }


def _root(function: Any) -> Any:
    return function.body.block
