"""What pruning without training leaves of a teacher: accuracy and latency by multiplications, method and refit.

    python -m tests.bench.prune [--macs 0.7,0.5,0.3] [--samples 2000] [--methods obs,kcm] [NETWORK ...]

Latency is that of the ONNX artifact beside the unpruned one, one thread, interleaved.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from edgecompile.program import Program


def _session(program: Program, folder: Path) -> Any:
    from edgecompile.building.fixed import at_batch
    from edgecompile.targets.onnx import Onnx

    folder.mkdir()
    fixed = at_batch(program, 1)
    session = Onnx().load(Onnx().emit(fixed, folder, {}))
    assert session is not None
    return session.bound(fixed.inputs)


def main() -> None:
    """Print a line a cell."""
    from edgecompile.data import choose_score, outputs, score_outputs, truth
    from edgecompile.pass_manager import Context, PassManager, parse
    from edgecompile.passes import EXACT, PASSES
    from edgecompile.passes.prune import Prune
    from tests.bench.networks import teacher
    from tests.bench.tvm_kernels import compared

    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["fashion", "digits"])
    parser.add_argument("--macs", default="0.7,0.5,0.3")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--methods", default="random,magnitude,taylor,fisher,obs,kcm")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in given.networks:
        found = teacher(name)
        data = found.evaluate.take(given.samples)
        score = choose_score(found, data)
        known = truth(data, score)
        wanted = outputs(lambda x, of=found.program: of(*x), data)
        start, _ = PassManager(parse(", ".join(EXACT), PASSES)).run(found.program, Context(found.program))
        print(f"{name}: {score.metric} {score_outputs(score, wanted, wanted, known).percent:.2f}")
        with tempfile.TemporaryDirectory() as text:
            first = _session(start, Path(text) / "teacher")
            for macs in map(float, given.macs.split(",")):
                for method in given.methods.split(","):
                    for refit in (False, True):
                        begun = time.perf_counter()
                        one = Prune(macs=macs, method=method, refit=refit)  # type: ignore[arg-type]
                        made = one.run(start.clone(), Context(start, calib=found.calib, train=found.train))
                        seconds = time.perf_counter() - begun
                        percent = score_outputs(score, outputs(lambda x, of=made: of(*x), data), wanted, known).percent
                        ours, theirs = compared(_session(made, Path(text) / f"{macs}{method}{refit}"), first)
                        line = f"  macs {macs:.2f} {method:10s} {'refitted' if refit else 'as it is':9s}"
                        print(f"{line} {percent:6.2f}  latency {ours / theirs:.3f}  {seconds:5.1f} s", flush=True)


if __name__ == "__main__":
    main()
