"""Orin's DLA: the float file with its scales, and which layers go there."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.data import Arrays
from edgecompile.errors import Unsupported
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program
from edgecompile.targets import _tensorrt_dla
from edgecompile.targets.tensorrt import TensorRT


class Block(nn.Module):
    """Convolutions with a residual sum, a pool, and a head that the DLA lacks when asked for."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4) if head else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        z = (self.b(y) + y).relu()
        z = F.max_pool2d(z, 2)
        return z if self.head is None else self.head(F.adaptive_avg_pool2d(z, 1).flatten(1))


def program(head: bool, integers: bool) -> Program:
    captured = Program.capture(Block(head).eval(), (torch.randn(2, 3, 8, 8),))
    if not integers:
        return captured.specialised(1)
    data = Arrays("noise", (torch.randn(16, 3, 8, 8),))
    context = Context(captured, target=TensorRT(), calib=data)
    passes = parse("quantize(activations=s8, bias_correction=False, smooth=False)", PASSES)
    return PassManager(passes).run(captured, context)[0].specialised(1)


def cache(text: str) -> dict[str, float]:
    lines = [line.rpartition(": ") for line in text.splitlines()]
    return {name: struct.unpack(">f", bytes.fromhex(word))[0] for name, _, word in lines}


def test_the_int8_file_has_no_qdq_and_the_scales_beside_it(tmp_path: Path) -> None:
    quantized = program(head=False, integers=True)
    artifact = TensorRT(dla=0).emit(quantized, tmp_path, {})
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert [n.op_type for n in model.graph.node] == ["Conv", "Relu", "Conv", "Add", "Relu", "MaxPool"]
    assert {o["unit"] for o in artifact.facts["operators"]} == {"DLA"}  # type: ignore[union-attr]
    scales = cache((tmp_path / "scales.txt").read_text())
    made = {n.output[0] for n in model.graph.node} | {"x"}
    assert made == set(scales)
    add, pool = model.graph.node[3], model.graph.node[5]
    assert scales[add.input[0]] == scales[add.input[1]]
    assert scales[pool.input[0]] == scales[pool.output[0]]
    first = next(n for n in quantized.graph.graph.nodes if "quantize_per_tensor" in str(n.target))
    assert scales["x"] == pytest.approx(first.args[1])
    x = torch.randn(1, 3, 8, 8)
    (found,), (right,) = TensorRT(dla=0).reference(artifact)((x,)), quantized(x)
    assert (found - right).square().mean() < 0.01 * right.square().mean()
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    whole = dict(quantized.weights())
    wanted = whole["a.weight_int8"].numpy() * whole["a.weight_scale"].numpy()[:, None, None, None]
    assert any(v.shape == wanted.shape and np.array_equal(v, wanted) for v in stored.values())
    assert (tmp_path / "build.sh").read_text().count("DLA=0") == 1


def test_layers_that_the_dla_lacks_are_refused_all_at_once_or_go_to_the_gpu(tmp_path: Path) -> None:
    whole = program(head=True, integers=False)
    reasons = TensorRT(dla=0).refuse(whole)
    assert [r.split(": ")[1].split(" ")[0] for r in reasons] == ["Reshape", "Gemm"]
    assert reasons[1].startswith("head: Gemm (")
    with pytest.raises(Unsupported) as error:
        TensorRT(dla=0).emit(whole, tmp_path, {})
    assert error.value.reasons == reasons
    allowed = TensorRT(dla=0, allow_gpu_fallback=True)
    assert allowed.refuse(whole) == []
    artifact = allowed.emit(whole, tmp_path, {})
    units = [(o["op"], o["unit"]) for o in artifact.facts["operators"]]  # type: ignore[union-attr]
    assert units[-3:] == [("AveragePool", "DLA"), ("Reshape", "GPU"), ("Gemm", "GPU")]
    assert "FALLBACK=yes" in (tmp_path / "build.sh").read_text()
    x = torch.randn(1, 3, 8, 8)
    assert torch.allclose(allowed.reference(artifact)((x,))[0], whole(x)[0], atol=1e-4)


def one(op: str, shape: tuple[int, ...], weight: tuple[int, ...] | None = None, **attributes: object) -> str | None:
    """Why the DLA does not run one node, None when it does."""
    inputs = ["x"] + (["w"] if weight else [])
    node = helper.make_node(op, inputs, ["y"], name="n", **attributes)
    constants = [numpy_helper.from_array(np.zeros(weight, np.float32), "w")] if weight else []
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (place,) = _tensorrt_dla.plan(onnx.shape_inference.infer_shapes(model))
    return place.why or None


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (one("Conv", (1, 4, 40, 40), (8, 4, 32, 32)), None),
        (one("Conv", (1, 4, 40, 40), (8, 4, 33, 3)), "kernel 33 is outside 1 to 32"),
        (one("Conv", (1, 4, 40, 40), (8, 4, 3, 3), strides=[9, 1]), "stride 9 is outside 1 to 8"),
        (one("Conv", (1, 4, 90, 90), (8, 4, 3, 3), dilations=[33, 1]), "dilation 33 is outside 1 to 32"),
        (one("Conv", (1, 4, 8, 8), (8, 4, 3, 3), pads=[3, 0, 0, 0]), "its padding is not less than its kernel"),
        (one("Conv", (1, 4, 8, 8), (8193, 4, 1, 1)), "over 8192"),
        (one("Conv", (1, 4, 8), (8, 4, 1)), "4 axes"),
        (one("ConvTranspose", (1, 4, 8, 8), (4, 8, 2, 2), strides=[2, 2]), None),
        (one("ConvTranspose", (1, 4, 8, 8), (4, 2, 2, 2), group=4), "has groups"),
        (one("ConvTranspose", (1, 4, 8, 8), (4, 2, 3, 3), pads=[1, 1, 1, 1]), "has padding"),
        (one("MaxPool", (1, 4, 16, 16), kernel_shape=[8, 8], strides=[16, 16]), None),
        (one("MaxPool", (1, 4, 16, 16), kernel_shape=[9, 8]), "window 9"),
        (one("AveragePool", (1, 4, 40, 40), kernel_shape=[2, 2], strides=[17, 1]), "stride 17"),
        (one("MaxPool", (1, 4, 16, 16), kernel_shape=[2, 2], ceil_mode=1), "rounds its size up"),
        (one("Softmax", (1, 1000, 1, 1), axis=1), None),
        (one("Softmax", (1, 1025, 2, 1), axis=1), "softmax axis 1025"),
        (one("Softmax", (2, 10, 1, 1), axis=0), "over the batch"),
        (one("Relu", (4097, 1, 1, 1)), "the batch over 4096"),
        (one("Erf", (1, 4, 8, 8)), "the DLA has no such layer"),
    ],
)
def test_the_documented_limits(found: str | None, why: str | None) -> None:
    assert found is None if why is None else found is not None and why in found


def test_the_largest_scale_is_shared_where_one_is_needed() -> None:
    names = ["a", "b", "s", "r", "p"]
    nodes = [
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[1, 1]),
    ]
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 1, 2, 2)) for n in names}
    graph = helper.make_graph(nodes, "g", [values["a"], values["b"]], [values["p"]])
    found = _tensorrt_dla._spread(helper.make_model(graph), {"a": 0.5, "b": 0.25, "p": 0.125})
    assert found == {"a": 0.5, "b": 0.5, "p": 0.125, "r": 0.125, "s": 0.125}
    assert _tensorrt_dla.cache_lines({"x": 1.0}) == "x: 3f800000\n"
