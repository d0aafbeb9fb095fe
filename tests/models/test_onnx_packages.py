"""Real ONNX models from PyPI packages: the same outputs as ONNX Runtime gives, on noise and on realistic inputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from edgecompile.errors import Unsupported
from edgecompile.ingest import ChildLimits, parse_in_child, read_status, vet
from edgecompile.models.onnx_file import parse
from edgecompile.program import Program, op_name
from edgecompile.program_file import load


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more threads, and lose much where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_file(package: str, name: str) -> str:
    """Where a package keeps a model; a skip when the package is absent."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"Python package {package} absent")
    found = sorted(Path(spec.origin).parent.rglob(name))
    if not found:
        pytest.skip(f"no {name} in this version of {package}")
    return str(found[0])


def imported(path: str, out: Path, **options: Any) -> Program:
    parse(path, out, **options)
    return load(out)


def worst(
    path: str, program: Program, feed: dict[str, np.ndarray], extra: dict[str, np.ndarray] | None = None
) -> float:
    """The largest difference over the output's scale."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, feed | (extra or {}))
    with torch.no_grad():
        found = program(*(torch.from_numpy(v) for v in feed.values()))
    return max(
        float(np.abs(f.numpy() - w).max() / max(np.abs(w).max(), 1e-2)) for f, w in zip(found, wanted, strict=True)
    )


def page(batch: int, height: int, width: int) -> np.ndarray:
    """Grey pages with dark strokes, as a text reader sees them, scaled to -1 .. 1."""
    rng = np.random.default_rng(0)
    x = np.full((batch, 3, height, width), 0.8, np.float32) + rng.normal(0, 0.02, (batch, 3, height, width))
    for column in range(8, width - 8, 12):
        top = rng.integers(2, height // 2)
        x[:, :, top : top + height // 3, column : column + 3] = -0.9
    return x.astype(np.float32)


def speech(samples: int) -> np.ndarray:
    """A vowel: harmonics of 120 Hz at 16 kHz under a slow envelope."""
    t = np.arange(samples) / 16000
    wave = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12)) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * t))
    return (0.2 * np.asarray(wave)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "shape", "batch"),
    [
        ("ch_ppocr_mobile_v2.0_cls_*.onnx", [1, 3, 48, 192], None),
        pytest.param("*_det_*.onnx", [1, 3, 96, 128], None, marks=pytest.mark.slow),
        pytest.param("*_rec_*.onnx", [1, 3, 48, 160], None, marks=pytest.mark.slow),
    ],
)
def test_text_readers(tmp_path: Path, name: str, shape: list[int], batch: int | None) -> None:
    path = model_file("rapidocr", name)
    program = imported(path, tmp_path, inputs={"x": shape})
    assert program.batch == batch
    for size in (1, 3):
        assert worst(path, program, {"x": page(size, *shape[2:])}) < 1e-4
    names = [op_name(n) for n in program.graph.graph.nodes if n.op == "call_function"]
    assert names.count("conv2d") > 50


@pytest.mark.slow
def test_pitch_of_music(tmp_path: Path) -> None:
    path = model_file("basic_pitch", "nmp.onnx")
    vet(Path(path))
    parse_in_child("onnx", {"path": path}, tmp_path / "out", ChildLimits(wall_s=200))
    program = load(tmp_path / "out")
    result: Any = read_status(tmp_path / "out").result
    assert result["relative_error"] < 1e-4
    assert program.batch is None
    name = "serving_default_input_2:0"
    assert worst(path, program, {name: np.stack([speech(43844), speech(43844)[::-1].copy()])[:, :, None]}) < 1e-4


@pytest.mark.parametrize(("rate", "samples"), [(16000, 576), (8000, 288)])
@pytest.mark.parametrize("name", ["silero_vad.onnx", "silero_vad_op18_ifless.onnx"])
def test_voice_detector_at_both_rates_with_its_state(tmp_path: Path, name: str, rate: int, samples: int) -> None:
    path = model_file("silero_vad", name)
    shapes = {"input": [1, samples], "state": [2, 1, 128]}
    program = imported(path, tmp_path, inputs=shapes, fixed={"sr": rate})
    assert program.input_names == ("input", "state")
    wave, state = speech(samples * 4), np.zeros((2, 1, 128), np.float32)
    extra = {"sr": np.array(rate, np.int64)}
    for i in range(4):
        feed = {"input": wave[None, i * samples : (i + 1) * samples], "state": state}
        assert worst(path, program, feed, extra) < 1e-4
        state = program(*(torch.from_numpy(v) for v in feed.values()))[1].detach().numpy()
    assert np.abs(state).max() > 0.1


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("silero_vad_16k_sequence.onnx", {}),
        ("silero_vad_openvino_16k.onnx", {}),
        ("silero_vad_half.onnx", {"input": [1, 576]}),
        ("silero_vad_16k_op15.onnx", {"input": [1, 576]}),
    ],
)
def test_voice_detector_variants(tmp_path: Path, name: str, inputs: dict[str, list[int]]) -> None:
    path = model_file("silero_vad", name)
    program = imported(path, tmp_path, inputs=inputs)
    names = [op_name(n) for n in program.graph.graph.nodes if n.op == "call_function"]
    assert names.count("lstm.input") == 1
    assert "conv1d" in names


def test_voice_detector_with_a_branch_that_does_not_fit_lists_all_reasons(tmp_path: Path) -> None:
    path = model_file("silero_vad", "silero_vad.onnx")
    with pytest.raises(Unsupported) as caught:
        parse(path, tmp_path, inputs={"input": [1, 576], "state": [2, 1, 128]})
    inner, outer = caught.value.reasons
    assert inner.startswith("node 'If_0_else_branch__Inline_0__/decoder/rnn/LSTM' (LSTM, opset 16): PyTorch cannot")
    assert outer == (
        "node 'If_0' (If, opset 16): its condition is computed from input 'sr' and a branch holds operators that"
        " cannot be imported; fixing the input to one value leaves one branch"
    )
