"""What was measured on the user's own devices: rows in the data folder, laid over the installed profiles."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from edgecompile.cost.columns import KINDS
from edgecompile.cost.predict import SHARED, Fitted, fitted
from edgecompile.cost.work import Work
from edgecompile.device import DeviceProfile

_MOST = 200
_COUNTS = [f.name for f in fields(Work) if f.type == "int"]


@dataclass(frozen=True)
class Measurement:
    """A network measured on a device: latencies in ms with an interval, and the circumstances."""

    device: str
    dtype: str
    batch: int
    latency_ms: float
    low_ms: float
    high_ms: float
    date: str
    digest: str
    works: tuple[Work, ...]
    environment: Mapping[str, str]


def folder() -> Path:
    """Where measurements lie: `EDGECOMPILE_DATA`, else the user's data folder."""
    if own := os.environ.get("EDGECOMPILE_DATA"):
        return Path(own) / "measured"
    from platformdirs import user_data_path

    return user_data_path("edgecompile") / "measured"


def digest(works: Sequence[Work]) -> str:
    """A name for what a network computes: the same for the same sizes, whatever its weights and names."""
    parts = [[w.kind, w.macs, w.m, w.n, w.k, w.groups, w.reads, w.writes, w.weights, w.int8_reads] for w in works]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def add(one: Measurement) -> Path:
    """Keep a measurement; a later one of the same network, dtype and batch takes its place."""
    from edgecompile.store import write_atomic

    path = folder() / f"{one.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and _rows(path) is None:
        path.replace(path.with_suffix(".json.damaged"))  # kept for its owner, out of our way
    kept = [m for m in of(one.device) if (m.digest, m.dtype, m.batch) != (one.digest, one.dtype, one.batch)]
    rows = [_plain(m) for m in (*kept, one)][-_MOST:]
    write_atomic(path, json.dumps({"schema": 1, "rows": rows}, indent=1).encode())
    return path


def of(device: str) -> list[Measurement]:
    """All measurements of a device, oldest first; none where the file cannot be read."""
    return _rows(folder() / f"{device}.json") or []


def damaged(device: DeviceProfile) -> str:
    """A line for the user where the measurements of a device cannot be read, else empty."""
    path = folder() / f"{_key(device)}.json"
    broken = path.exists() and _rows(path) is None
    return f"{path} cannot be read and is left out: delete it and measure again" if broken else ""


def _rows(path: Path) -> list[Measurement] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [_read(row) for row in rows]
    return None


def network(device: DeviceProfile, works: Sequence[Work], dtype: str) -> Measurement | None:
    """The latest measurement of exactly this network in this dtype, in the profile's power mode."""
    found = [m for m in of(_key(device)) if m.dtype == dtype]
    if not found:
        return None
    name = digest(works)
    return next((m for m in reversed(found) if m.digest == name), None)


def parameters(device: DeviceProfile) -> Fitted:
    """The fitted parameters of a device, corrected by what was measured on it.

    The correction is a fit that starts from the shipped parameters and shrinks to them: one bad point moves it little.
    """
    rows = of(_key(device))
    start = fitted(device)
    if not rows:
        return start
    return correct(device, rows, start)


def correct(device: DeviceProfile, rows: Sequence[Measurement], start: Fitted) -> Fitted:
    """Parameters moved from `start` towards measured networks: maximum a posteriori, log-normal around `start`."""
    from edgecompile.cost.fit import Point, solve

    points = [Point(m.works, device, m.dtype, m.latency_ms, m.digest) for m in rows]
    found: dict[str, Mapping[str, float]] = {}
    for name, first in start.items():
        some = points if name == SHARED else [p for p in points if p.dtype == name] or points
        found[name] = solve(some, first, deviation=0.5)
    return found


def _key(device: DeviceProfile) -> str:
    """The device, the power mode, and the unit where it is not the main one (`estimate` then names it in the fit)."""
    return "@".join(filter(None, (device.name, device.mode, device.fit.partition(" ")[2])))


def _plain(one: Measurement) -> dict[str, object]:
    body = asdict(one)
    body["works"] = [{k: v for k, v in w.items() if k not in ("nodes", "layer")} for w in body["works"]]
    return body


def _read(row: dict[str, object]) -> Measurement:
    works = tuple(Work(**w) for w in row.pop("works"))  # type: ignore[attr-defined]
    one = Measurement(works=works, **row)  # type: ignore[arg-type]
    if not (0 < one.low_ms <= one.latency_ms <= one.high_ms and math.isfinite(one.high_ms)):
        raise ValueError(f"latency {one.latency_ms} in {one.low_ms} to {one.high_ms}")
    if not works or not all(isinstance(getattr(w, name), int) for w in works for name in _COUNTS):
        raise ValueError("works: no operators, or counts that are none")
    if unknown := {w.kind for w in works} - set(KINDS):
        raise ValueError(f"kind {unknown}")
    return one
