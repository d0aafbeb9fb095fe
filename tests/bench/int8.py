"""INT8 side by side: ours, float, ONNX Runtime's static quantization and NNCF on ONNX, on the same calibration data.

    python -m tests.bench.int8 [NETWORK ...]

Latencies are medians of interleaved rounds, as ratios to float. A row holds when ours is the fastest of the four
INT8 models or within 3 % of it, and its agreement or cosine is at least the best of the others less 0.5 points (for
networks with seeded weights: its signal-to-noise ratio at least the best less 0.5 dB).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("NNCF_CI", "1")

import torch

from edgecompile.data import choose_score, outputs, score_outputs, truth
from edgecompile.measure import Samples, interleave, ratio
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import EXACT, PASSES
from edgecompile.silence import silenced
from edgecompile.targets.onnx import Onnx, Session
from edgecompile.teacher import Teacher
from tests.bench.networks import NAMES, teacher

SAMPLES = 100


def ours(found: Teacher, folder: Path, pipeline: str = "quantize(samples=100)") -> Path:
    """The pass as shipped, behind the exact passes."""
    target = Onnx()
    passes = parse(", ".join(EXACT) + (f", {pipeline}" if pipeline else ""), PASSES)
    context = Context(found.program, target=target, calib=found.calib)
    program, _ = PassManager(passes).run(found.program, context)
    folder.mkdir()
    return target.emit(program.specialised(1), folder, {}).path


def calibration(found: Teacher) -> list[tuple[torch.Tensor, ...]]:
    """The same samples for everybody, one at a time."""
    assert found.calib is not None
    return [tuple(t[i : i + 1] for t in b.inputs) for b in found.calib.take(SAMPLES) for i in range(b.size)]


def ort_static(found: Teacher, plain: Path, out: Path, activation: str) -> Path:
    """ONNX Runtime's own recipe: preprocess, then Q/DQ per channel."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: Iterator[Any] = iter(calibration(found))

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self.samples, None)
            names = found.program.input_names
            return None if sample is None else {n: t.numpy() for n, t in zip(names, sample, strict=True)}

    prepared = out.with_suffix(".prepared.onnx")
    # its symbolic shape inference fails on masks made of Expand; all shapes are in the file already
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    kind = QuantType.QUInt8 if activation == "u8" else QuantType.QInt8
    quantize_static(
        str(prepared), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=kind,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return out


def nncf_onnx(found: Teacher, plain: Path, out: Path) -> Path:
    """NNCF on the ONNX file."""
    import nncf
    import onnx

    names = found.program.input_names
    data = nncf.Dataset(calibration(found), lambda s: {n: t.numpy() for n, t in zip(names, s, strict=True)})
    kind = nncf.ModelType.TRANSFORMER if found.name == "minilm" else None
    onnx.save(nncf.quantize(onnx.load(plain), data, subset_size=SAMPLES, model_type=kind), out)
    return out


def timed(files: dict[str, Path], sample: tuple[torch.Tensor, ...]) -> dict[str, Samples]:
    """Samples of every file's latency, interleaved in this process."""
    torch.set_num_threads(1)
    return interleave({label: Session(path).bound(sample) for label, path in files.items()}, rounds=60, least=2)


def measure(name: str, extra: dict[str, str]) -> list[dict[str, Any]]:
    """One network: a row a contender with its latency ratio, score and signal-to-noise ratio."""
    found = teacher(name)
    assert found.evaluate is not None
    with tempfile.TemporaryDirectory() as text, silenced("nncf", "torchao", "torch.utils._pytree", "root", stdout=True):
        folder = Path(text)
        plain = ours(found, folder / "float", "")
        files = {
            "float": plain,
            "ours": ours(found, folder / "ours"),
            "ort_u8": ort_static(found, plain, folder / "u8.onnx", "u8"),
            "ort_s8": ort_static(found, plain, folder / "s8.onnx", "s8"),
            "nncf": nncf_onnx(found, plain, folder / "nncf.onnx"),
            **{label: ours(found, folder / label, pipeline) for label, pipeline in extra.items()},
        }
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # no history of heap and threads favours anybody
            times = fresh.submit(timed, files, calibration(found)[0]).result()
        sessions = {label: Session(path) for label, path in files.items()}
    score = choose_score(found, found.evaluate)
    known = truth(found.evaluate, score)
    reference = outputs(sessions["float"], found.evaluate, 1)
    rows = []
    for label, session in sessions.items():
        result = score_outputs(score, outputs(session, found.evaluate, 1), reference, known)
        speed = ratio(times[label], times["float"])
        rows.append(
            {"network": name, "who": label, "ratio": speed.value, "low": speed.low, "high": speed.high,
             "metric": score.metric, "score": result.percent, "snr_db": result.snr_db}
        )  # fmt: skip
    return rows


def holds(rows: list[dict[str, Any]]) -> tuple[bool, bool]:
    """Whether ours is fast enough and right enough among the four."""
    by = {r["who"]: r for r in rows}
    others = [by[k] for k in ("ort_u8", "ort_s8", "nncf")]
    fast = by["ours"]["ratio"] <= 1.03 * min(min(o["ratio"] for o in others), by["float"]["ratio"])
    if rows[0]["network"].startswith("resnet"):
        return fast, by["ours"]["snr_db"] >= max(o["snr_db"] for o in others) - 0.5
    return fast, by["ours"]["score"] >= max(o["score"] for o in others) - 0.5


def main(names: list[str]) -> None:
    """Print a table a network; `label:pipeline` arguments add contenders of our own."""
    extra = dict(n.split(":", 1) for n in names if ":" in n)
    for name in [n for n in names if ":" not in n] or NAMES:
        rows = measure(name, extra)
        for row in rows:
            print(
                f"{row['network']:20s} {row['who']:10s} {row['ratio']:.3f}x ({row['low']:.3f}-{row['high']:.3f})"
                f"  {row['metric']} {row['score']:6.2f}  {row['snr_db']:6.2f} dB"
            )
        fast, right = holds(rows)
        print(f"{name}: speed {'holds' if fast else 'MISSED'}, accuracy {'holds' if right else 'MISSED'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
