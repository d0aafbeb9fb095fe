"""The Core ML target: packages equal eager, hold our scales and the same bytes; refusals at once, crashes in a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.data import Arrays
from edgecompile.errors import TargetError
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program
from edgecompile.target import Artifact, Target
from edgecompile.targets._mil_read import Const, MilProgram, Name, read_package
from edgecompile.targets.coreml import CoreMl, Interpreted, scales_of
from edgecompile.targets.onnx import Onnx
from tests.random_nets import Recipe, build, example
from tests.targets.coreml_nets import IMAGE, TOKENS, captured, noise, packaged
from tests.targets.integer_reference import integers_of

RANDOM = [
    Recipe((("conv_bn", 3), ("pointwise", 5), ("layout", 3)), 2, 1),
    Recipe((("repvgg", 4), ("pad", 6), ("twice", 1)), 1, 2),
    Recipe((("up", 2), ("scale", 7), ("bn_conv", 5)), 0, 3),
    Recipe((("nothing", 1), ("lora", 2), ("nothing", 4)), 4, 4),
]


def attention(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))  # type: ignore[operator]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


ZOO: dict[str, Callable[[], Program]] = {
    "conv": lambda: captured(lambda m, x: m.c(x).relu(), *IMAGE, c=nn.Conv2d(4, 6, 3, padding=1)),
    "lstm": lambda: captured(lambda m, x: m.r(x)[0], *TOKENS, r=nn.LSTM(8, 5, batch_first=True)),
    "attention": lambda: captured(attention, *TOKENS, qkv=nn.Linear(8, 24)),
    "causal": lambda: captured(lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True), *TOKENS),
    "norms": lambda: captured(lambda m, x: F.gelu(m.g(x)) + m.b(x), *IMAGE, g=nn.GroupNorm(2, 4), b=nn.BatchNorm2d(4)),
    "embedding": lambda: captured(
        lambda m, x: m.n(m.e((x > 0).long())), *TOKENS, e=nn.Embedding(3, 4), n=nn.LayerNorm(4)
    ),
    "up": lambda: captured(lambda m, x: m.c(x), *IMAGE, c=nn.ConvTranspose2d(4, 3, 3, 2, 1, 1)),
    "bilinear": lambda: captured(lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), *IMAGE),
    "pools": lambda: captured(lambda m, x: F.avg_pool2d(F.max_pool2d(x, 2), 3, 1, 1), *IMAGE),
    "topk": lambda: captured(lambda m, x: x.softmax(-1).topk(2).values, *TOKENS),
    "where": lambda: captured(lambda m, x: torch.where((x > 0) & (x < 1), x.exp(), x.sin()).cumsum(1), *TOKENS),
    "adaptive": lambda: captured(lambda m, x: F.adaptive_avg_pool2d(F.hardswish(x), (3, 5)), *IMAGE),
}


def near(found: Tensor, wanted: Tensor, dtype: str) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= {"fp16": 5e-3, "fp32": 1e-4}[dtype] * wanted.abs().max()
    if dtype == "fp16":
        assert F.cosine_similarity(found.double().flatten(), wanted.double().flatten(), 0) > 0.9999


ALL = [*((n, "fp16") for n in ZOO), *((n, "fp32") for n in list(ZOO)[2:])]


@pytest.mark.parametrize(
    ("name", "dtype"), [pytest.param(*one, marks=pytest.mark.slow) if i % 2 else one for i, one in enumerate(ALL)]
)
def test_the_package_equals_eager(name: str, dtype: str, tmp_path: Path) -> None:
    program = ZOO[name]()
    loaded = Interpreted(packaged(program, tmp_path / "work", dtype))
    x = noise(1, *program.inputs[0].shape[1:], seed=3)
    for found, wanted in zip(loaded((x,)), program(x), strict=True):
        near(found, wanted.detach(), dtype)


@pytest.mark.parametrize("recipe", RANDOM, ids=lambda r: r.blocks[0][0])
@pytest.mark.slow
def test_random_networks_equal_eager(recipe: Recipe, tmp_path: Path) -> None:
    program = Program.capture(build(recipe), (example(),))
    loaded = Interpreted(packaged(program, tmp_path / "work", "fp32"))
    x = example(1, seed=5)
    for found, wanted in zip(loaded((x,)), program(x), strict=True):
        near(found, wanted.detach(), "fp32")


class Mixed(nn.Module):
    """Inputs and outputs of every kind that Core ML's border does not have."""

    def forward(self, x: Tensor, mask: Tensor, index: Tensor, size: Tensor) -> dict[str, Tensor]:
        y = torch.where(mask, x * size, x)
        return {"y": y, "again": y, "x": x, "place": y.argmax(1), "low": y < 0, "total": y.sum(), "next": index + 1}


def test_booleans_long_integers_numbers_and_passed_inputs_come_back_as_they_were(tmp_path: Path) -> None:
    x, mask, index, size = noise(2, 3), noise(2, 3, seed=2) > 0, torch.tensor([[5], [7]]), torch.tensor(2.0)
    given = {"x": x, "mask": mask, "index": index, "size": size}
    program = Program.capture(Mixed(), given, dynamic_batch=False)
    package = packaged(program, tmp_path / "work", "fp32")
    loaded = Interpreted(package)
    inputs = (noise(2, 3, seed=4), ~mask, index * 3, torch.tensor(-1.5))
    for found, wanted in zip(loaded(inputs), program(*inputs), strict=True):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert torch.allclose(found.double(), wanted.double())
    mil = read_package(package)
    assert [i[0] for i in mil.inputs] == ["x", "mask", "index", "size"]
    assert mil.outputs == ("y", "place", "low", "total", "next")


QUANTIZED = {"c": nn.Conv2d(3, 8, 3, padding=1), "d": nn.Conv2d(8, 8, 1), "l": nn.Linear(8, 4)}


@pytest.fixture(scope="module")
def integers() -> Program:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.c(x).relu()
        return m.l(F.adaptive_avg_pool2d(m.d(y) + y, 1).flatten(1))

    program = captured(forward, 3, 8, 8, **QUANTIZED)
    context = Context(program, target=CoreMl(), calib=Arrays("noise", (noise(16, 3, 8, 8, seed=2),)))
    return PassManager(parse("quantize", PASSES)).run(program, context)[0].specialised(1)


def scales_in(mil: MilProgram) -> set[float]:
    """Every scale that a package holds, decoded from its own files."""
    known = {op.name: op.inputs["val"] for op in mil.ops if op.kind == "const"}
    found: set[float] = set()
    for op in mil.ops:
        if "scale" in op.inputs:
            scale = op.inputs["scale"]
            constant = known[scale.name] if isinstance(scale, Name) else scale
            assert isinstance(constant, Const)
            found |= set(np.asarray(constant.value, dtype=np.float64).reshape(-1).tolist())
    return found


@pytest.mark.parametrize("ios", ["17", "18"])
def test_scales_are_the_programs_own_and_integers_the_same(integers: Program, ios: str, tmp_path: Path) -> None:
    ours = set(scales_of(integers).double().tolist())
    mil = read_package(packaged(integers, tmp_path / "exact", "fp32", ios))
    assert scales_in(mil) == ours
    half = read_package(packaged(integers, tmp_path / "half", "fp16", ios))
    assert scales_in(half) == set(scales_of(integers).half().double().tolist())
    key, kind = {
        "17": ("quantized_data", "constexpr_affine_dequantize"),
        "18": ("data", "constexpr_blockwise_shift_scale"),
    }[ios]
    known = {op.name: op.inputs["val"].value for op in mil.ops if op.kind == "const"}
    stored = []
    for op in mil.ops:
        if op.kind == kind:
            data = op.inputs[key]
            stored.append(known[data.name] if isinstance(data, Name) else data.value)
    wanted = {w.numpy().tobytes() for w in integers.weights().values() if w.dtype == torch.int8 and w.dim() > 1}
    assert {d.astype(np.int8).tobytes() for d in stored} == wanted


def windows(m: Any, x: Tensor) -> Tensor:
    """Swin's windows: six axes between a convolution and a product."""
    y = m.c(x).permute(0, 2, 3, 1).reshape(-1, 2, 4, 2, 4, 8)
    return m.l(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 16, 8))


@pytest.mark.parametrize(("target", "most"), [(CoreMl(), 4), (Onnx(), 6)])
def test_integers_have_no_more_axes_than_the_target_takes(target: Target, most: int, tmp_path: Path) -> None:
    program = captured(windows, 3, 8, 8, c=nn.Conv2d(3, 8, 1), l=nn.Linear(8, 4))
    context = Context(program, target=target, calib=Arrays("noise", (noise(16, 3, 8, 8, seed=2),)))
    made, steps = PassManager(parse("quantize", PASSES)).run(program, context)
    between = [n for n in made.graph.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert max(n.meta["val"].dim() for n in between) == most
    told = [note for note in steps[0].notes if "the target's integers have fewer axes" in note]
    assert bool(told) == (target.name == "coreml")
    if told:
        x = noise(1, 3, 8, 8, seed=5)
        (found,), (wanted,) = Interpreted(packaged(made.specialised(1), tmp_path, "fp32"))((x,)), made(x)
        assert (found - wanted).abs().max() <= 1.01 * wanted.abs().max() / 127


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_int8_equals_sums_of_integers(integers: Program, dtype: str, tmp_path: Path) -> None:
    """The reference sums what Q/DQ holds in integers; half a step of a tensor in between may fall the other way."""
    loaded = Interpreted(packaged(integers, tmp_path / "work", dtype))
    for seed in range(3):
        x = noise(1, 3, 8, 8, seed=seed)
        (found,), (wanted,) = loaded((x,)), integers_of(integers, x)
        step = float(wanted.abs().max()) / 127
        assert (found - wanted).abs().max() <= {"fp32": 1.01, "fp16": 2.01}[dtype] * step
        assert F.cosine_similarity(found.flatten(), wanted.flatten(), 0) > 0.999
    kinds = {op.kind for op in loaded.interpreter.steps}
    assert {"quantize", "dequantize", "conv", "add", "linear"} <= kinds


def test_half_precision_scales_are_told(integers: Program) -> None:
    facts, notes = CoreMl()._scales(integers)
    scales = scales_of(integers).double()
    change = float(((scales.float().half().double() - scales) / scales).abs().max())
    assert facts == {"count": scales.numel(), "stored": "float16", "largest_relative_change": change}
    assert notes[0] == f"scales are in half precision, off by at most {change:.2g}: coreml(dtype=fp32) keeps them"
    assert CoreMl(dtype="fp32")._scales(integers) == ({"count": scales.numel(), "stored": "float32"}, [])


def emitted(folder: Path, **options: Any) -> Artifact:
    folder.mkdir()
    return CoreMl(**options).emit(ZOO["attention"]().specialised(1), folder, {"pipeline": "none"})


@pytest.mark.slow
def test_emit_gives_the_same_bytes_and_tells_nothing_of_this_machine(tmp_path: Path) -> None:
    first, again = emitted(tmp_path / "one"), emitted(tmp_path / "two")
    files = [p.relative_to(first.folder) for p in sorted(first.folder.rglob("*")) if p.is_file()]
    assert [p.as_posix() for p in files] == [
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        "model.mlpackage/Manifest.json",
        "run.py",
    ]
    for path in files:
        data = (first.folder / path).read_bytes()
        assert data == (again.folder / path).read_bytes(), path
        assert b"site-packages" not in data
        assert str(Path(__file__).parent).encode() not in data
    assert first.facts["scales"] == {"count": 0, "stored": "none"}
    assert "macOS" in str(first.facts["not_run_here"])
    target, x = CoreMl(), noise(1, *TOKENS, seed=3)
    near(target.load(first)((x,))[0], ZOO["attention"]()(x)[0].detach(), "fp16")
    found = target.tap(first, ["scaled_dot_product_attention", "no_such_node"], (x,))
    assert set(found) == {"scaled_dot_product_attention"}
    assert read_package(first.path).metadata["pipeline"] == "none"


def test_a_crash_of_the_toolchain_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coremltools").mkdir()
    (tmp_path / "coremltools" / "__init__.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"^coreml: coremltools was killed by signal 11[^\n]*$"):
        emitted(tmp_path / "out")


def test_a_conversion_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"^coreml: the conversion was stopped after 0 s"):
        emitted(tmp_path / "out", limit_s=0)


def test_damaged_packages_are_named(tmp_path: Path) -> None:
    package = packaged(ZOO["conv"](), tmp_path / "work")
    model = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    weights = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:80])
    with pytest.raises(TargetError, match=r"^model.mlpackage: damaged or no Core ML package: [^\n]+$"):
        Interpreted(package)
    weights.write_bytes(whole)
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(TargetError, match=r"^model.mlpackage: [^\n]+$"):
        Interpreted(package)
    (package / "Manifest.json").unlink()
    with pytest.raises(TargetError, match=r"^model.mlpackage: damaged or no Core ML package"):
        Interpreted(package)
