"""FP8: E4M3 numbers as a float64 oracle rounds them, in torch and in ONNX Runtime; who takes them and who says no."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from torch import Tensor, nn

import edgecompile
from edgecompile.data import Arrays
from edgecompile.errors import EdgeCompileError, PassError, SpecError, Unsupported
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES, _float8
from edgecompile.passes._placement import place
from edgecompile.passes._sensitivity import layer_noise
from edgecompile.program import Program
from edgecompile.program_file import load, save
from edgecompile.rewrite import nodes
from edgecompile.target import Target
from edgecompile.targets import _tensorrt_rtx
from edgecompile.targets.coreml import CoreMl
from edgecompile.targets.onnx import Onnx
from edgecompile.targets.tensorrt import TensorRT
from edgecompile.targets.tvm import Tvm
from tests.targets.test_onnx import captured, noise
from tests.targets.test_tensorrt_int8 import far, small_cnn
from tests.warm import write_user_files

aten = torch.ops.aten
ADA = TensorRT(sm=89, dtype="fp32")
HOPPER = TensorRT(sm=90, dtype="fp32")
has_rtx = pytest.mark.skipif(not _tensorrt_rtx.available(), reason="tensorrt-rtx is not installed")


def e4m3(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The nearest number with a sign, four bits of exponent and three of fraction, ties to even, at most 448."""
    value = np.asarray(value, np.float64)
    _, exponent = np.frexp(value)
    step = np.ldexp(1.0, np.maximum(exponent - 1, -6) - 3)
    return np.clip(np.rint(value / step) * step, -448.0, 448.0)


def float8(program: Program, target: Target = ADA, text: str = "quantize(weights=fp8)", **context: Any) -> Program:
    data = Arrays("noise", (noise(16, *program.inputs[0].shape[1:], seed=2),))
    return PassManager(parse(text, PASSES)).run(program, Context(program, target=target, calib=data, **context))[0]


def exact(program: Program, x: Tensor) -> Tensor:
    """The program in float64, its FP8 numbers by the oracle; what is divided by a scale is in float32, as it runs."""

    class Exact(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target is aten._assert_tensor_metadata.default:
                return None
            if target is aten.to.dtype:
                small = args[1] is torch.float8_e4m3fn
                return torch.from_numpy(e4m3(args[0].numpy())) if small else args[0].double()
            if target is aten.div.Tensor and isinstance(args[1], float):
                return (args[0].float() / args[1]).double()
            args = torch.utils._pytree.tree_map(
                lambda t: t.double() if isinstance(t, Tensor) and t.dtype == torch.float32 else t, args
            )
            return target(*args, **kwargs)

    with torch.no_grad():
        return Exact(program.graph).run(x)[0].float()


@cache
def one_rounding() -> Program:
    """An input, rounded, behind which a ReLU stands."""
    program = captured(lambda m, x: x.relu(), 1)
    (relu,) = nodes(program, aten.relu.default)
    (source,) = (n for n in program.graph.graph.nodes if n.op == "placeholder")
    relu.replace_input_with(source, _float8._rounded(program, source, 1.0, relu))
    return program


@settings(max_examples=300)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32) | st.floats(-2.0, 2.0, width=32), min_size=1, max_size=64),
    st.floats(2**-10, 2**10, width=32),
)
def test_a_rounding_equals_the_oracle_bit_for_bit(values: list[float], scale: float) -> None:
    program = one_rounding()
    for node in nodes(program, aten.div.Tensor, aten.mul.Tensor):
        node.args = (node.args[0], scale)
    x = torch.tensor(values, dtype=torch.float32).reshape(-1, 1)
    steps = torch.fx.Interpreter(program.graph, garbage_collect_values=False)
    steps.run(x)
    (found,) = (v for n, v in steps.env.items() if n.target is aten.mul.Tensor)
    wanted = torch.from_numpy(e4m3((x / scale).numpy())).float() * scale
    assert torch.equal(found, wanted)


def test_scales_are_the_largest_magnitudes_over_448() -> None:
    program = small_cnn()
    quantized = float8(program, text="quantize(weights=fp8, layers=((a, per_tensor),))")
    weights, found = dict(program.weights()), dict(quantized.weights())
    for name in "abdh":
        value, stored, scale = weights[f"{name}.weight"], found[f"{name}.weight_float8"], found[f"{name}.weight_scale"]
        others = list(range(0 if name == "a" else 1, value.dim()))
        assert torch.equal(scale, value.detach().abs().amax(others, keepdim=True) / 448)
        oracle = torch.from_numpy(e4m3((value.detach() / scale).numpy()))
        assert torch.equal(stored.double(), oracle)
        assert quantized.origin[f"{name}.weight_float8"] == f"{name}.weight"
    calib = noise(16, 4, 8, 8, seed=2)
    first = next(n for n in nodes(quantized, aten.div.Tensor))
    assert first.args[1] == pytest.approx(float(calib.abs().max()) / 448, rel=1e-6)


def test_bias_correction_gives_each_layer_its_mean_back() -> None:
    program = captured(lambda m, x: m.l(x), 8, l=nn.Linear(8, 4))
    x = noise(16, 8, seed=2)  # what `float8` calibrates on
    plain = float8(program, text="quantize(weights=fp8, bias_correction=False)")
    with torch.no_grad():
        right = program(x)[0]
        biased, mended = ((q(x)[0] - right).mean(0).abs().max() for q in (plain, float8(program)))
    assert biased > 1e-3
    assert mended < 1e-6


def conv1d() -> Program:
    return captured(lambda m, x: m.c(x).relu(), 4, 16, c=nn.Conv1d(4, 6, 3))


def words() -> Program:
    layers = {"a": nn.Linear(8, 16), "n": nn.LayerNorm(16), "b": nn.Linear(16, 8)}
    return captured(lambda m, x: m.b(m.n(m.a(x)).relu()) + x, 6, 8, **layers)


def tied() -> Program:
    return captured(lambda m, x: m.a(m.a(x).relu()), 8, a=nn.Linear(8, 8))


@pytest.mark.parametrize("make", [small_cnn, conv1d, words, tied])
def test_the_file_in_onnx_runtime_equals_the_oracle(make: Any, tmp_path: Path) -> None:
    program = make()
    quantized = float8(program, HOPPER)
    x = noise(2, *program.inputs[0].shape[1:], seed=3)
    right = exact(quantized, x)
    found = tuple(t.detach() for t in quantized(x))
    assert far(found, (right,)) <= 1e-5
    artifact = HOPPER.emit(quantized.specialised(2), tmp_path, {})
    assert far(HOPPER.reference(artifact)((x,)), (right,)) <= 1e-5
    assert 1e-4 < far(found, tuple(t.detach() for t in program(x))) < 0.15
    model = onnx.load(str(tmp_path / "model.onnx"))
    both = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert {types[n.input[2]] for n in both} == {TensorProto.FLOAT8E4M3FN}
    assert {types[n.input[0]] for n in both if n.input[0] in types} == {TensorProto.FLOAT8E4M3FN}
    assert artifact.facts["fp8"]
    assert artifact.facts["opset"] == 19
    kinds = {r["dtype"] for r in artifact.facts["operators"] if r["op"] in ("Conv", "Gemm", "MatMul")}  # type: ignore[union-attr]
    assert kinds == {"fp8"}


@has_rtx
@pytest.mark.parametrize(("sm", "dtype"), [(89, "fp16"), (89, "bf16"), (120, "fp16")])
def test_an_engine_is_built_of_it(sm: int, dtype: str, tmp_path: Path) -> None:
    target = TensorRT(sm=sm, dtype=dtype)  # type: ignore[arg-type]
    artifact = target.emit(float8(small_cnn(), target).specialised(1), tmp_path, {})
    assert artifact.main == f"model.sm{sm}.rtx"
    layers: Any = artifact.facts["layers"]
    assert sum(x["writes"] == "FP8" for x in layers) == 3
    script = (tmp_path / "build.sh").read_text()
    assert "\nOPSET=19\n" in script


def test_other_targets_refuse_it_with_layer_and_reason() -> None:
    for other in (TensorRT(), TensorRT(sm=80), TensorRT(dla=0), Onnx()):
        with pytest.raises(
            PassError, match=r"^quantize: weights=fp8: \w+ has no FP8 kernels here: tensorrt\(sm=89\)[^\n]*$"
        ):
            float8(small_cnn(), other)
    quantized = float8(small_cnn()).specialised(1)
    for other, why in (
        (TensorRT(), "not for sm=87"),
        (TensorRT(sm=86), "not for sm=86"),
        (TensorRT(dla=0), "the DLA does not have"),
        (Onnx(), "onnx does not take"),
        (CoreMl(), "coreml does not take"),
        (Tvm(), "tvm does not take"),
    ):
        reasons = other.refuse(quantized)
        assert [r.partition(": ")[0] for r in reasons] == ["a", "b", "h"]
        assert all(why in reason for reason in reasons)


def test_what_emit_does_not_know_is_refused(tmp_path: Path) -> None:
    program = captured(lambda m, x: m.l(x.to(torch.float8_e4m3fn).float()), 8, l=nn.Linear(8, 4)).specialised(1)
    with pytest.raises(Unsupported, match=r"to\.dtype \(to\) is in FP8, in a form that is not quantize's"):
        HOPPER.emit(program, tmp_path, {})
    text = "quantize(weights=fp8, keep_float=(h,)), quantize(keep_float=(a, b, d), bias_correction=False)"
    mixed = float8(small_cnn(), text=text).specialised(1)
    with pytest.raises(Unsupported, match="beside integers"):
        HOPPER.emit(mixed, tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["calibration=mse", "activations=u8", "reduce_range=yes"])
def test_options_of_integers_are_refused(option: str) -> None:
    with pytest.raises(SpecError, match=f"{option} is about integers"):
        parse(f"quantize(weights=fp8, {option})", PASSES)


def test_an_activation_that_is_not_finite_is_refused() -> None:
    program = captured(lambda m, x: m.l(x / x.relu().sum()), 8, l=nn.Linear(8, 4))
    data = Arrays("minus", (-noise(16, 8, seed=2).abs(),))
    with pytest.raises(PassError, match="NaN or infinite on the calibration data"):
        PassManager(parse("quantize(weights=fp8)", PASSES)).run(program, Context(program, target=ADA, calib=data))


def test_a_layer_is_as_noisy_as_the_oracle_says() -> None:
    """What the search under a drop budget goes by; a factor of two in the steps of E4M3 is 6 dB."""
    program = small_cnn()
    placement = place(program, _float8.kernels(ADA.quantizable()), lambda node: False)
    x = noise(4, 4, 8, 8, seed=3)
    quantized = _float8.calibrated(program, placement, [(x,)], frozenset())
    found = layer_noise(program, quantized, placement, [(x,)])["conv2d"]
    first = dict(program.weights())["a.weight"].detach()
    scales = first.abs().amax((1, 2, 3), keepdim=True) / 448
    near = torch.from_numpy(e4m3((first / scales).numpy())) * scales.double()
    scale = float((x.abs().max() / 448).float())
    inputs = torch.from_numpy(e4m3((x / scale).numpy())) * scale
    right = nn.functional.conv2d(x.double(), first.double(), padding=1)
    error = nn.functional.conv2d(inputs, near, padding=1) - right
    assert found.power == pytest.approx(float((error**2).sum()), rel=1e-3)
    assert 20 < found.snr_db < 40


def test_a_drop_budget_keeps_noisy_layers_in_float() -> None:
    def drop(program: Program) -> float:
        return 2.0 if "h.weight_float8" in program.weights() or "a.weight_float8" in program.weights() else 0.5

    quantized = float8(small_cnn(), max_drop=1.0, drop=drop)
    kept = [n for n in quantized.weights() if n.endswith("_float8")]
    assert set(kept) < {"b.weight_float8", "d.weight_float8"} or set(kept) == {"b.weight_float8", "d.weight_float8"}


def test_a_saved_program_is_the_same(tmp_path: Path) -> None:
    quantized = float8(words())
    save(quantized, tmp_path)
    x = noise(2, 6, 8, seed=4)
    assert torch.equal(load(tmp_path)(x)[0], quantized(x)[0])


@has_rtx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_build_makes_an_engine_and_scores_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_user_files(tmp_path)
    report = edgecompile.build(
        f"{tmp_path}/net.py:net",
        target=TensorRT(sm=89),
        pipeline="quantize(weights=fp8, keep=always)",
        calib=str(tmp_path / "calib.npz"),
        eval=str(tmp_path / "eval.npz"),
        out=str(tmp_path / "out"),
    )
    assert any("FP8 (E4M3)" in note for step in report.steps for note in step.notes)
    assert report.score is not None
    with pytest.raises(EdgeCompileError, match="has no FP8 kernels here") as error:
        edgecompile.build(
            f"{tmp_path}/net.py:net",
            target=TensorRT(),
            pipeline="quantize(weights=fp8)",
            calib=str(tmp_path / "calib.npz"),
            out=str(tmp_path / "out"),
        )
    assert "\n" not in str(error.value)
