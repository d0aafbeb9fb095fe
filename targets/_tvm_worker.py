"""The compiler's own process: a saved program in, a library and a description of it out."""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any


def main(folder: str) -> None:
    """Compile `program.pt2` as `order.json` says; `result.json` comes last."""
    warnings.simplefilter("ignore")
    work = Path(folder)
    order = json.loads((work / "order.json").read_text())
    import torch

    from edgecompile.targets import _tvm_cuda_link, _tvm_graph, _tvm_machine

    start = time.perf_counter()
    machine = _tvm_machine.named(order["arch"], order["vectors"])
    target = machine.target()
    exported = torch.export.load(work / "program.pt2")
    module = _tvm_graph.imported(exported, machine.simd)
    simd, measured = machine.simd, None
    if order["tune_s"]:
        measured = _measured(exported, module, machine, order)
        simd = replace(simd, tuned=measured.tiles)
    module, functions = _tvm_graph.lowered(module, target, simd)
    refused = [] if order["allow_slow"] else _slow(functions, order["large"])
    result: dict[str, Any] = {
        "versions": _versions(),
        "machine": machine.facts(),
        "functions": [f.row() for f in functions],
        "refused": refused,
        "files": [],
    }
    if not refused:
        executable = _tvm_graph.executable(module, target)
        result["main"] = _exported(executable, work, order)
        result["files"] = [result["main"]]
        if order["arch"].startswith("sm_"):
            result |= _tvm_cuda_link.added(exported, order, work)
    if measured is not None:
        result["tuned"] = measured.facts() | {"tried": measured.tried, "ratio": measured.ratio}
    result["compile_s"] = time.perf_counter() - start
    (work / "result.json").write_text(json.dumps(result))


def _measured(exported: Any, module: Any, machine: Any, order: dict[str, Any]) -> Any:
    """Tiles by measuring them on this CPU, or from the cache."""
    from edgecompile.measure.machine import fingerprint
    from edgecompile.store import Cache
    from edgecompile.targets import _tvm_tune

    facts = {"cpu": fingerprint(), "machine": machine.facts(), "versions": _versions(), "s": order["tune_s"]}
    inputs = [v.detach().contiguous().numpy() for v in exported.example_inputs[0]]
    log = _tvm_tune.Log(Cache(), facts)
    return _tvm_tune.tuned(module, machine.target(), machine.simd, inputs, order["tune_s"], log)


def _slow(functions: Any, large: int) -> list[str]:
    return [
        f"{f.name}: no schedule rule takes it and it has {f.operations} operations: allow_slow runs it in plain loops"
        for f in functions
        if f.rule is None and f.operations > large
    ]


def _exported(executable: Any, work: Path, order: dict[str, Any]) -> str:
    """The library, or the objects where another linker must make it."""
    from tvm.support import cc

    if order["arch"] == "android":
        executable.export_library(str(work / "made.tar"), workspace_dir=str(work))
        _same_tar(work / "made.tar", work / "objects.tar")
        return "objects.tar"
    options = ["-O2", "-s", "-Wl,--build-id=none"]
    executable.export_library(
        str(work / "model.so"), workspace_dir=str(work), fcompile=cc.cross_compiler(order["linker"], options=options)
    )
    return "model.so"


def _same_tar(made: Path, into: Path) -> None:
    """The archive again without times and owners: the same objects give the same bytes."""
    import io
    import tarfile

    with tarfile.open(made) as old, tarfile.open(into, "w") as new:
        for member in sorted((m for m in old.getmembers() if m.isfile()), key=lambda m: m.name):
            held = old.extractfile(member)
            data = held.read() if held is not None else b""
            plain = tarfile.TarInfo(Path(member.name).name)
            plain.size = len(data)
            new.addfile(plain, io.BytesIO(data))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("apache-tvm", "apache-tvm-ffi", "torch")}


if __name__ == "__main__":
    main(sys.argv[1])
