"""What data costs that is no longer in the cache: measured on chains of one layer, each with weights of its own.

A node timed alone finds its weights in the cache. In a network that is larger than the cache it does not, and how much
that costs depends on how the kernel walks through them (a 3x3 convolution waits twice as long for a MB as a product).
A chain of equal layers shows it: its time, less that of its nodes alone, over its megabytes. The same holds for the
memory of the activations, which a run touches for the first time once.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecompile.hostcost import runtime
from edgecompile.hostcost.cut import Cut, take_apart, time_alone_us
from edgecompile.hostcost.geometry import kind, rows
from edgecompile.hostcost.plain import Plain

_SIZES_MB, _QUICK_SIZES_MB = (2, 5, 12, 40), (4, 12, 40)
_LAYERS = (  # kernel, side (kernel 0: rows of a product), width
    *((3, 14, 256), (1, 14, 512), (0, 64, 512), (0, 1, 512)),
    *((3, 8, 128), (1, 7, 512), (0, 196, 384)),
)
_QUICK_LAYERS = 4
_FEW_ROWS = 4
_VECTOR_SHIFT = 0.75  # a chain of single-row products is through the cache so fast that others evict a quarter of it
_ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Cold:
    """`share`: how cold data is in a network of so many MB, 0 to 1; `us_per_mb`: what cold data costs, by class."""

    share: tuple[tuple[float, float], ...]
    us_per_mb: Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """What of a network decides how cold its data is: MB of weights, MB alive at once, share of single-row weights."""

    weights_mb: float
    alive_mb: float
    vector_share: float

    def coldness(self, cold: Cold) -> float:
        """0 when all stays in the cache, 1 when nothing does; it rises smoothly.

        A jump at the size of a cache would put a network and its slightly narrower copy in the wrong order.
        """
        sizes, shares = zip(*cold.share, strict=True)
        size_mb = (self.weights_mb + self.alive_mb) * (1 - _VECTOR_SHIFT * self.vector_share)
        return float(np.interp(size_mb, [0.0, *sizes], [0.0, *shares]))


def setting(cuts: Sequence[Cut]) -> Setting:
    """The setting of a network from its nodes in order."""
    total = sum(c.weight_bytes for c in cuts)
    vectors = sum(c.weight_bytes for c in cuts if weights_class(c).startswith("vector"))
    return Setting(total / 1e6, alive_mb(cuts), vectors / total if total else 0.0)


def alive_mb(cuts: Sequence[Cut]) -> float:
    """The most that is alive at once; a view shares the memory of what it views."""
    root: dict[str, str] = {}
    last: dict[str, int] = {}
    for index, cut in enumerate(cuts):
        if cut.view:
            root[cut.writes[0]] = root.get(cut.reads[0], cut.reads[0])
        for name in (*cut.reads, *cut.writes):
            last[root.get(name, name)] = index
    alive: dict[str, int] = {}
    most = 0
    for index, cut in enumerate(cuts):
        for names, tensors in ((cut.reads, cut.operands), (cut.writes, cut.results)):
            for name, tensor in zip(names, tensors, strict=True):
                if tensor is not None and not tensor.constant and root.get(name, name) == name:
                    alive[name] = tensor.size_bytes
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last[name] > index}
    return most / 1e6


def weights_us(cold: Cold, cut: Cut) -> float:
    """What a node's weights cost on top of its warm time when they are cold."""
    name = weights_class(cut)
    known = cold.us_per_mb
    per_mb = known.get(name) or known.get(f"product {name.split()[-1]}") or known.get("product float", 0.0)
    return per_mb * cut.weight_bytes / 1e6


def activations_us(cold: Cold, found: Setting) -> float:
    """What the memory of the activations costs a run when it is cold."""
    return cold.us_per_mb.get(_ACTIVATIONS, 0.0) * found.alive_mb


def weights_class(cut: Cut) -> str:
    """Which price a node's weights have."""
    name = kind(cut).removeprefix("plain ")
    return name.replace("product", "vector") if name.startswith("product") and rows(cut) <= _FEW_ROWS else name


def measure(run_us: float, threads: int, quick: bool = False) -> Cold:
    """The prices of this machine: float and INT8, convolutions, products, and products of a single row."""
    sizes_mb = _QUICK_SIZES_MB if quick else _SIZES_MB
    found: dict[str, list[list[float]]] = {}
    for integer in (False, True):
        for kernel, side, width in _LAYERS[:_QUICK_LAYERS] if quick else _LAYERS:
            name, prices = _chain_prices(kernel, side, width, integer, sizes_mb, run_us, threads)
            found.setdefault(name, []).append(prices)
    prices_mb = {name: max(0.0, float(np.mean(prices, axis=0)[-1])) for name, prices in found.items()}
    shapes = [
        np.mean(found[name], axis=0) / price
        for name, price in prices_mb.items()
        if price > 0 and not name.startswith("vector")
    ]
    prices_mb[_ACTIVATIONS] = _activation_price(threads)
    return Cold(_shares(sizes_mb, shapes), {name: round(price, 3) for name, price in prices_mb.items()})


def _shares(sizes_mb: Sequence[int], shapes: Sequence[np.ndarray]) -> tuple[tuple[float, float], ...]:
    from scipy.optimize import isotonic_regression

    if not shapes:
        return tuple((float(mb), 0.0) for mb in sizes_mb)
    rising = isotonic_regression(np.clip(np.median(shapes, axis=0), 0.0, 1.0)).x
    return tuple((float(mb), round(float(share), 4)) for mb, share in zip(sizes_mb, rising, strict=True))


def _chain_prices(
    kernel: int, side: int, width: int, integer: bool, sizes_mb: Sequence[int], run_us: float, threads: int
) -> tuple[str, list[float]]:
    """The class, and us a MB for each size; a size of a single layer costs nothing (the node alone is as cold)."""
    layer_mb = max(kernel, 1) ** 2 * width * width * (1 if integer else 4) / 1e6
    alone: dict[str, float] = {}
    wholes: list[tuple[float, list[Cut]]] = []
    for size_mb in sizes_mb:
        graph, out = Plain(integer), "x"
        out = graph.rounded(out)
        for _ in range(max(1, round(size_mb / layer_mb))):
            out = graph.conv(out, width, width, kernel) if kernel else graph.product(out, width, width)
        shape = (1, width, side, side) if kernel else (1, side, width)
        with tempfile.TemporaryDirectory(prefix="edgecompile-") as folder:
            path = Path(folder) / "chain.onnx"
            path.write_bytes(graph.model({"x": shape}, [out]))
            cuts = take_apart(path, threads)
            call = runtime.bound(runtime.session(path, threads, optimise=True), {"x": runtime.made_up(shape, 1)})
        wholes.append((min(runtime.typical_us(call, threads, 0.03) for _ in range(2)), cuts))
        for key, cut in {cut.key: cut for cut in cuts}.items():  # once a size: the least disturbed moment counts
            alone[key] = min(alone.get(key, math.inf), time_alone_us(cut, threads))
    prices = []
    for whole, cuts in wholes:
        weights_mb = sum(c.weight_bytes for c in cuts) / 1e6
        single = weights_mb < 1.5 * layer_mb
        prices.append(0.0 if single else (whole - run_us - sum(alone[c.key] - run_us for c in cuts)) / weights_mb)
    return weights_class(max(cuts, key=lambda c: c.weight_bytes)), prices


def _activation_price(threads: int) -> float:
    """us a MB that an elementwise operator reads and writes, from memory instead of the cache."""
    graph = Plain()
    values = 1 << 18
    live = runtime.session(graph.model({"x": (values,)}, [graph.node("Neg", ["x"])]), threads)
    call = runtime.bound(live, {"x": runtime.made_up((values,), 1)})
    rubbish = np.ones(1 << 24, np.float32)
    warm = runtime.typical_us(call, threads)
    now = runtime.clock(threads)
    times = []
    for _ in range(9):
        np.add.reduce(rubbish)
        start = now()
        call()
        times.append((now() - start) * 1e-3)
    return max(0.0, statistics.median(times) - warm) / (2 * values * 4e-6)
