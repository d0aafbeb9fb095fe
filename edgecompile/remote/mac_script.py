"""Runs on a Mac and times one compiled Core ML model, a JSON line a round; needs coremltools. Not run here."""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import sys
import time
from typing import Any


def main() -> int:
    with open("job.json", encoding="utf-8") as file:
        job = json.load(file)
    try:
        rounds(job)
    except Exception as error:  # one line for whoever asked; there is nobody else to see it
        say(job, "error", text=(str(error).splitlines() or [type(error).__name__])[0][:300])
        return 1
    say(job, "end", removed=False)
    return 0


def say(job: dict[str, Any], event: str, **fields: object) -> None:
    print(json.dumps({"nonce": job["nonce"], "event": event, **fields}), flush=True)


def rounds(job: dict[str, Any]) -> None:
    ct = importlib.import_module("coremltools")
    spec = ct.models.MLModel(job["model"], skip_model_load=True).get_spec()
    values = inputs(spec)
    model = ct.models.CompiledMLModel("model.mlmodelc", compute_units=ct.ComputeUnit.ALL)
    say(job, "environment", facts={"coremltools": ct.__version__, "machine": platform.machine(), "units": "ALL"})
    for _ in range(3):
        model.predict(values)
    count = max(3, math.ceil(job["samples"] / job["rounds"]))
    for index in range(job["rounds"]):
        seconds = []
        for _ in range(count):
            start = time.perf_counter_ns()
            model.predict(values)
            seconds.append((time.perf_counter_ns() - start) * 1e-9)
        say(job, "round", index=index, seconds=seconds, clock_mhz=None, temperature_c=None)


def inputs(spec: Any) -> dict[str, Any]:
    """Golden inputs where they came along, else zeros of the shapes in the package."""
    import numpy as np

    golden = {}
    if os.path.exists("golden.npz"):
        with np.load("golden.npz", allow_pickle=False) as file:
            golden = {k[6:]: file[k] for k in file.files if k.startswith("input:")}
    found = {}
    for wanted in spec.description.input:
        if wanted.type.WhichOneof("Type") != "multiArrayType":
            raise ValueError(f"input {wanted.name} is not an array")
        array = wanted.type.multiArrayType
        dtype = {65568: "float32", 65600: "float64", 65552: "float16", 131104: "int32"}[array.dataType]
        value = golden.get(wanted.name)
        found[wanted.name] = np.zeros(tuple(array.shape), dtype) if value is None else value.astype(dtype)
    return found


if __name__ == "__main__":
    sys.exit(main())
