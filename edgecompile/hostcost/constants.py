"""What joins measured nodes into a network: a run, dispatch, views, and weights that are not in the cache."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from edgecompile.hostcost import cold as coldness
from edgecompile.hostcost import runtime
from edgecompile.hostcost.cold import Cold
from edgecompile.hostcost.plain import Plain
from edgecompile.hostcost.runtime import Call


@dataclass(frozen=True)
class Constants:
    """What was measured once: microseconds a run, a node, a view, and what cold data costs.

    `block`: channels that a layout block holds, as an optimised graph shows it (1: no blocked layout). `probe_us`: a
    small matrix product, to notice a machine that has changed. `spread`: how far its repetitions were apart. `quick`:
    measured in passing, with fewer chains.
    """

    run_us: float
    node_us: float
    view_us: float
    block: int
    cold: Cold
    probe_us: float
    spread: float
    quick: bool


GUESSED = Constants(2.0, 0.2, 0.25, 16, Cold(((2.0, 0.1), (16.0, 1.0)), {"product float": 40.0}), 0.0, 0.0, True)
"""Of one x86 server with AVX-512: for prices without any profile, which say so."""


def from_json(found: Mapping[str, Any]) -> Constants:
    """Constants from a table file; KeyError, TypeError or ValueError when they are not whole."""
    plain = {f.name: float(found[f.name]) for f in fields(Constants) if f.name not in ("cold", "block", "quick")}
    share = tuple((float(mb), float(part)) for mb, part in found["cold"]["share"])
    prices = {str(kind): float(us) for kind, us in found["cold"]["us_per_mb"].items()}
    numbers = [*plain.values(), *prices.values(), *(x for pair in share for x in pair)]
    if not share or not all(math.isfinite(v) and v >= 0 for v in numbers):
        raise ValueError("constants are not finite")
    return Constants(**plain, cold=Cold(share, prices), block=int(found["block"]), quick=bool(found["quick"]))


def measure(threads: int, quick: bool = False) -> Constants:
    """Measure them all: half a minute, or `quick` in some seconds."""
    looks = [_look(threads) for _ in range(2)]
    run_us, node_us, view_us, _ = (min(values) for values in zip(*looks, strict=True))
    found = coldness.measure(run_us, threads, quick)
    looks += [_look(threads) for _ in range(2)]
    run_us, node_us, view_us, probe = (min(values) for values in zip(*looks, strict=True))
    return Constants(
        run_us=run_us,
        node_us=node_us,
        view_us=view_us,
        block=block(threads),
        cold=found,
        probe_us=probe,
        spread=max(look[-1] for look in looks) / probe - 1,
        quick=quick,
    )


def _look(threads: int) -> tuple[float, float, float, float]:
    """A run without nodes, one node more, one view more, and the probe; the least of several looks is undisturbed."""
    return (*_dispatch(threads), _views(threads), probe_us(threads))


def probe_us(threads: int) -> float:
    """A product of 64x256 by 256x256, warm: some ten microseconds that follow the clock and the neighbours."""
    graph = Plain()
    return runtime.typical_us(_call(graph.model({"x": (64, 256)}, [graph.product("x", 256, 256)]), threads), threads)


def block(threads: int) -> int:
    """How many channels a block of the runtime's own layout holds, by what it pads 20 channels to."""
    import onnx

    graph = Plain()
    out = graph.conv(graph.conv("x", 3, 64, 3), 64, 20, 3)
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as folder:
        source, saved = Path(folder) / "probe.onnx", Path(folder) / "out.onnx"
        source.write_bytes(graph.model({"x": (1, 3, 8, 8)}, [out]))
        runtime.save_optimised(source, saved, threads)
        optimised = onnx.load(str(saved), load_external_data=False).graph
    if not any(node.domain == "com.microsoft.nchwc" for node in optimised.node):
        return 1
    padded = [next(iter(t.dims)) for t in optimised.initializer if len(t.dims) == 4 and t.dims[1] == 64]
    return {20: 4, 24: 8, 32: 16}.get(padded[0], 16) if padded else 1


def _dispatch(threads: int) -> tuple[float, float]:
    """A run without nodes and one node more, from chains of trivial nodes."""
    times = {}
    for count in (1, 21, 121):
        graph, out = Plain(), "x"
        for _ in range(count):
            out = graph.node("Neg", [out])
        times[count] = runtime.typical_us(_call(graph.model({"x": (1,)}, [out]), threads), threads, 0.05)
    node_us = max(0.0, (times[121] - times[21]) / 100)
    return max(0.0, times[1] - node_us), node_us


def _views(threads: int) -> float:
    times = []
    for count in (21, 121):
        graph, out = Plain(), "x"
        shapes = [graph.constant(np.array(shape)) for shape in ([4, 1, 64], [4, 64, 1])]
        for i in range(count):
            out = graph.node("Reshape", [out, shapes[i % 2]])
        times.append(runtime.typical_us(_call(graph.model({"x": (4, 64, 1)}, [out]), threads), threads, 0.05))
    return max(0.0, (times[1] - times[0]) / 100)


def _call(model: bytes, threads: int) -> Call:
    live = runtime.session(model, threads)
    return runtime.bound(live, {i.name: runtime.made_up(tuple(i.shape), 1) for i in live.get_inputs()})
