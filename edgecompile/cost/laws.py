"""How long a fused operator takes on a device: three laws, each with few parameters beyond the specification sheet.

The constants are properties of a kind of machine, chosen on the calibration rows and on measured products
(`edgecompile bench fit` prints what they give); no term knows a network's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgecompile.cost.columns import ACTIVATION_BYTES, COMPUTES_IN, Columns, Floats

Parameters = Mapping[str, float]

_TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 32))
_SPLITS = (1, 2, 4)


@dataclass(frozen=True)
class Sheet:
    """What the laws read of a specification sheet, in SI units; `rates` are multiply-accumulates a second by dtype."""

    rates: Mapping[str, float]
    sparse_rates: Mapping[str, float]
    vector_rate: float
    cores: float
    bandwidth: float
    cache: float

    def rate(self, dtype: str, sparse: bool = False) -> float:
        """The peak of a dtype, 0 where the device does not have it."""
        of = self.sparse_rates if sparse else self.rates
        return of.get(COMPUTES_IN.get(dtype, dtype), 0.0)


@dataclass(frozen=True)
class Seconds:
    """Per operator: arithmetic, memory traffic, what each start costs, and all together; `floor` once a network."""

    compute: Floats
    memory: Floats
    launch: Floats
    total: Floats
    floor: float = 0.0

    @property
    def network(self) -> float:
        """The whole network."""
        return self.floor + float(self.total.sum())


def gpu(c: Columns, sheet: Sheet, p: Mapping[str, Parameters], sparse: bool = False) -> Seconds:
    """Tiles in waves over the cores, against traffic through cache and memory, plus the start of a kernel.

    Parameters, the same in every dtype: `launch_us` a kernel, `conv_share` of the peak that convolutions reach,
    `cache_gain` of the cache over the memory's bandwidth. Matrix products reach what measured ones do (vidur's A100
    tables, MIT): a tile of a by b loses 39 (1/a + 1/b), each takes 52 more steps of the inner dimension (104 in 8
    bits), a wave counts whole, and one tile alone takes the time of two. Products may be split along the inner
    dimension at 4 us. Activations come from the cache when they fill less than half of it, weights when the network's
    fill under 0.7 of it; the memory gives 85 % of its bandwidth.
    """
    one = next(iter(p.values()))
    peaks = c.where({d: sheet.rate(d, sparse) or sheet.rate(d) for d in set(c.dtype)})
    dense = c.where({d: sheet.rate(d) for d in set(c.dtype)})
    share = np.where(c.is_("conv"), one["conv_share"], 1.12)
    product = _tiled(c, peaks / sheet.cores, sheet.cores, share)
    if sparse:
        # a sparse product still loads all activations: it wins a third of what its peak promises
        product = _tiled(c, dense / sheet.cores * (peaks / dense) ** 0.5, sheet.cores, share)
    half = sheet.rate("fp16") or sheet.rate("fp32")
    compute = np.select(
        [c.is_("conv", "linear", "matmul"), c.is_("depthwise"), c.is_("attention"), c.is_("recurrent")],
        [
            product,
            c.macs / (0.1 * sheet.vector_rate * np.where(dense > sheet.rate("tf32"), 2, 1)),
            c.macs / (np.minimum(dense, half) * 1.12 * 0.4),
            c.macs / (dense * 0.1),
        ],
        0.0,
    )
    traffic = c.read_bytes + c.write_bytes
    near = np.clip(0.5 * sheet.cache / np.maximum(traffic, 1), 0, 1)
    resident = min(1.0, 0.7 * sheet.cache / max(float(c.weight_bytes.sum()), 1.0))
    far = traffic * (1 - near) + c.weight_bytes * (1 - resident)
    close = traffic * near + c.weight_bytes * resident
    memory = (far / 0.85 + close / one["cache_gain"]) / sheet.bandwidth
    # copies and lone products want another layout than convolutions: a reformat before and one behind
    launch = one["launch_us"] * 1e-6 * np.where(c.is_("copy", "matmul"), 3.0, 1.0)
    launch = launch * np.where(c.is_("recurrent"), c.groups, 1.0)  # one step after another
    # a concatenation is mostly written in place by those who make its parts
    elided = np.where(c.is_("concat"), 0.3, 1.0)
    return Seconds(compute * elided, memory * elided, launch * elided, (launch + np.maximum(compute, memory)) * elided)


def _tiled(c: Columns, rate: Floats, cores: float, share: Floats) -> Floats:
    """Seconds of the products on the best tile; `rate` is that of one core."""
    inner = _up(c.k, 32)
    start = 52 * c.where({d: 2.0 if ACTIVATION_BYTES[d] <= 1 else 1.0 for d in set(c.dtype)})
    best = np.full(len(c.m), np.inf)
    for a, b in _TILES:
        tiles = np.ceil(c.m / a) * np.ceil(c.n / b) * c.groups
        for split in _SPLITS:
            waves = np.maximum(np.ceil(tiles * split / cores), 2)
            steps = np.ceil(inner / split / 32) * 32 + start
            seconds = waves * a * b * steps * (1 + 39 * (1 / a + 1 / b)) / rate + (4e-6 if split > 1 else 0)
            best = np.minimum(best, np.where(c.k >= 64 * split, seconds, np.inf) if split > 1 else seconds)
    return np.maximum(best / share, c.macs / (rate * cores))


def hexagon(c: Columns, sheet: Sheet, p: Mapping[str, Parameters], sparse: bool = False) -> Seconds:
    """A matrix engine on padded blocks, a slow vector unit behind it, weights streamed from memory beside both.

    Parameters a dtype: `floor_ms` a network, `compute_share` of the peak, `vector_gb_s` of the vector unit.
    """
    of = {d: p.get(d) or next(iter(p.values())) for d in set(c.dtype)}
    peaks = c.where({d: sheet.rate(d) * min(1.0, of[d]["compute_share"]) for d in of})
    compute = _engine(c, peaks, rows=32, outputs=32, inner=16, depthwise=32, attention=0.06)
    traffic = c.reads + c.writes
    requantised = c.where({d: 0.3 if d in ("int8", "w8a16") else 0.0 for d in of})
    elements = (
        np.select(
            [c.is_("norm", "softmax", "pointwise", "resize", "copy", "gather"), c.is_("concat"), c.is_("attention")],
            [traffic, traffic * requantised, 10 * c.m * c.n / 2 * c.groups],
            0.0,
        )
        + 0.2 * c.is_("conv", "linear", "matmul", "depthwise") * c.writes
    )
    width = (c.read_bytes + c.write_bytes) / np.maximum(traffic, 1)
    vector = elements * width / c.where({d: of[d]["vector_gb_s"] * 1e9 for d in of})
    memory = c.weight_bytes / (sheet.bandwidth * 0.9)
    total = np.maximum(compute + vector, memory)
    return Seconds(compute + vector, memory, np.zeros(len(total)), total, _floor(of))


def neural_engine(c: Columns, sheet: Sheet, p: Mapping[str, Parameters], sparse: bool = False) -> Seconds:
    """A matrix engine on padded blocks, then its activations in and out; weights are four times as near.

    Parameters, the same in every dtype: `floor_ms` a network, `compute_share` of the peak, `activation_share` of the
    memory's bandwidth (above 1 where caches help).
    """
    one = next(iter(p.values()))
    peaks = c.where({d: sheet.rate(d) * min(1.0, one["compute_share"]) for d in set(c.dtype)})
    compute = _engine(c, peaks, rows=1, outputs=16, inner=16, depthwise=16, attention=0.3)
    half = 2 * (c.reads + c.writes)
    traffic = np.where(c.is_("norm", "softmax"), 2 * half, c.read_bytes + c.write_bytes)
    traffic = np.where(c.is_("concat"), 0.3 * traffic, traffic) + c.is_("attention") * 4 * c.m * c.n * c.groups
    memory = traffic / (sheet.bandwidth * one["activation_share"]) + c.weight_bytes / (sheet.bandwidth * 4)
    zero = np.zeros(len(memory))
    return Seconds(compute, memory, zero, compute + memory, _floor(dict.fromkeys(set(c.dtype), one)))


def cpu(c: Columns, sheet: Sheet, p: Mapping[str, Parameters], sparse: bool = False) -> Seconds:
    """The roofline: arithmetic at a share of the peak or traffic at a share of the bandwidth, and a start each.

    Parameters: `launch_us` an operator, `compute_share`, `memory_share`. Fitted to nothing so far.
    """
    one = next(iter(p.values()))
    products = c.macs * np.where(c.is_("depthwise"), 3, 1)
    compute = products / c.where({d: sheet.rate(d) * one["compute_share"] for d in set(c.dtype)})
    memory = (c.read_bytes + c.write_bytes + c.weight_bytes) / (sheet.bandwidth * one["memory_share"])
    launch = np.full(len(compute), one["launch_us"] * 1e-6)
    return Seconds(compute, memory, launch, launch + np.maximum(compute, memory))


def _engine(
    c: Columns, peaks: Floats, rows: int, outputs: int, inner: int, depthwise: float, attention: float
) -> Floats:
    """Seconds of the products on a matrix engine that works in whole blocks of rows, outputs and inputs.

    A depthwise product uses one part in `depthwise` of the engine, attention the share `attention`.
    """
    padded = _up(c.m, rows) * _up(c.n, outputs) * _up(c.k, inner) * c.groups
    grouped = np.minimum(padded, c.macs * depthwise)
    products = np.select(
        [
            c.is_("conv") & (c.groups > 1),
            c.is_("conv", "linear", "matmul"),
            c.is_("depthwise"),
            c.is_("attention"),
            c.is_("recurrent"),
        ],
        [grouped, padded, c.macs * depthwise, padded / attention, c.macs * 20],
        0.0,
    )
    return products / peaks


def _floor(of: Mapping[str, Parameters]) -> float:
    """The floor of a network: that of its narrowest dtype."""
    return min(one["floor_ms"] for one in of.values()) * 1e-3


def _up(sizes: Floats, block: int) -> Floats:
    return np.ceil(sizes / block) * block


LAWS = {"cpu": cpu, "gpu": gpu, "hexagon": hexagon, "neural_engine": neural_engine}

PARAMETERS: dict[str, dict[str, float]] = {
    "cpu": {"launch_us": 3.0, "compute_share": 0.5, "memory_share": 0.6},
    "gpu": {"launch_us": 4.8, "conv_share": 0.8, "cache_gain": 2.5},
    "hexagon": {"floor_ms": 0.3, "compute_share": 0.6, "vector_gb_s": 80.0},
    "neural_engine": {"floor_ms": 0.03, "compute_share": 0.6, "activation_share": 2.0},
}
"""What each law fits, and where the fit starts and shrinks to."""
