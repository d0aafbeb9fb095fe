"""Outputs of a model over a dataset, kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgecompile.data import Outputs
from edgecompile.store import Cache


def cached_outputs(cache: Cache, name: str, make: Callable[[], Outputs]) -> Outputs:
    """Outputs from the cache, else made and stored; one array a chunk and output."""

    def fill(folder: Path) -> None:
        chunks = make()
        arrays = {f"{i:05d}_{j:03d}": a for i, chunk in enumerate(chunks) for j, a in enumerate(chunk)}
        np.savez(folder / "outputs.npz", **arrays)  # type: ignore[arg-type]

    folder = cache.get(name) or cache.put(name, fill)
    with np.load(folder / "outputs.npz", allow_pickle=False) as stored:
        found: dict[str, list[Any]] = {}
        for label in sorted(stored.files):
            found.setdefault(label.split("_")[0], []).append(stored[label])
    return [tuple(chunk) for chunk in found.values()]
