"""Lowering to ExecuTorch in a process of its own: a saved program in, `model.pte` and a description of it out."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

_CALL = "executorch_call_delegate"


def main(folder: str) -> None:
    """Lower `program.pt2`; `result.json` comes last."""
    work = Path(folder)
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    exported = torch.export.load(work / "program.pt2")
    lowered = to_edge_transform_and_lower(
        exported, partitioner=[XnnpackPartitioner()], compile_config=EdgeCompileConfig(_check_ir_validity=False)
    )
    calls = _calls(lowered.exported_program())
    result: dict[str, Any] = {"versions": _versions(), "delegates": calls.pop(_CALL, 0), "portable": dict(calls)}
    program = lowered.to_executorch()
    if missing := _missing(program):
        result["missing"] = missing
    (work / "model.pte").write_bytes(program.buffer)
    (work / "result.json").write_text(json.dumps(result))


def _calls(exported: Any) -> Counter[str]:
    """Operators of the whole graph by name, with how often each is called; tuples taken apart are none."""
    names = (getattr(n.target, "__name__", str(n.target)) for n in exported.graph.nodes if n.op == "call_function")
    return Counter(sorted(name for name in names if name not in ("getitem", "alloc")))


def _missing(program: Any) -> list[str]:
    """Operators that the file calls and that this runtime has no kernel for."""
    import executorch.kernels.quantized  # noqa: F401  registers its kernels
    from executorch.runtime import Runtime

    known = set(Runtime.get().operator_registry.operator_names)
    wanted = [
        f"{op.name}.{op.overload}" if op.overload else op.name
        for plan in program.executorch_program.execution_plan
        for op in plan.operators
    ]
    return sorted(set(wanted) - known)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("executorch", "torch")}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    main(sys.argv[1])
