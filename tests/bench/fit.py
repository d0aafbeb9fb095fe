"""Whether latency budgets are kept and used: networks fitted to shares of their own time, measured at the end.

    python -m tests.bench.fit [--shares 0.7,0.5,0.35,0.25] [--target onnx@host] [--then quantize] [NETWORK ...]

Nothing is trained unless `--then "distill, quantize"` says so. The last line counts the budgets that hold, and those of
which nine tenths are used; a budget above what integers alone take is not used up, and says "whole". What was measured
is kept in fit.json beside this file, and measured again with `--again` alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("fit.json")
_AIM = 0.97
_NETWORKS = ("fashion", "digits", "depthwise", "vit", "minilm")


def cell(name: str, share: float, target: str, then: str) -> dict[str, Any]:
    """One network at one share of its time."""
    from edgecompile.building.run import build
    from edgecompile.measure import machine
    from tests.bench.teachers import NAMES, teacher

    began = time.perf_counter()
    pipeline = f"fit(latency={_AIM * share:.4g}, unreachable=fastest), {then}"
    whole = teacher(name) if name in NAMES else name
    with tempfile.TemporaryDirectory() as out:
        found = build(whole, target=target, pipeline=pipeline, max_latency=f"{100 * share:g}%", out=out)
    ratio, score = found.latency_ratio, found.score
    assert ratio is not None
    notes = next(s for s in found.steps if s.pass_ == "fit").notes
    return {
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "exit_code": found.exit_code,
        "whole": not any("widths" in note or "without" in note for note in notes),
        "score": score.artifact if score is not None else None,
        "teacher": score.teacher if score is not None else None,
        "seconds": round(time.perf_counter() - began),
        "cpu": machine()["cpu"],
    }


def main() -> None:
    """Print a line a cell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=_NETWORKS)
    parser.add_argument("--shares", default="0.7,0.5,0.35,0.25")
    parser.add_argument("--target", default="onnx@host")
    parser.add_argument("--then", default="quantize")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    known: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    held, used, cells = 0, 0, 0
    print("network             budget  measured  interval       score    teacher  seconds")
    for name in given.networks:
        for share in map(float, given.shares.split(",")):
            key = f"{name} {share:g} {given.target} {given.then}"
            if key not in known or given.again:
                known[key] = cell(name, share, given.target, given.then)
                RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
            one = known[key]
            cells, held = cells + 1, held + (one["ratio"] <= share)
            used += one["ratio"] >= 0.9 * share or one["whole"]
            shown = "  ".join("       " if s is None else f"{s:7.2f}" for s in (one["score"], one["teacher"]))
            line = f"{name:18s}  {share:6.2f}  {one['ratio']:8.3f}  {one['low']:.3f}-{one['high']:.3f}  {shown}"
            print(f"{line}  {one['seconds']:7.0f}{'  whole' if one['whole'] else ''}", flush=True)
    print(f"{held} of {cells} budgets hold; of {used} nine tenths are used, or nothing had to go")


if __name__ == "__main__":
    main()
