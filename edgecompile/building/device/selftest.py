"""Check this bundle on the device: hashes, golden outputs within the tolerance of manifest.json, and the latency.

`python selftest.py [rounds]` needs Python 3.8, numpy and what run.py needs. It writes result.json beside itself. It
ends with 0 when all is well, 4 when outputs differ, 9 when a file is not the one that was built.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))


def changed(manifest: dict[str, Any]) -> list[str]:
    """Files that are not what the manifest says."""
    wrong = []
    for name, fact in sorted(manifest["files"].items()):
        try:
            with open(os.path.join(HERE, *name.split("/")), "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
        except OSError:
            digest = "missing"
        if digest != fact["sha256"]:
            wrong.append(name)
    return wrong


def differences(manifest: dict[str, Any], found: dict[str, Any], golden: Any) -> tuple[dict[str, Any], bool]:
    """Largest difference of each output, and whether all are within the tolerance; a NaN never is."""
    import numpy

    limit = manifest["tolerance"]
    rows: dict[str, Any] = {}
    good = True
    for name in manifest["outputs"]:
        wanted = golden["output:" + name].astype("float64")
        got = numpy.asarray(found[name]).astype("float64")
        if got.shape != wanted.shape:
            return {name: f"shape {got.shape}, not {wanted.shape}"}, False
        scale = float(numpy.abs(wanted).max()) if wanted.size else 0.0
        error = float(numpy.abs(got - wanted).max()) if wanted.size else 0.0
        rows[name] = error
        good = good and error <= limit["atol"] + limit["rtol"] * scale
    return rows, good


def timed(call: Callable[[dict[str, Any]], object], inputs: dict[str, Any], rounds: int) -> list[float]:
    """Milliseconds of single calls, sorted."""
    for _ in range(3):
        call(inputs)
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        call(inputs)
        samples.append(1e3 * (time.perf_counter() - start))
    return sorted(samples)


def main() -> int:
    import numpy

    with open(os.path.join(HERE, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    wrong = changed(manifest)
    if wrong:
        print("FAIL: not the files that were built: " + ", ".join(wrong))
        return 9
    sys.path.insert(0, HERE)
    run = importlib.import_module("run")
    golden = numpy.load(os.path.join(HERE, "golden.npz"), allow_pickle=False)
    inputs = {i["name"]: golden["input:" + i["name"]] for i in manifest["inputs"]}
    call = run.load(HERE)
    errors, good = differences(manifest, call(inputs), golden)
    samples = timed(call, inputs, int(sys.argv[1]) if len(sys.argv) > 1 else 50)
    median = samples[len(samples) // 2]
    result = {
        "passed": good,
        "largest_difference": errors,
        "tolerance": manifest["tolerance"],
        "latency_ms": {"median": median, "p90": samples[int(0.9 * len(samples))], "least": samples[0]},
        "rounds": len(samples),
    }
    with open(os.path.join(HERE, "result.json"), "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    said = ", ".join(f"{name} {error}" for name, error in sorted(errors.items()))
    print(f"{'PASS' if good else 'FAIL'}: largest differences: {said}; median {median:.4g} ms")
    return 0 if good else 4


if __name__ == "__main__":
    sys.exit(main())
