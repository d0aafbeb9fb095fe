"""Q/DQ for TensorRT: zero points of 0, scales that cover the range, and the numbers of an integer reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.data import Arrays
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program
from edgecompile.targets import _tensorrt_quant
from edgecompile.targets.tensorrt import TensorRT
from tests.targets.test_onnx import captured, noise

IMAGE = (4, 8, 8)


def far(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """The largest difference, relative to the largest value of its output."""
    for one, right in zip(found, wanted, strict=True):
        assert one.shape == right.shape
        assert one.dtype == right.dtype
    pairs = [(a.double(), b.detach().double()) for a, b in zip(found, wanted, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) for a, b in pairs)


def quantized(program: Program, target: TensorRT, text: str = "quantize(activations=s8)") -> Program:
    data = Arrays("noise", (noise(16, *program.inputs[0].shape[1:], seed=2),))
    return PassManager(parse(text, PASSES)).run(program, Context(program, target=target, calib=data))[0]


def residual(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x).relu()  # type: ignore[operator]
    z = torch.cat([m.b(y) + y, m.d(y)], 1).relu()  # type: ignore[operator]
    return m.h(F.adaptive_avg_pool2d(F.max_pool2d(z, 2), 1).flatten(1))  # type: ignore[operator]


def small_cnn() -> Program:
    layers = {"a": nn.Conv2d(4, 8, 3, padding=1), "b": nn.Conv2d(8, 8, 3, padding=1), "d": nn.Conv2d(8, 8, 1)}
    return captured(residual, *IMAGE, **layers, h=nn.Linear(16, 5))


def integer_reference(program: Program, x: Tensor) -> tuple[Tensor, ...]:
    """The program in float64: sums of int8 products are exact there, as they are in int32."""

    class Exact(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            text = str(target)
            if "dequantize_per" in text:
                q, scale, zero = args[:3]
                if isinstance(scale, Tensor):
                    shape = [-1 if d == args[3] else 1 for d in range(q.dim())]
                    return (q.double() - zero.double().reshape(shape)) * scale.double().reshape(shape)
                return (q.double() - zero) * scale
            if "quantize_per_tensor" in text:
                value, scale, zero, low, high, dtype = args
                return (torch.round(value.double() / scale) + zero).clamp(low, high).to(dtype)
            args, kwargs = torch.utils._pytree.tree_map(
                lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, (args, kwargs)
            )
            return target(*args, **kwargs)

    with torch.no_grad():
        return tuple(t.float() for t in Exact(program.graph).run(x))


@pytest.mark.parametrize("activations", ["s8", "u8"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_int8_equals_an_integer_reference(activations: str, dtype: str, tmp_path: Path) -> None:
    target = TensorRT(dtype=dtype)  # type: ignore[arg-type]
    program = quantized(small_cnn(), target, f"quantize(activations={activations}, reduce_range=no)")
    fixed = program.specialised(2)
    symmetric, changed = _tensorrt_quant.symmetric(fixed)
    assert changed
    artifact = target.emit(fixed, tmp_path, {})
    assert any("symmetric" in note for note in artifact.notes)
    x = noise(2, *IMAGE, seed=3)
    found, right = target.reference(artifact)((x,)), integer_reference(symmetric, x)
    assert far(found, right) <= 5e-3
    model = onnx.load(str(tmp_path / "model.onnx"))
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    both = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {constants[n.input[2]].dtype for n in both} == {np.dtype("int8")}
    assert not any(constants[n.input[2]].any() for n in both)
    assert {
        r["dtype"] for r in artifact.facts["operators"] if r["op"] in ("Conv", "Add", "Gemm", "MaxPool", "Concat")
    } == {  # type: ignore[union-attr]
        "int8"
    }


def test_symmetric_scales_cover_the_range_and_the_weights_keep_theirs(tmp_path: Path) -> None:
    program = quantized(small_cnn(), TensorRT(), "quantize(activations=u8, reduce_range=no)").specialised(1)
    again, changed = _tensorrt_quant.symmetric(program)
    assert changed
    assert _tensorrt_quant.symmetric(again) == (again, 0)
    before = [n for n in program.graph.graph.nodes if "quantize_per_tensor" in n.name and n.args[5] is torch.uint8]
    after = {n.name: n for n in again.graph.graph.nodes}
    for node in before:
        scale, zero = node.args[1], node.args[2]
        reach = max(abs(0 - zero), abs(255 - zero)) * scale
        assert after[node.name].args[1:] == (pytest.approx(reach / 127), 0, -128, 127, torch.int8)
    for name, value in again.weights().items():
        if name.endswith(("_int8", "_scale")):
            assert torch.equal(value, program.weights()[name])


def test_stored_weights_with_zero_points_are_rounded_again() -> None:
    from edgecompile.rewrite import add_weight, nodes

    program = captured(lambda m, x: F.linear(x, m.l.weight), 8, l=nn.Linear(8, 4, bias=False))
    (reader,) = nodes(program, torch.ops.aten.linear.default)
    real = dict(program.weights())["l.weight"].detach()
    scale, zero = (real.amax(1) - real.amin(1)) / 255, torch.full((4,), 100, dtype=torch.int64)
    stored = (real / scale[:, None] + 100).round().clamp(0, 255).to(torch.uint8)
    parts = [add_weight(program, n, v, reader) for n, v in (("q", stored), ("s", scale), ("z", zero))]
    with program.graph.graph.inserting_before(reader):
        op = torch.ops.quantized_decomposed.dequantize_per_channel.default
        dequantize = program.graph.graph.call_function(op, (*parts, 0, 0, 255, torch.uint8))
    reader.update_arg(1, dequantize)
    program = program.retraced()
    symmetric, changed = _tensorrt_quant.symmetric(program)
    assert changed == 1
    x = noise(3, 8, seed=4)
    assert far(symmetric(x), program(x)) < 0.02
