"""Run model.onnx with ONNX Runtime: `python run.py inputs.npz outputs.npz`, or `load(folder)` from Python 3.8 on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def load(folder: str, threads: int = 1) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A callable from {input name: array} to {output name: array}."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = os.path.join(folder, "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs)))  # noqa: B905


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
