"""Programs that a target lacks something for, and toolchains that crash or hang: one line, and nothing left."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgecompile
from edgecompile.data import Arrays
from edgecompile.errors import EdgeCompileError, TargetError
from edgecompile.pass_manager import Context, Pass, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program
from edgecompile.rewrite import map_weights
from edgecompile.store import verifies
from edgecompile.target import Target
from edgecompile.targets import TARGETS, _onnx_large
from tests.targets.test_onnx import Small, captured, noise
from tests.warm import write_user_files

pytestmark = pytest.mark.filterwarnings("ignore")
slow = pytest.mark.slow
NEEDS = {"onnx": "onnxruntime", "tensorrt": "tensorrt_rtx", "coreml": "coremltools"}
WORKERS = {
    "tensorrt": "_tensorrt_rtx",
    "coreml": "_coreml_convert",
    "tvm": "_tvm_worker",
    "executorch": "_executorch_worker",
}
"""Module of the child in which each target's toolchain runs; ONNX is written in the build's own process."""


@dataclass(frozen=True)
class Spoil(Pass):
    """A user's pass with a bug."""

    name: ClassVar[str] = "spoil"

    def run(self, program: Program, ctx: Context) -> Program:
        map_weights(program, lambda name, w: torch.full_like(w, math.nan) if name == "middle.weight" else w)
        return program


def target(name: str, **options: Any) -> Target:
    needed = NEEDS.get(name, name)
    if find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    module, _, kind = TARGETS[name].partition(":")
    made: Target = getattr(importlib.import_module(module), kind)(**options)
    return made


class Whole(nn.Module):
    """A product of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(12).reshape(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.get_buffer("table")


class Det(nn.Module):
    """An operator that only ONNX has."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(x)[..., None, None] * x


def video() -> Program:
    return captured(lambda m, x: m.c(x).relu(), 3, 4, 8, 8, c=nn.Conv3d(3, 4, 3, padding=1))


def whole() -> Program:
    return Program.capture(Whole().eval(), (torch.arange(8).reshape(2, 4),))


def middle() -> Program:
    layers = {"a": nn.Conv2d(4, 4, 1), "det": Det(), "b": nn.Conv2d(4, 4, 1)}
    return captured(lambda m, x: m.b(m.det(m.a(x)).relu()), 4, 4, 4, **layers)


def chosen_rows() -> Program:
    return captured(lambda m, x: m.l(x[x.sum(1) > 0]).relu(), 4, l=nn.Linear(4, 3))


def plain() -> Program:
    return captured(lambda m, x: m.l(x).relu(), 4, l=nn.Linear(4, 3))


def with_weight(value: float) -> Program:
    layer = nn.Linear(4, 3)
    model = Small(lambda m, x: m.l(x), l=layer).eval()
    layer.weight.data[1, 2] = value
    return Program.capture(model, (noise(2, 4),))


PROGRAMS: dict[str, Callable[[], Program]] = {
    "five axes": video,
    "whole numbers": whole,
    "an operator in the middle": middle,
    "a shape that depends on the data": chosen_rows,
    "NaN": lambda: with_weight(math.nan),
    "infinity": lambda: with_weight(math.inf),
}
REFUSED = [
    ("five axes", "executorch", r"c: conv3d \(conv3d\) has 5 axes"),
    ("whole numbers", "tensorrt", r"matmul: MatMul \(node_matmul\): .*INT64"),
    ("an operator in the middle", "tensorrt", r"det: Det \(.*no such operator"),
    pytest.param("an operator in the middle", "coreml", r"det: \S+ \(linalg_det\) has no Core ML form", marks=slow),
    ("an operator in the middle", "tvm", r"det: \S+ \(linalg_det\) has no form in TVM"),
    pytest.param("an operator in the middle", "executorch", "_linalg_det.* has no kernel in ExecuTorch", marks=slow),
    ("a shape that depends on the data", "tensorrt", r"index\.Tensor \(index\) has a shape that depends on the data"),
    ("a shape that depends on the data", "coreml", r"index\.Tensor \(index\) has a shape that depends"),
    ("a shape that depends on the data", "tvm", r"index\.Tensor \(index\) has a dynamic shape"),
    ("a shape that depends on the data", "executorch", r"index\.Tensor \(index\) has a dynamic shape"),
    *((what, name, r"l\.weight: 1 of 12 values are NaN") for what in ("NaN", "infinity") for name in TARGETS),
]
TAKEN = [
    ("five axes", "onnx"),
    ("five axes", "tensorrt"),
    pytest.param("five axes", "coreml", marks=slow),
    pytest.param("five axes", "tvm", marks=slow),
    ("whole numbers", "onnx"),
    pytest.param("whole numbers", "coreml", marks=slow),
    pytest.param("whole numbers", "executorch", marks=slow),
    pytest.param("whole numbers", "tvm", marks=slow),
    ("an operator in the middle", "onnx"),
    ("a shape that depends on the data", "onnx"),
]


def refuses(one: Target, program: Program, folder: Path, text: str) -> None:
    """`emit` raises one line that says what, and leaves nothing."""
    folder.mkdir()
    with pytest.raises(EdgeCompileError, match=text) as error:
        one.emit(program, folder, {})
    assert "\n" not in str(error.value)
    assert not list(folder.rglob("*"))


@pytest.mark.parametrize(("what", "name", "text"), REFUSED)
def test_what_a_target_lacks_is_one_line_and_leaves_nothing(what: str, name: str, text: str, tmp_path: Path) -> None:
    one = target(name)
    program = PROGRAMS[what]().specialised(1)
    assert all("\n" not in reason for reason in one.refuse(program))
    refuses(one, program, tmp_path / "out", text)


@pytest.mark.parametrize(("what", "name"), TAKEN)
def test_what_a_target_takes_equals_eager(what: str, name: str, tmp_path: Path) -> None:
    one = target(name)
    program = PROGRAMS[what]().specialised(1)
    assert one.refuse(program) == []
    artifact = one.emit(program, tmp_path, {})
    run = one.load(artifact) or one.reference(artifact)  # type: ignore[attr-defined]
    for found, right in zip(run(program.inputs), program(*program.inputs), strict=True):
        assert found.dtype == right.dtype
        torch.testing.assert_close(found, right.detach(), rtol=5e-3, atol=5e-3)


class Big(nn.Module):
    """A layer with more than 2 GB of weights."""

    def __init__(self, size: int = 23200) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1), 0.5).expand(size, size).contiguous(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


@slow
@pytest.mark.parametrize("name", ["onnx", "tensorrt"])
def test_a_model_over_2_gb_has_its_weights_beside_it_or_is_refused(name: str, tmp_path: Path) -> None:
    """Peak memory is 7 GB; the other targets take such a model too, with up to 19 GB."""
    one = target(name)
    program = Program.capture(Big().eval(), (torch.ones(2, 23200),)).specialised(1)
    if name == "tensorrt":
        assert one.refuse(program) == ["the model passes 2 GB, the limit of one ONNX file: quantize or prune it first"]
        refuses(one, program, tmp_path / "out", "passes 2 GB")
        return
    assert one.refuse(program) == []
    artifact = one.emit(program, tmp_path, {})
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data", "run.py"}
    assert artifact.path.stat().st_size < 100_000
    stored = np.memmap(tmp_path / "model.onnx.data", np.float32, "r")
    assert stored.shape == (23200**2,)
    assert all((stored[at : at + 1000] == 0.5).all() for at in (0, 23200**2 // 2, 23200**2 - 1000))


@pytest.mark.parametrize("what", ["plain", "int8", "int4", "tied"])
def test_weights_that_are_set_aside_give_the_same_outputs(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = target("onnx")
    layers = {"a": nn.Conv2d(4, 8, 3), "b": nn.Conv2d(8, 8, 3), "h": nn.Linear(8, 8)}
    program = captured(
        lambda m, x: m.h(m.h(m.b(m.a(x).relu()).relu().mean((2, 3)))) if what == "tied" else m.b(m.a(x).relu()),
        4, 8, 8, **layers,
    )  # fmt: skip
    text = {"int8": "quantize", "int4": "compress_weights(dtype=int4, smallest=1)"}.get(what)
    if text is not None:
        data = Arrays("noise", (noise(16, 4, 8, 8, seed=2),))
        program, _ = PassManager(parse(text, PASSES)).run(program, Context(program, target=one, calib=data))
    program = program.specialised(2)
    folders = [tmp_path / n for n in ("inside", "beside", "again")]
    sessions = []
    for folder in folders:
        folder.mkdir()
        if folder.name == "beside":
            monkeypatch.setattr(_onnx_large, "_LIMIT", 0)
            monkeypatch.setattr(_onnx_large, "_ASIDE", 100)
        sessions.append(one.load(one.emit(program, folder, {})))
    assert (folders[1] / "model.onnx.data").stat().st_size > 0
    for name in ("model.onnx", "model.onnx.data"):
        assert (folders[1] / name).read_bytes() == (folders[2] / name).read_bytes()
    x = noise(2, 4, 8, 8, seed=3)
    inside, beside = (run((x,))[0] for run in sessions[:2] if run is not None)
    torch.testing.assert_close(beside, inside, rtol=1e-3, atol=0.03 if text == "quantize" else 1e-5)


@pytest.mark.parametrize("name", ["tensorrt", "coreml", "tvm", "executorch"])
def test_a_batch_that_is_not_fixed_is_refused_where_shapes_must_be(name: str, tmp_path: Path) -> None:
    refuses(target(name), plain(), tmp_path / "out", "the batch|dynamic shape")


def sabotage(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str, only: str = "") -> None:
    """Let the target's child, and no other process, end or hang as soon as it starts: a real process, not its code."""
    fault = {
        "crash": "os.kill(os.getpid(), signal.SIGSEGV)",
        "half": "open(sys.orig_argv[-1], 'wb').write(b'half'); os.kill(os.getpid(), signal.SIGSEGV)",
        "hang": "time.sleep(600)",
    }[how]
    module = f"edgecompile.targets.{WORKERS[name]}"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, signal, sys, time\n"
        f"if {module!r} in sys.orig_argv and {only!r} in ('', *sys.orig_argv):\n    {fault}\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.getcwd()]))
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("how", ["crash", "hang"])
@pytest.mark.parametrize("name", WORKERS)
def test_a_toolchain_that_crashes_or_hangs_is_one_line(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = target(name)
    one.refuse(plain().specialised(1))  # imports what this process needs of the toolchain
    sabotage(tmp_path / "site", monkeypatch, name, how)
    text = "signal 11" if how == "crash" else "limit_s"
    refuses(replace(one, limit_s=1), plain().specialised(1), tmp_path / "out", text)


def test_half_an_engine_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = target("tensorrt", sm=80)
    sabotage(tmp_path / "site", monkeypatch, "tensorrt", "half", only="build")
    refuses(one, plain().specialised(1), tmp_path / "out", r"signal 11\) while it tried to build")


@pytest.mark.parametrize(
    "name", ["tensorrt", *(pytest.param(n, marks=slow) for n in ("onnx", "coreml", "tvm", "executorch"))]
)
def test_the_last_good_artifact_stays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = target(name)
    write_user_files(tmp_path)
    out = tmp_path / "out"
    report = edgecompile.build(f"{tmp_path}/net.py:net", target=one, out=str(out), pipeline="")
    (link,) = [p for p in out.iterdir() if p.is_symlink()]
    good = link.readlink()
    assert report.artifacts
    with pytest.raises(EdgeCompileError, match=r"bessel|airy") as error:
        edgecompile.build(f"{tmp_path}/net.py:unknown", target=one, out=str(out), pipeline="")
    assert "\n" not in str(error.value)
    with pytest.raises(TargetError, match=r"middle\.weight: 2304 of 2304 values are NaN") as error:
        edgecompile.build(f"{tmp_path}/net.py:net", target=one, out=str(out), passes=[Spoil(keep="always")])
    assert "\n" not in str(error.value)
    if name in WORKERS:
        sabotage(tmp_path / "site", monkeypatch, name, "crash")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        with pytest.raises(TargetError, match="signal 11") as error:
            edgecompile.build(f"{tmp_path}/net.py:net", target=one, out=str(out), pipeline="", batch=3)
        assert "\n" not in str(error.value)
    assert link.readlink() == good
    assert verifies(link)
