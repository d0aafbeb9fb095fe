"""The TensorRT target: emitted files equal eager, types, symmetric Q/DQ, refusals with their layers, engines twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.errors import SpecError, TargetError, Unsupported
from edgecompile.program import Program
from edgecompile.spec import make
from edgecompile.targets import _tensorrt_rtx
from edgecompile.targets.tensorrt import TensorRT
from tests.random_nets import KINDS, Recipe, build, example
from tests.targets.test_onnx import captured, noise

has_rtx = pytest.mark.skipif(not _tensorrt_rtx.available(), reason="tensorrt-rtx is not installed")


def attention(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in m(x).chunk(3, -1))  # type: ignore[operator]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def masked(m: nn.Module, x: Tensor) -> Tensor:
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(x, x, x, attn_mask=seen)


IMAGE, TOKENS = (4, 8, 8), (6, 8)


def small_conv() -> Program:
    return captured(lambda m, x: m.c(x).relu(), *IMAGE, c=nn.Conv2d(4, 6, 3, padding=1))


Function = Callable[[Any, Tensor], Any]
PICTURES: dict[str, tuple[Function, nn.Module | None]] = {
    "conv": (lambda m, x: m(x).relu(), nn.Conv2d(4, 6, 3, padding=1)),
    "group_norm": (lambda m, x: F.silu(m(x)), nn.GroupNorm(2, 4)),
    "up": (lambda m, x: m(x), nn.ConvTranspose2d(4, 3, 2, stride=2)),
    "interpolate": (lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), None),
    "pools": (lambda m, x: F.avg_pool2d(F.max_pool2d(x, 2), 2), None),
    "pixel_shuffle": (lambda m, x: F.pixel_shuffle(F.hardswish(x), 2), None),
    "norm": (lambda m, x: m(x), nn.BatchNorm2d(4)),
    "video": (lambda m, x: m(x.unflatten(1, (2, 2))), nn.Conv3d(2, 3, (1, 3, 3))),
}
WORDS: dict[str, tuple[Function, nn.Module | None]] = {
    "attention": (attention, nn.Linear(8, 24)),
    "masked": (masked, None),
    "layer_norm": (lambda m, x: F.gelu(m(x)), nn.LayerNorm(8)),
    "embedding": (lambda m, x: m((x > 0).long()), nn.Embedding(3, 4)),
    "softmax_topk": (lambda m, x: x.softmax(-1).topk(2).values, None),
    "max": (lambda m, x: x.amax(-1), None),
    "norm": (lambda m, x: x.norm(dim=-1), None),
    "variance": (lambda m, x: x.var(-1), None),
    "sum": (lambda m, x: x.sum(-1), None),
    "where": (lambda m, x: torch.where(x > 0, x.exp(), x.sin()).cumsum(1), None),
    "uneven_split": (lambda m, x: torch.cat(x.chunk(4, 1)[::-1], 1), None),
    "input": (lambda m, x: x, None),
    "integers": (lambda m, x: (x > 0).long(), None),
}


class Many(nn.Module):
    """Functions side by side, one output each."""

    def __init__(self, parts: dict[str, tuple[Function, nn.Module | None]]) -> None:
        super().__init__()
        self.functions = {name: function for name, (function, _) in parts.items()}
        self.layers = nn.ModuleDict({f"layer_{name}": layer for name, (_, layer) in parts.items() if layer is not None})

    def forward(self, x: Tensor) -> dict[str, Any]:
        named = dict(self.layers.items())
        return {f"{n}_out": function(named.get(f"layer_{n}"), x) for n, function in self.functions.items()}


def pictures() -> Program:
    torch.manual_seed(0)
    return Program.capture(Many(PICTURES).eval(), (noise(2, *IMAGE),))


def words() -> Program:
    torch.manual_seed(0)
    return Program.capture(Many(WORDS).eval(), (noise(2, *TOKENS),))


def far(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """The largest difference, relative to the largest value of its output."""
    for one, right in zip(found, wanted, strict=True):
        assert one.shape == right.shape
        assert one.dtype == right.dtype
    pairs = [(a.double(), b.detach().double()) for a, b in zip(found, wanted, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) for a, b in pairs)


def ran_as_written(path: Path, inputs: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """The file by ONNX's own evaluator: ONNX Runtime leaves half precision out where a CPU has no kernel."""
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(path)).run(None, inputs)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("make_program", [pictures, words])
def test_the_emitted_file_equals_eager(make_program: Callable[[], Program], dtype: str, tmp_path: Path) -> None:
    program = make_program()
    x = noise(*program.inputs[0].shape, seed=3)
    target = TensorRT(dtype=dtype)  # type: ignore[arg-type]
    artifact = target.emit(program.specialised(2), tmp_path, {"pipeline": "none"})
    assert target.refuse(program) == []
    limit = 1e-4 if dtype == "fp32" else 5e-3
    assert far(target.reference(artifact)((x,)), program(x)) <= limit
    assert artifact.facts["opset"] == 17
    assert [o.name for o in onnx.load(str(artifact.path)).graph.output] == list(program.output_names)
    found = ran_as_written(artifact.path, {program.input_names[0]: x.numpy()})
    assert far(tuple(map(torch.from_numpy, found)), program(x)) <= limit


@pytest.mark.parametrize("first", range(3))
def test_random_networks_equal_eager_in_half_precision(first: int, tmp_path: Path) -> None:
    kinds = sorted(KINDS)[first::3]
    program = Program.capture(build(Recipe(tuple((k, first) for k in kinds), 5, first)), (example(),))
    equal_on_random(program, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [0, 7, 11])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_of_block_equals_eager_in_half_precision(kind: str, variant: int, tmp_path: Path) -> None:
    recipe = Recipe(((kind, variant), ("conv_bn", variant)), 2, variant)
    equal_on_random(Program.capture(build(recipe), (example(),)), tmp_path)


def equal_on_random(program: Program, folder: Path) -> None:
    target = TensorRT()
    artifact = target.emit(program.specialised(1), folder, {})
    x = example(1, seed=5)
    assert far(target.reference(artifact)((x,)), program(x)) <= 5e-3


def test_softmax_norms_and_sums_stay_wide_and_all_else_is_half(tmp_path: Path) -> None:
    layers = {"n": nn.LayerNorm(8), "l": nn.Linear(8, 8)}
    program = captured(lambda m, x: (m.l(m.n(x)) * 2).softmax(-1).mean(1) * 3, *TOKENS, **layers)
    artifact = TensorRT().emit(program.specialised(1), tmp_path, {})
    found = {o["op"]: o["dtype"] for o in artifact.facts["operators"]}  # type: ignore[union-attr]
    assert {found[op] for op in ("LayerNormalization", "Softmax", "ReduceMean")} == {"float"}
    assert {found[op] for op in ("Gemm", "MatMul", "Mul") if op in found} == {"float16"}
    assert (tmp_path / "fp32_layers.txt").read_text().split() == ["node_layer_norm", "node_softmax"]
    graph = onnx.load(str(artifact.path)).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    layer = {o["op"]: o["layer"] for o in artifact.facts["operators"]}  # type: ignore[union-attr]
    assert layer["LayerNormalization"] == "n"


class LinearAttention(nn.Module):
    """Attention without a softmax: a row of ones gives the sums that it is divided by."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.abs() * 1e-4, x.flip(1).abs() * 1e-4, x
        v = F.pad(v.transpose(1, 2), (0, 0, 0, 1), value=1.0)
        out = (v @ k) @ q.transpose(1, 2)
        return out[:, :-1] / (out[:, -1:] + 1e-15)


def test_denominators_that_half_precision_would_lose(tmp_path: Path) -> None:
    program = Program.capture(LinearAttention(), (noise(2, *TOKENS),))
    artifact = TensorRT().emit(program.specialised(2), tmp_path, {})
    x = noise(2, *TOKENS, seed=3)
    found = ran_as_written(artifact.path, {"x": x.numpy()})
    assert far(tuple(map(torch.from_numpy, found)), program(x)) <= 5e-3


def test_an_epsilon_of_1e_15_is_still_added(tmp_path: Path) -> None:
    program = captured(lambda m, x: x.relu() / (x.relu().sum(-1, keepdim=True) + 1e-15), *TOKENS)
    x = noise(2, *TOKENS, seed=3)
    x[0] = -1
    for dtype in ("fp32", "fp16"):
        (tmp_path / dtype).mkdir()
        target = TensorRT(dtype=dtype)  # type: ignore[arg-type]
        artifact = target.emit(program.specialised(2), tmp_path / dtype, {})
        assert far(target.reference(artifact)((x,)), program(x)) <= 5e-3


def test_a_mask_of_huge_numbers_stays_finite_in_half(tmp_path: Path) -> None:
    low = torch.finfo(torch.float32).min
    program = captured(lambda m, x: (x + torch.where(torch.arange(8) < 5, 0.0, low)).softmax(-1), *TOKENS)
    artifact = TensorRT().emit(program.specialised(2), tmp_path, {})
    x = noise(2, *TOKENS, seed=3)
    assert far(TensorRT().reference(artifact)((x,)), program(x)) <= 5e-3
    for tensor in onnx.load(str(tmp_path / "model.onnx")).graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor)).all()


def test_axes_are_attributes_because_tensorrt_8_6_ignores_the_input(tmp_path: Path) -> None:
    artifact = TensorRT().emit(words().specialised(2), tmp_path, {})
    graph = onnx.load(str(artifact.path)).graph
    reduced = [n for n in graph.node if n.op_type.startswith("Reduce") and n.op_type != "ReduceSum"]
    assert {n.op_type for n in reduced} >= {"ReduceMax", "ReduceL2"}
    for node in reduced:
        assert len(node.input) == 1
        assert any(a.name == "axes" for a in node.attribute)


class Det(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(x)[..., None, None] * x


class Bits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ((x * 100).int() & 7).float()


@has_rtx
def test_every_refused_node_is_listed_with_its_layer(tmp_path: Path) -> None:
    program = captured(lambda m, x: m.bits(m.det(m.c(x)).relu()), *IMAGE, c=nn.Conv2d(4, 4, 1), det=Det(), bits=Bits())
    reasons = TensorRT().refuse(program)
    assert len(reasons) == 2
    assert all("\n" not in r for r in reasons)
    assert any(r.startswith("det: Det (") for r in reasons)
    assert any("BitwiseAnd (node_bitwise_and): " in r for r in reasons)
    with pytest.raises(Unsupported) as error:
        TensorRT().emit(program.specialised(1), tmp_path, {})
    assert error.value.reasons == reasons


def test_without_tensorrt_rtx_the_operators_are_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_tensorrt_rtx, "available", lambda: False)
    program = captured(lambda m, x: m.det(x), *IMAGE, det=Det())
    assert [r.partition(" (")[0] for r in TensorRT().refuse(program)] == ["det: Det"]
    artifact = TensorRT().emit(small_conv().specialised(1), tmp_path, {})
    assert any("not parsed here" in note for note in artifact.notes)
    (tmp_path / "again").mkdir()
    with pytest.raises(TargetError, match=r"edgecompile\[tensorrt\]") as error:
        TensorRT(sm=80).emit(small_conv().specialised(1), tmp_path / "again", {})
    assert error.value.rule == "toolchain"


def test_a_crash_of_the_exporter_is_no_refusal() -> None:
    """torch has a form for `exp`, and fails on complex numbers only when it gets there."""
    program = captured(lambda m, x: torch.complex(x, m.c(x)).exp().real, *IMAGE, c=nn.Conv2d(4, 4, 1))
    with pytest.raises(
        TargetError, match=r"^tensorrt: onnx: torch [\d.]+\S* exporter failed at node exp: [^\n]+$"
    ) as error:
        TensorRT().refuse(program)
    assert error.value.rule == "toolchain"
    assert not isinstance(error.value, Unsupported)


def test_torch_tensorrt_that_does_not_import_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"edgecompile\[nvidia\]") as error:
        TensorRT(torch_tensorrt=True).emit(small_conv().specialised(1), tmp_path, {})
    assert error.value.rule == "toolchain"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "fp8"),
        ({"sm": 70}, "70"),
        ({"dla": 0, "sm": 80}, "only Orin"),
        ({"dla": 2}, "cores 0 and 1"),
        ({"dla": 0, "dtype": "bf16"}, "fp16 and int8"),
        ({"allow_gpu_fallback": True}, "give dla=0 too"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make(TensorRT, options, "tensorrt")
