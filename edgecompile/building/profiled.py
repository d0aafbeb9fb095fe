"""Measurements of artifacts into the user's data folder, where estimates find them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.cost import measured
from edgecompile.cost.fuse import workload
from edgecompile.device import DeviceProfile
from edgecompile.errors import EdgeCompileError

if TYPE_CHECKING:
    from edgecompile.remote import Measured


def record(found: Measured, artifact: Path) -> Path:
    """Keep everything that was measured as JSON in the user's data folder; its path."""
    from edgecompile.store import write_atomic

    name = re.sub(r"[^\w.-]+", "_", f"{found.environment.get('date', '')}_{artifact.stem}_{found.device}")
    path = measured.folder().parent / "profiles" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(plain(found), indent=1).encode())
    return path


def plain(found: Measured) -> dict[str, Any]:
    """A measurement as plain values, every sample kept."""
    return {
        "device": found.device,
        "kind": found.kind,
        "complete": found.complete,
        "why_partial": found.why_partial,
        "certified": found.certified,
        "noisy": found.noisy,
        "why_noisy": found.why_noisy,
        "latency_ms": asdict(found.interval) if found.interval else None,
        "percentiles_ms": {str(p): asdict(i) if i else None for p, i in found.percentiles.items()},
        "rows": [asdict(row) for row in found.rows],
        "samples_ms": [list(samples) for samples in found.samples_ms],
        "environment": dict(found.environment),
        "notes": list(found.notes),
    }


def teach(found: Measured, artifact: Path, profile: DeviceProfile, batch: int) -> str:
    """Let the predictions for a device learn from a measured artifact; why not, where they cannot, else empty."""
    from edgecompile.models.loaders import load
    from edgecompile.remote.artifact import parcel

    if found.interval is None or not found.certified:
        return f"nothing was learnt for {profile.name}: {found.why_partial or found.why_noisy or 'no interval'}"
    try:
        model = str(parcel(artifact).model)
        program = load(model, weights=None, inputs=(), image=None, fix=(), trust=False).program
    except EdgeCompileError as error:
        return f"nothing was learnt for {profile.name}: {error}"
    load_of = workload(program)
    works = load_of.works if program.batch is not None else tuple(w.at(batch) for w in load_of.works)
    integers = any(w.int8_reads for w in works)
    dtype = "int8" if integers else "fp32" if profile.law == "cpu" else "fp16"
    said: Mapping[str, str] = {k: str(v) for k, v in found.environment.items()}
    measured.add(
        measured.Measurement(
            f"{profile.name}@{profile.mode}" if profile.mode else profile.name,
            dtype,
            batch,
            found.interval.value,
            found.interval.low,
            found.interval.high,
            str(found.environment.get("date", "")),
            measured.digest(works),
            works,
            said,
        )
    )
    return ""
