"""The library of a GPU program: kernels as source in it, and by `build.sh` as machine code where there is nvcc."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.errors import TargetError
from edgecompile.targets import _tvm_cuda, _tvm_graph, runners

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FATBIN = b"\x50\xed\x55\xba"
"""How a fatbin begins."""
KERNELS, HOST, LIBRARY = "kernels.cu", "host.o", "model.so"


def added(exported: ExportedProgram, order: dict[str, Any], work: Path) -> dict[str, Any]:
    """Beside the CPU's library, which moves to `cpu/`, that for the GPU; what is said of both."""
    where = _tvm_cuda.target(order["arch"])
    module = _tvm_cuda.fused(_tvm_cuda.imported(exported, order["dtype"]), where)
    module, rules = _tvm_cuda.scheduled(module, where)
    executable = _tvm_graph.executable(module, where)
    source = _tvm_cuda.source_of(executable)
    rows = [asdict(f) for f in _tvm_cuda.functions(module, rules, source, order["arch"])]
    (work / "cpu").mkdir()
    os.replace(work / LIBRARY, work / "cpu" / LIBRARY)
    files, why = linked(executable, source, order["arch"], order["linker"], work)
    code = gpu_code((work / LIBRARY).read_bytes())
    return {"files": [*files, f"cpu/{LIBRARY}"], "gpu": {"functions": rows, "code": code, "why": why}}


def linked(executable: Any, source: str, arch: str, linker: str, work: Path) -> tuple[list[str], str]:
    """Leave `model.so` and what belongs to it in a folder; the files' names, and why there is no machine code, or "".

    TVM writes CUDA source into a library where it finds no driver. `build.sh` is the same on a board and here: it
    compiles that source and makes the library again with a fatbin in its place.
    """
    executable.export_library(str(work / "made.tar"), workspace_dir=str(work))
    with tarfile.open(work / "made.tar") as archive:
        for member, name in (("lib0.o", HOST), ("devc.o", "devc.o")):
            held = archive.extractfile(member)
            assert held is not None
            (work / name).write_bytes(held.read())
    command = [linker, "-shared", "-fPIC", "-s", "-Wl,--build-id=none", "-o", LIBRARY, HOST, "devc.o"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise TargetError(f"tvm: {linker} does not link: {_last(done.stderr)}")
    (work / KERNELS).write_text(source, encoding="utf-8")
    (work / "build.sh").write_text(_script(work, source, arch), encoding="utf-8")
    why = _compiled(work, linker)
    files = [LIBRARY, KERNELS]
    return (files, "") if not why else ([*files, HOST, "build.sh"], why)


def gpu_code(library: bytes) -> str:
    """What a library holds for the GPU, by its bytes: "fatbin", or "source"."""
    return "fatbin" if FATBIN in library else "source"


def _compiled(work: Path, linker: str) -> str:
    """Run `build.sh` where there is nvcc; the reason why the library still holds source, "" when it does not."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return "no nvcc here"
    command = ["sh", "build.sh"]
    environment = os.environ | {"CXX": linker, "NVCC": nvcc}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode:
        return f"nvcc failed: {_last(done.stderr)}"
    os.replace(work / "built" / LIBRARY, work / LIBRARY)
    return ""


def _script(work: Path, source: str, arch: str) -> str:
    """`build.sh` with the places of the library's parts in it."""
    held = section((work / "devc.o").read_bytes(), b".rodata")
    head, arguments = parts(held, source.encode())
    at = (work / LIBRARY).read_bytes().find(held)
    if at < 0:
        raise TargetError(f"tvm: {LIBRARY} does not hold its modules as this TVM writes them")
    text = runners.text("tvm_cuda_build.sh").decode().replace("@ARCH@", arch)
    for name, (start, end) in (("HEAD", head), ("MAP", arguments)):
        text = text.replace(f"@{name}_AT@", str(at + start)).replace(f"@{name}@", str(end - start))
    return text


def parts(held: bytes, source: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Start and end, in a library's packed modules, of all before the CUDA module and of its kernels' arguments.

    Packed are a length of 8 bytes, the modules' tree, then kind and content of each; a text or content follows its
    length. The CUDA module is the last one: format, arguments, code.
    """
    word, kind = struct.Struct("<Q"), struct.pack("<Q", 4) + b"cuda"
    code = word.pack(len(source)) + source
    at = held.find(kind)
    while at >= 0:
        content = at + len(kind) + 8
        length = held[content - 8 : content]
        if len(length) == 8 and content + word.unpack(length)[0] == len(held):
            break
        at = held.find(kind, at + 1)
    ends = held[:8] == word.pack(len(held) - 8) and held.endswith(code)
    if at < 0 or not ends or not held.startswith(kind, at + len(kind) + 8):
        raise TargetError("tvm: the library does not hold its CUDA module as this TVM writes it")
    first = at + len(kind)
    return (8, first), (first + 8 + len(kind), len(held) - len(code))


def section(elf: bytes, name: bytes) -> bytes:
    """The content of a section of a 64-bit little-endian object file."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    rows = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    texts = rows[names][4]
    for row in rows:
        if elf[texts + row[0] : elf.index(b"\0", texts + row[0])] == name:
            return elf[row[4] : row[4] + row[5]]
    raise TargetError(f"tvm: an object without {name.decode()}")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    return next((line for line in lines if "error" in line), lines[-1])[:300]
