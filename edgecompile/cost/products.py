"""The GPU law against measured matrix products: what its tile constants were fitted on."""

from __future__ import annotations

import csv
from importlib import resources

import numpy as np

from edgecompile.cost.columns import Floats
from edgecompile.cost.predict import seconds
from edgecompile.cost.work import Work
from edgecompile.device import DeviceProfile

BANDS = ((1, 8), (9, 64), (65, 256), (257, 1024), (1025, 1 << 20))


def measured() -> list[tuple[int, int, int, float]]:
    """(m, k, n, milliseconds) of FP16 products on an A100: `device_profiles/a100_products.csv`."""
    text = (resources.files("edgecompile.device_profiles") / "a100_products.csv").read_text(encoding="utf-8")
    lines = csv.DictReader(text.splitlines())
    return [(int(r["m"]), int(r["k"]), int(r["n"]), float(r["latency_ms"])) for r in lines]


def ratios() -> tuple[Floats, Floats]:
    """Rows `m` of every product, and predicted over measured time."""
    device = DeviceProfile.load("a100-sxm-80gb")
    rows = measured()
    works = [Work("", "linear", m * n * k, m, n, k, reads=m * k, writes=m * n, weights=n * k) for m, k, n, _ in rows]
    # each alone: in one list the weights would fill the cache together
    found = [1e3 * float(seconds([w], device, "fp16").total[0]) for w in works]
    return np.array([r[0] for r in rows], float), np.array(found) / np.array([r[3] for r in rows])
