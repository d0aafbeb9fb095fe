"""Run model.so with TVM's runtime: python run.py inputs.npz outputs.npz. Needs numpy and apache-tvm."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
os.environ.setdefault("TVM_NUM_THREADS", "1")

import numpy as np


def load(folder: str | Path) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The library in `folder` as a callable from named arrays to named arrays."""
    import tvm
    from tvm import relax

    model = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
    name = os.environ.get("TVM_DEVICE") or ("cuda" if "cuda" in model["libraries"] else "cpu")
    path, device = (Path(folder) / model["libraries"][name]).resolve(), tvm.device(name)
    if not path.exists():
        raise SystemExit(f"{path} is not built yet: run `sh build.sh` first")
    if not device.exist:
        raise SystemExit(f"TVM {tvm.__version__} finds no device {name} here: TVM_DEVICE=cpu uses the CPU's library")
    run = relax.VirtualMachine(tvm.runtime.load_module(str(path)), device)["main"]

    def call(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = []
        for row in model["inputs"]:
            if row["name"] not in feed:
                raise SystemExit(
                    f"input {row['name']} is missing: the model takes {[r['name'] for r in model['inputs']]}"
                )
            value = np.ascontiguousarray(feed[row["name"]])
            if list(value.shape) != row["shape"] or str(value.dtype) != row["dtype"]:
                raise SystemExit(
                    f"input {row['name']}: {value.dtype}{list(value.shape)} given, {row['dtype']}{row['shape']} wanted"
                )
            values.append(tvm.runtime.tensor(value, device))
        results = run(*values)
        return {row["name"]: r.numpy().copy() for row, r in zip(model["outputs"], results, strict=True)}

    return call


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    with np.load(sys.argv[1]) as given:
        arrays = {name.removeprefix("input:"): given[name] for name in given.files if not name.startswith("output:")}
    np.savez(sys.argv[2], **load(Path(__file__).parent)(arrays))  # type: ignore[arg-type]
