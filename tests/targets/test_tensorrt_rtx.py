"""Engines and verdicts of TensorRT-RTX, which needs no GPU for either: the same bytes, every dtype, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgecompile.errors import TargetError
from edgecompile.targets import _tensorrt_rtx
from edgecompile.targets.tensorrt import TensorRT
from tests.targets.test_onnx import captured
from tests.targets.test_tensorrt_int8 import quantized, small_cnn

IMAGE = (4, 8, 8)
has_rtx = pytest.mark.skipif(not _tensorrt_rtx.available(), reason="tensorrt-rtx is not installed")
slow = pytest.mark.slow


@has_rtx
@pytest.mark.parametrize("sm", [80, *(pytest.param(sm, marks=slow) for sm in (86, 89, 120))])
def test_an_engine_is_built_twice_with_the_same_bytes(sm: int, tmp_path: Path) -> None:
    target = TensorRT(sm=sm)  # type: ignore[arg-type]
    program = quantized(small_cnn(), target).specialised(1)
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        artifact = target.emit(program, folder, {"pipeline": "x"})
    assert artifact.kind == "tensorrt-rtx"
    assert artifact.main == f"model.sm{sm}.rtx"
    files = sorted(p.name for p in folders[0].iterdir())
    assert files == sorted(["model.onnx", artifact.main, "build.sh", "run.py", "fp32_layers.txt", "tensorrt.json"])
    for name in files:
        first, second = (f / name for f in folders)
        assert first.read_bytes() == second.read_bytes(), name
        assert str(tmp_path).encode() not in first.read_bytes()
    assert artifact.facts["layers"]
    assert artifact.facts["not_run_here"]
    assert json.loads((folders[0] / "tensorrt.json").read_text())["engine"] == artifact.main
    if not torch.cuda.is_available():
        assert target.load(artifact) is None


@has_rtx
def test_orin_gets_the_bundle_alone_and_says_who_parsed_it(tmp_path: Path) -> None:
    artifact = TensorRT().emit(small_cnn().specialised(1), tmp_path, {})
    assert (artifact.kind, artifact.main) == ("tensorrt", "model.onnx")
    assert str(artifact.facts["parsed_by"]).startswith("TensorRT-RTX 1.")
    assert not list(tmp_path.glob("*.rtx"))


@has_rtx
def test_turing_takes_half_and_says_what_it_does_not_take(tmp_path: Path) -> None:
    for folder, dtype in (("half", "fp16"), ("whole", "fp32")):
        (tmp_path / folder).mkdir()
        target = TensorRT(sm=75, dtype=dtype)  # type: ignore[arg-type]
        program = captured(lambda m, x: m.l(x), 8, l=nn.Linear(8, 4)).specialised(1)
        if dtype == "fp16":
            assert target.emit(program, tmp_path / folder, {}).main == "model.sm75.rtx"
        else:
            with pytest.raises(TargetError, match=r"^[^\n]*Turing \(SM75\): FP32 GEMM is not supported[^\n]*$"):
                target.emit(program, tmp_path / folder, {})


@has_rtx
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_other_types_parse_too(dtype: str, tmp_path: Path) -> None:
    program = captured(
        lambda m, x: m.up(F.pixel_shuffle(F.hardswish(m.c(x)), 2)).softmax(1),
        *IMAGE,
        c=nn.Conv2d(4, 8, 3),
        up=nn.ConvTranspose2d(2, 3, 2, stride=2),
    )
    target = TensorRT(dtype=dtype, sm=80)  # type: ignore[arg-type]
    artifact = target.emit(program.specialised(1), tmp_path, {})
    assert artifact.facts["parsed_by"]
    assert artifact.path.stat().st_size > 0
    if dtype == "bf16":
        with pytest.raises(TargetError, match="no bfloat16"):
            target.reference(artifact)


@has_rtx
def test_a_crash_of_the_toolchain_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "out").mkdir()
    with pytest.raises(TargetError, match=r"^tensorrt: TensorRT-RTX crashed \(signal 11\)[^\n]*$"):
        TensorRT().emit(small_cnn().specialised(1), tmp_path / "out", {})


@has_rtx
def test_a_file_that_is_no_model_is_refused_not_raised(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(TargetError, match=r"^tensorrt: TensorRT-RTX[^\n]*$"):
        _tensorrt_rtx.build(tmp_path / "model.onnx", 80, tmp_path / "engine", False, 60)
