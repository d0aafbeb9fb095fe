"""How long everything but training takes, and how much memory: a network under a budget, in a process of its own.

    python -m tests.bench.tool_time [--share 0.5] [--target onnx@host] [--then quantize] [NETWORK ...]

Networks are those of `edgecompile bench matrix` (`resnet50` unless named), with 64 generated samples to calibrate on
and nothing cached. Then, how long it takes to choose a plan for 50, 100 and 200 groups in a chain of residual blocks.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace

import numpy as np

_SAMPLES = 64
_GROUPS = (50, 100, 200)
_LEVELS = 10


def measured(name: str, share: float, target: str, then: str) -> None:
    """Print what one build took; its own process, since the most memory of one is never less again."""
    began = time.perf_counter()
    import torch

    from edgecompile.building.run import build
    from edgecompile.data.types import Arrays
    from edgecompile.models import configs

    whole = getattr(configs, name)()
    generator = torch.Generator().manual_seed(3)
    shapes = [t.shape[1:] for t in whole.program.inputs]
    calib = Arrays("generated", tuple(torch.randn(_SAMPLES, *s, generator=generator) for s in shapes), batch_size=8)
    with tempfile.TemporaryDirectory() as out:
        found = build(
            replace(whole, calib=calib),
            target=target,
            pipeline=f"fit(latency={0.97 * share:.4g}, unreachable=fastest), {then}",
            max_latency=f"{100 * share:g}%",
            out=out,
        )
    steps = ", ".join(f"{step.pass_} {step.seconds:.0f}" for step in found.steps)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    ratio = found.latency_ratio.value if found.latency_ratio is not None else float("nan")
    took = time.perf_counter() - began
    print(f"{name:16s}  {share:6.2f}  {ratio:8.3f}  {took:7.0f}  {memory:6.1f}  {steps}", flush=True)


def planning(groups: int) -> float:
    """Seconds to choose widths of so many groups: pairs of products in blocks that can go, all levels by chance."""
    from edgecompile.plan import Item, Part, Problem, solve

    rng = np.random.default_rng(groups)
    widths = np.linspace(1, 0.1, _LEVELS)
    items = [Item(f"{i}", (0.0, *np.cumsum(rng.random(_LEVELS - 1) * rng.random()))) for i in range(groups)]
    parts = [
        Part(f"{i}", (i, i + 1), (0.1 + np.multiply.outer(widths, widths)) * rng.random()) for i in range(groups - 1)
    ]
    for start in range(0, groups - 2, 3):
        place = len(items)
        items.append(Item(f"branch {start}", (0.0, float(rng.random() * _LEVELS / 3))))
        parts[start] = Part(
            f"{start}", (start, start + 1, place), np.stack([parts[start].times, 0 * parts[start].times], -1)
        )
    problem = Problem(tuple(items), tuple(parts))
    whole = problem.time((0,) * len(items))
    began = time.perf_counter()
    solve(problem, 0.5 * whole)
    return time.perf_counter() - began


def main() -> None:
    """Print a line a network, then one a number of groups."""
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["resnet50"])
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--target", default="onnx@host")
    parser.add_argument("--then", default="quantize")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.alone:
        measured(given.networks[0], given.share, given.target, given.then)
        return
    print("network           budget  measured  seconds      GB  seconds of the steps", flush=True)
    for name in given.networks:
        with tempfile.TemporaryDirectory() as cache:
            options = ["--share", str(given.share), "--target", given.target, "--then", given.then]
            command = [sys.executable, "-m", "tests.bench.tool_time", name, *options, "--alone"]
            subprocess.run(command, env={**os.environ, "XDG_CACHE_HOME": cache}, check=True)
    for groups in _GROUPS:
        print(f"a plan for {groups} groups: {planning(groups):.1f} s")


if __name__ == "__main__":
    main()
