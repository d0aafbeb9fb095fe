"""From captured program to written ONNX: time and peak memory of the process, ours against NNCF's own ONNX path.

    python -m tests.bench.cost [NETWORK ...]

Each side runs in a process of its own on the same 100 calibration samples: ours calibrates and emits; the other exports
with torch.onnx, quantizes with NNCF and saves. Loading and capturing are not counted in the time (the peak includes
them, for both). At most 1.5x of the time and 1.5x of the memory holds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("NNCF_CI", "1")

from tests.bench.networks import NAMES


def one(name: str, side: str) -> dict[str, float]:
    """One side in this process: seconds and peak megabytes."""
    from edgecompile.silence import silenced
    from edgecompile.targets.onnx import Onnx
    from tests.bench import int8
    from tests.bench.networks import teacher

    found = teacher(name)
    with tempfile.TemporaryDirectory() as text, silenced("nncf", "torchao", "torch.utils._pytree", stdout=True):
        folder = Path(text)
        started = time.perf_counter()
        if side == "ours":
            int8.ours(found, folder / "ours")
        else:
            (folder / "float").mkdir()
            plain = Onnx().emit(found.program.specialised(1), folder / "float", {}).path
            int8.nncf_onnx(found, plain, folder / "nncf.onnx")
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main(names: list[str]) -> None:
    """Print time, peak memory and their ratios for each network."""
    if names[:1] == ["--one"]:
        print("RESULT " + json.dumps(one(names[1], names[2])))
        return
    for name in names or NAMES:
        found: dict[str, dict[str, float]] = {}
        for side in ("ours", "nncf"):
            command = [sys.executable, "-m", "tests.bench.cost", "--one", name, side]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[side] = json.loads(next(row for row in text.splitlines() if row.startswith("RESULT "))[7:])
        time_ratio = found["ours"]["seconds"] / found["nncf"]["seconds"]
        memory_ratio = found["ours"]["peak_mb"] / found["nncf"]["peak_mb"]
        print(
            f"{name:20s} time {found['ours']['seconds']:6.1f} s / {found['nncf']['seconds']:6.1f} s = {time_ratio:.2f}x"
            f"  memory {found['ours']['peak_mb']:6.0f} MB / {found['nncf']['peak_mb']:6.0f} MB = {memory_ratio:.2f}x"
            f"  {'holds' if time_ratio <= 1.5 and memory_ratio <= 1.5 else 'MISSED'}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
