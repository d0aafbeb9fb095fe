"""The measured latencies that the predictor is fitted on, and the reference networks that they were measured with."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, cast

from edgecompile.cost.work import Kind, Work
from edgecompile.errors import SpecError

COLUMNS = (
    "network", "kind", "macs", "m", "n", "k", "groups", "reads", "writes", "weights", "steps", "count",
)  # fmt: skip
_DTYPES = {
    "fp16": "fp16",
    "fp16(mixed)": "fp16",
    "int8": "int8",
    "int8 QAT": "int8",
    "w8a8": "int8",
    "w8a16": "w8a16",
    "tf32": "tf32",
    "fp32/tf32 (TensorRT default)": "tf32",
}
# the device's name in the tables -> its profile
_PROFILES = {
    "NVIDIA A100": "a100-sxm-40gb",
    "NVIDIA A100 (40GB)": "a100-sxm-40gb",
    "NVIDIA A100 80GB": "a100-sxm-80gb",
    "NVIDIA A100-SXM-80GB": "a100-sxm-80gb",
    "NVIDIA A100-PCIe-40GB": "a100-pcie-40gb",
    "NVIDIA A100-PCIe-80GB": "a100-pcie-80gb",
    "NVIDIA Jetson AGX Orin": "agx-orin-64gb",
    "Samsung Galaxy S24": "galaxy-s24",
    "iPhone 14 Pro": "iphone-14-pro",
    "iPhone 12": "iphone-12",
    "iPhone 12 Pro": "iphone-12",
}


@dataclass(frozen=True)
class Row:
    """A published latency of a reference network. `split` is `calibration`, `check` or `bound`."""

    device: str
    runtime: str
    network: str
    family: str
    architecture: str
    dtype: str
    sparse: bool
    batch: int
    latency_ms: float
    split: str


@cache
def works(network: str) -> tuple[Work, ...]:
    """The fused operators of one sample of a reference network; `SpecError` for one without a table."""
    found = _all_works().get(network)
    if not found:
        raise SpecError(f"networks.csv: no network {network!r}: run python -m tests.bench.op_tables")
    return found


@cache
def rows() -> tuple[Row, ...]:
    """Every published latency of a known network on a known device in a known dtype."""
    return tuple(_rows())


def _rows() -> Iterator[Row]:
    for line in _table("latency.csv"):
        device, dtype = _PROFILES.get(line["device"]), _DTYPES.get(line["precision"])
        if not (device and dtype and line["network"]) or line["sparsity"] not in ("dense", "2:4"):
            continue
        yield Row(
            device,
            line["runtime"],
            line["network"],
            line["family"],
            line["architecture"],
            dtype,
            line["sparsity"] == "2:4",
            int(line["batch"]),
            float(line["latency_ms"]),
            line["split"],
        )


@cache
def _all_works() -> dict[str, tuple[Work, ...]]:
    found: dict[str, list[Work]] = {}
    for line in _table("networks.csv"):
        numbers: dict[str, Any] = {name: int(line[name]) for name in COLUMNS[2:-1]}
        work = replace(Work(line["network"], cast(Kind, line["kind"])), **numbers)
        found.setdefault(line["network"], []).extend([work] * int(line["count"]))
    return {name: tuple(many) for name, many in found.items()}


def _table(name: str) -> Iterator[dict[str, str]]:
    path = resources.files("edgecompile.device_profiles") / name
    yield from csv.DictReader(path.read_text(encoding="utf-8").splitlines())
