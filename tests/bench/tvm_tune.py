"""What `tvm(tune=...)` gives: libraries with measured tiles beside those with estimated ones, one thread, interleaved.

python -m tests.bench.tvm_tune [--tune 3m] [--int8] [NETWORK ...]
"""

from __future__ import annotations

import os

os.environ.update(TVM_NUM_THREADS="1", OMP_NUM_THREADS="1", TVM_FFI_DISABLE_TORCH_C_DLPACK="1")

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from edgecompile.program import Program

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_lite0", "minilm", "vit_small")


def made(name: str, int8: bool) -> Program:
    """The network behind the exact passes, quantized or not, at batch 1."""
    from edgecompile.building.fixed import at_batch
    from edgecompile.models.configs import CONFIGS
    from edgecompile.pass_manager import Context, PassManager, parse
    from edgecompile.passes import EXACT, PASSES
    from edgecompile.reference import load_function
    from edgecompile.targets.tvm import Tvm
    from tests.bench.networks import NAMES, teacher

    found: Any = teacher(name) if name in NAMES else load_function(CONFIGS[name])()
    text = ", ".join([*EXACT, *(["quantize(samples=32)"] if int8 else [])])
    context = Context(found.program, target=Tvm(), calib=found.calib)
    program, _ = PassManager(parse(text, PASSES)).run(found.program, context)
    return at_batch(program, 1)


def main() -> None:
    """Print a line a network."""
    from edgecompile.targets.tvm import Tvm
    from tests.bench.tvm_kernels import compared

    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--tune", default="3m")
    parser.add_argument("--int8", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'network':20s} {'tuned/estimated':>15s}  build s   tiles")
    for name in given.networks:
        program, calls, seconds, note = made(name, given.int8), [], [], ""
        with tempfile.TemporaryDirectory() as text:
            os.environ["XDG_CACHE_HOME"] = text  # nothing is remembered
            for target in (Tvm(), Tvm(tune=given.tune)):
                folder = Path(text) / (target.tune or "plain")
                folder.mkdir()
                start = time.perf_counter()
                artifact = target.emit(program, folder, {})
                seconds.append(time.perf_counter() - start)
                session = target.load(artifact)
                assert session is not None
                calls.append(session.bound(program.inputs))
                note = next((n for n in artifact.notes if n.startswith("tuned")), note)
            plain, tuned = compared(calls[0], calls[1])
        print(f"{name:20s} {tuned / plain:15.3f}  {seconds[0]:3.0f} {seconds[1]:4.0f}  {note}", flush=True)


if __name__ == "__main__":
    main()
