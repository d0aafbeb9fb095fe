"""2:4 sparsity: found where a brute-force search finds it, told to the builder, never flagged where there is none."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgecompile.program import Program
from edgecompile.targets import _tensorrt_rtx, _tensorrt_sparse
from edgecompile.targets.tensorrt import TensorRT
from tests.targets.test_onnx import noise
from tests.targets.test_tensorrt_build import built, bundle, stand_in
from tests.targets.test_tensorrt_int8 import quantized

has_rtx = pytest.mark.skipif(not _tensorrt_rtx.available(), reason="tensorrt-rtx is not installed")


def by_force(weight: np.ndarray[Any, Any], axis: int) -> bool:
    """The definition, number by number."""
    channels = weight.shape[axis]
    if channels == 0 or channels % 4 or weight.size == 0:
        return False
    others = [range(n) for d, n in enumerate(weight.shape) if d != axis % weight.ndim]
    for place in itertools.product(*others):
        for first in range(0, channels, 4):
            index = [[*place[: axis % weight.ndim], first + k, *place[axis % weight.ndim :]] for k in range(4)]
            if sum(weight[tuple(i)] != 0 for i in index) > 2:
                return False
    return True


@st.composite
def weights(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], int]:
    """Small integer weights with few non-zeros, half of them pruned to two in four along one axis."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=2, max_size=4))
    axis = draw(st.integers(0, len(shape) - 1))
    values = np.array(draw(st.lists(st.integers(-3, 3), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))))
    weight = values.reshape(shape).astype(draw(st.sampled_from(["int8", "float16", "float32"])))
    if draw(st.booleans()):
        moved = np.moveaxis(weight, axis, -1)
        moved[..., draw(st.sampled_from([0, 1])) :: 2] = 0
        if draw(st.booleans()):
            moved[(-1,) * moved.ndim] = 1
    return weight, axis


@settings(max_examples=300)
@given(weights())
def test_a_weight_fits_where_every_four_input_channels_hold_two_zeros(case: tuple[np.ndarray[Any, Any], int]) -> None:
    weight, axis = case
    assert _tensorrt_sparse.fits(weight, axis) == by_force(weight, axis)


@pytest.mark.parametrize("op", ["Conv", "MatMul", "Gemm", "GemmT"])
@pytest.mark.parametrize("dequantized", [False, True])
@settings(max_examples=40)
@given(case=weights())
def test_the_axis_is_the_one_that_is_summed_over(
    op: str, dequantized: bool, case: tuple[np.ndarray[Any, Any], int]
) -> None:
    weight = case[0]
    weight = weight.reshape(weight.shape[0], -1) if "Gemm" in op else weight
    summed = {"Conv": 1, "MatMul": -2, "Gemm": 0, "GemmT": 1}[op]
    stored = numpy_helper.from_array(weight.astype(np.int8 if dequantized else np.float32), "stored")
    nodes, name = [], "stored"
    if dequantized:
        nodes, name = [helper.make_node("DequantizeLinear", ["stored", "scale"], ["real"])], "real"
    given = {"transB": 1} if op == "GemmT" else {}
    nodes.append(helper.make_node(op.removesuffix("T"), ["x", name], ["y"], name="layer", **given))
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    inputs, outputs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, None)] for n in "xy")
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [stored, scale]))
    assert _tensorrt_sparse.layers(model) == (["layer"] if by_force(weight, summed) else [], 1)


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu()).relu()
        return self.head(y.mean((2, 3)))


def net(*pruned: str) -> Program:
    """The net with the two smallest of every four weights of the named layers set to zero."""
    torch.manual_seed(0)
    module = Net().eval()
    for name in pruned:
        weight = module.get_parameter(f"{name}.weight").data
        fours = weight.unflatten(1, (-1, 4))
        kept = torch.zeros_like(fours).scatter(2, fours.abs().topk(2, 2).indices, 1.0)
        weight.copy_((fours * kept).flatten(1, 2))
    return Program.capture(module, (noise(2, 16, 8, 8),))


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_a_net_pruned_by_hand_is_flagged_layer_by_layer(dtype: str, tmp_path: Path) -> None:
    target = TensorRT(dtype=dtype)  # type: ignore[arg-type]
    artifact = target.emit(net("first", "head").specialised(1), tmp_path, {})
    assert artifact.facts["sparse_2_4"] == ["first", "head"]
    assert any(note.startswith("2 of 3 weights are 2:4 sparse") for note in artifact.notes)
    assert "\nSPARSE=yes\n" in (tmp_path / "build.sh").read_text()
    assert json.loads((tmp_path / "tensorrt.json").read_text())["sparse"] is True


@has_rtx
def test_integers_keep_the_zeros_and_the_engine_is_built_with_the_flag(tmp_path: Path) -> None:
    target = TensorRT(sm=80)
    artifact = target.emit(quantized(net("first", "head"), target).specialised(1), tmp_path, {})
    assert artifact.facts["sparse_2_4"] == ["first", "head"]
    assert artifact.kind == "tensorrt-rtx"
    assert artifact.path.stat().st_size > 0
    stored = [numpy_helper.to_array(t) for t in onnx.load(str(tmp_path / "model.onnx")).graph.initializer]
    fours = next(w for w in stored if w.dtype == np.int8 and w.shape == (16, 16, 3, 3)).reshape(16, 4, 4, 3, 3)
    assert (np.count_nonzero(fours, 2) <= 2).all()


def test_the_dla_is_told_too_and_turing_is_not(tmp_path: Path) -> None:
    (tmp_path / "dla").mkdir()
    artifact = TensorRT(dla=0, allow_gpu_fallback=True).emit(net("first").specialised(1), tmp_path / "dla", {})
    assert artifact.facts["sparse_2_4"] == ["first"]
    if not _tensorrt_rtx.available():
        return
    (tmp_path / "turing").mkdir()
    artifact = TensorRT(sm=75).emit(net("first").specialised(1), tmp_path / "turing", {})
    assert "sparse_2_4" not in artifact.facts


def test_nothing_is_flagged_when_no_layer_qualifies(tmp_path: Path) -> None:
    program = net("first", "head")
    with torch.no_grad():
        for name, weight in program.weights().items():
            if name.endswith("weight"):
                weight[(0,) * weight.dim()] = weight[0, 1] = weight[0, 2] = 1.0
    artifact = TensorRT().emit(program.specialised(1), tmp_path, {})
    assert "sparse_2_4" not in artifact.facts
    assert not any("2:4" in note for note in artifact.notes)
    assert "\nSPARSE=no\n" in (tmp_path / "build.sh").read_text()
    code, result, _ = built(tmp_path, stand_in(tmp_path, "10.3.0"), "--no-timing")
    assert (code, result["flags"]) == (0, "--stronglyTyped")


@pytest.mark.parametrize(
    ("version", "options", "flags"),
    [
        ("8.6.2", {"dtype": "fp32"}, "--sparsity=enable"),
        ("10.3.0", {}, "--stronglyTyped --sparsity=enable"),
        ("10.7.0", {"dla": 0}, "--fp16 --useDLACore=0 --sparsity=enable"),
        ("10.16.2", {"quantized": True}, "--stronglyTyped --sparsity=enable"),
        ("11.0.0", {}, "--sparsity=enable"),
    ],
)
def test_every_version_gets_the_flag(version: str, options: dict[str, Any], flags: str, tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle", sparse=True, **options)
    code, result, _ = built(folder, stand_in(tmp_path, version))
    assert (code, result["flags"]) == (0, flags)


def test_a_trtexec_without_the_flag_builds_without_it(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle", sparse=True)
    tool = stand_in(tmp_path, "10.3.0")
    tool.write_text(tool.read_text().replace("'--sparsity=', ", ""))
    code, result, _ = built(folder, tool)
    assert (code, result["flags"]) == (0, "--stronglyTyped")
