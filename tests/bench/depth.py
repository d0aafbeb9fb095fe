"""How build time grows with depth: networks of 50, 100, 200 and 400 layers of one width.

    python -m tests.bench.depth

The marginal time a layer from 200 to 400 must be within 1.3x of that from 100 to 200.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from edgecompile.building.run import build
from edgecompile.data import Arrays, digest_of
from edgecompile.program import Program
from edgecompile.store import Cache
from edgecompile.teacher import Teacher

DEPTHS = (50, 100, 200, 400)


def teacher(depth: int) -> Teacher:
    """`depth` layers of convolution, batch norm and relu, 16 channels wide, on 16 x 16 pictures."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Conv2d(3 if index == 0 else 16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    program = Program.capture(model, (torch.randn(2, 3, 16, 16),))
    data = [Arrays(f"noise {n}", (torch.randn(n, 3, 16, 16),)) for n in (16, 16)]
    return Teacher(f"depth{depth}", program, digest_of(program), data[0], data[1])


def main() -> None:
    """Print seconds a depth and the two marginal times a layer."""
    seconds: dict[int, float] = {}
    build_once(10)  # imports and first-use costs are not of any depth
    for depth in DEPTHS:
        seconds[depth] = build_once(depth)
        print(f"{depth:4d} layers {seconds[depth]:7.1f} s", flush=True)
    early = (seconds[200] - seconds[100]) / 100
    late = (seconds[400] - seconds[200]) / 200
    holds = late <= 1.3 * early
    print(f"a layer costs {1e3 * early:.0f} ms from 100 to 200, {1e3 * late:.0f} ms from 200 to 400: "
          f"{late / early:.2f}x, {'holds' if holds else 'MISSED'}")  # fmt: skip


def build_once(depth: int) -> float:
    """Seconds of one build from nothing."""
    with tempfile.TemporaryDirectory() as text:
        found = teacher(depth)
        started = time.perf_counter()
        build(found, out=str(Path(text) / "out"), cache=Cache(Path(text) / "cache"))
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
