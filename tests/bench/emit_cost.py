"""From captured program to artifact: time and peak memory of ours against each toolchain's own shortest script.

    python -m tests.bench.emit_cost [--rounds N] [NETWORK ...]

Ours runs the exact passes, asks what the target refuses, and emits: the checks, the scripts of the bundle and
legalisation are in it. The other side exports the same program with torch.export and hands it to the toolchain as
its documentation shows. Each side runs in a process of its own, the two in turn; loading and capturing are not counted
in the time (the peak includes them, for both, and that of child processes). At most 1.3x of the time and 1.5x of the
memory holds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch

from edgecompile.program import Program
from edgecompile.silence import silenced

NETWORKS = ("resnet50", "bert_base")
TARGETS = ("onnx", "tensorrt(sm=80)", "coreml", "tvm")
TIME, MEMORY = 1.3, 1.5


def program(name: str) -> Program:
    """ResNet-50 at 224 or BERT-base at 128 tokens, with seeded weights."""
    if name != "bert_base":
        from tests.bench.networks import teacher

        return teacher(name).program
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(attn_implementation="sdpa")).eval()
    # without a mask, whose operators coremltools does not take from torch's own export
    return Program.capture(model, {"input_ids": torch.randint(0, 1000, (2, 128))})


def ours(found: Program, target: str, folder: Path) -> None:
    """What a build does of emission, without data and measurement."""
    from edgecompile.building.fixed import at_batch
    from edgecompile.pass_manager import Context, PassManager, parse, parse_one
    from edgecompile.passes import EXACT, PASSES
    from edgecompile.spec import parse_calls
    from edgecompile.targets import TARGETS as KNOWN

    chosen: Any = parse_one(parse_calls(target)[0], KNOWN, "bench")
    manager = PassManager(parse(", ".join(EXACT), PASSES))
    made, _ = manager.begin(found, Context(found, target=chosen))
    fixed = at_batch(made, 1)
    assert not chosen.refuse(fixed)
    chosen.emit(fixed, folder, {})


def theirs(found: Program, target: str, folder: Path) -> None:
    """The toolchain's own shortest script, from the same graph at batch 1."""
    exported = found.specialised(1).exported()
    if target == "coreml":
        import coremltools as ct

        model = ct.convert(exported.run_decompositions({}), minimum_deployment_target=ct.target.iOS17)
        model.save(str(folder / "model.mlpackage"))
    elif target == "tvm":
        _tvm(exported, folder)
    else:
        torch.onnx.export(exported, dynamo=True, verbose=False).save(str(folder / "model.onnx"))
        if target.startswith("tensorrt"):
            _engine(folder)


def _engine(folder: Path) -> None:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(folder / "model.onnx"))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)
    (folder / "model.engine").write_bytes(builder.build_serialized_network(network, config))


def _tvm(exported: Any, folder: Path) -> None:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    from edgecompile.targets._tvm_machine import named

    module = from_exported_program(exported, unwrap_unit_return_tuple=True)
    target = named("host", "auto").target()
    with target:
        module = relax.get_pipeline("zero")(module)
    tvm.compile(module, target=target).export_library(str(folder / "model.so"))


def one(name: str, target: str, side: str) -> dict[str, float]:
    """One side in this process: seconds and peak megabytes."""
    found = program(name)
    with tempfile.TemporaryDirectory() as text, silenced("torch.onnx", "coremltools", stdout=True):
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        (ours if side == "ours" else theirs)(found, target, Path(text))
        seconds = time.perf_counter() - started
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "peak_mb": peak / 1024}


def compare(name: str, target: str, rounds: int) -> str:
    """Both sides in turn; one line with medians and their ratios."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for index in range(rounds):
        for side in sorted(found, reverse=bool(index % 2)):
            command = [sys.executable, "-m", "tests.bench.emit_cost", "--one", name, target, side]
            done = subprocess.run(command, capture_output=True, text=True)
            row = next((r for r in done.stdout.splitlines() if r.startswith("RESULT ")), None)
            if row is None:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1][:160]
                return f"{name:10s} {target:16s} {side} failed: {last}"
            found[side].append(json.loads(row[7:]))
    a, b = ({k: median(r[k] for r in found[side]) for k in ("seconds", "peak_mb")} for side in ("ours", "theirs"))
    speed, memory = a["seconds"] / b["seconds"], a["peak_mb"] / b["peak_mb"]
    return (
        f"{name:10s} {target:16s} time {a['seconds']:6.1f} s / {b['seconds']:6.1f} s = {speed:.2f}x"
        f"  memory {a['peak_mb']:6.0f} MB / {b['peak_mb']:6.0f} MB = {memory:.2f}x"
        f"  {'holds' if speed <= TIME and memory <= MEMORY else 'MISSED'}"
    )


def main() -> None:
    """Print time, peak memory and their ratios for each network and target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--one", nargs=3)
    asked = parser.parse_args()
    if asked.one:
        print("RESULT " + json.dumps(one(*asked.one)))
        return
    for name in asked.names or NETWORKS:
        for target in asked.targets:
            print(compare(name, target, asked.rounds), flush=True)


if __name__ == "__main__":
    main()
