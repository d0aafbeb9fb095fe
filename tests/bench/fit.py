"""Whether latency budgets are kept and used: networks fitted to shares of their own time, measured at the end.

    python -m tests.bench.fit [--shares 0.7,0.5,0.35,0.25] [--target onnx@host] [--then "quantize"] [NETWORK ...]

Nothing is trained unless `--then "distill, quantize"` says so. The last line counts the budgets that hold, and those of
which nine tenths are used; a budget above what integers alone take is not used up, and says "whole".
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings


def main() -> None:
    """Print a line a cell."""
    from edgecompile.building.run import build

    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["fashion", "digits"])
    parser.add_argument("--shares", default="0.7,0.5,0.35,0.25")
    parser.add_argument("--target", default="onnx@host")
    parser.add_argument("--then", default="quantize")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    held, used, cells = 0, 0, 0
    print("network             budget  measured  interval       score    teacher  seconds")
    for name in given.networks:
        for share in map(float, given.shares.split(",")):
            began = time.perf_counter()
            pipeline = f"fit(latency={0.97 * share:.4g}, unreachable=fastest), {given.then}"
            with tempfile.TemporaryDirectory() as out:
                found = build(name, target=given.target, pipeline=pipeline, max_latency=f"{100 * share:g}%", out=out)
            ratio, score = found.latency_ratio, found.score
            assert ratio is not None
            assert ratio.value is not None
            fit = next(s for s in found.steps if s.pass_ == "fit")
            whole = not any("widths" in note or "without" in note for note in fit.notes)
            cells, held = cells + 1, held + (found.exit_code != 3)
            used += ratio.value >= 0.9 * share or whole
            low, high = ratio.low or 0.0, ratio.high or 0.0
            scores = (score.artifact, score.teacher) if score is not None else (None, None)
            shown = "  ".join("       " if s is None else f"{s:7.2f}" for s in scores)
            line = f"{name:18s}  {share:6.2f}  {ratio.value:8.3f}  {low:.3f}-{high:.3f}  {shown}"
            print(f"{line}  {time.perf_counter() - began:7.0f}{'  whole' if whole else ''}", flush=True)
    print(f"{held} of {cells} budgets hold; of {used} nine tenths are used, or nothing had to go")


if __name__ == "__main__":
    main()
