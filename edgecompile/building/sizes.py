"""How large an artifact is, and how far its score is from the teacher's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgecompile.data import Scored
from edgecompile.measure import Drop, paired_accuracy, paired_scores
from edgecompile.target import Artifact

_SCRIPTS = (
    "emit.json", "run.py", "build.sh", "check.sh", "build_runner.sh", "tvm_run", "tvm_run.cc", "interface.txt",
    "kernels.cu",
)  # fmt: skip
"""What lies beside an artifact and is no part of its size."""


def size_of(artifact: Artifact) -> int:
    """Bytes of an artifact without what lies beside it."""
    return sum(f.stat().st_size for f in artifact.folder.rglob("*") if f.is_file() and not _beside(f, artifact))


def _beside(file: Path, artifact: Artifact) -> bool:
    """Whether a file is there for the one who holds the device, a library for its CPU among them, not for the GPU."""
    return file.name in _SCRIPTS or file.relative_to(artifact.folder).parts[0] == "cpu"


def paired_drop(best: Scored, scored: Scored, seed: int) -> Drop:
    """What one score loses against another on the same samples, with its interval where there is one a sample."""
    if scored.per_sample is None or best.per_sample is None:
        lost = best.percent - scored.percent
        return Drop(lost, float("nan"), float("nan"), float("inf"), scored.samples)
    if np.isin(scored.per_sample, (0.0, 100.0)).all() and np.isin(best.per_sample, (0.0, 100.0)).all():
        return paired_accuracy(best.per_sample > 50, scored.per_sample > 50)
    return paired_scores(best.per_sample, scored.per_sample, seed)
