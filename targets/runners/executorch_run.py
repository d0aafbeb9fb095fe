"""Run model.pte with ExecuTorch: `python run.py inputs.npz outputs.npz`, or `load(folder)` from Python 3.10 on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def load(folder: str, threads: int = 1) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A callable from {input name: array} to {output name: array}."""
    import executorch.kernels.quantized  # noqa: F401  kernels of what is quantized outside XNNPACK
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    with open(os.path.join(folder, "model.json"), encoding="utf-8") as file:
        names = json.load(file)
    program = Runtime.get().load_program(os.path.join(folder, "model.pte"))
    method = program.load_method("forward")

    def run(inputs: dict[str, Any], _program: Any = program) -> dict[str, Any]:
        given = [torch.from_numpy(inputs[name]) for name in names["inputs"]]
        return {n: t.numpy().copy() for n, t in zip(names["outputs"], method.execute(given))}  # noqa: B905

    return run


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python run.py inputs.npz outputs.npz")
    import numpy

    stored = numpy.load(sys.argv[1], allow_pickle=False)
    given = {n[len("input:") :]: stored[n] for n in stored.files if n.startswith("input:")}
    inputs = given or {n: stored[n] for n in stored.files}
    numpy.savez(sys.argv[2], **load(os.path.dirname(os.path.abspath(__file__)))(inputs))


if __name__ == "__main__":
    main()
