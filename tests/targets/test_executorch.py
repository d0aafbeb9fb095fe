"""The ExecuTorch target: `.pte` files equal eager in their own runtime, in floats and in XNNPACK's integers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.data import Arrays
from edgecompile.errors import TargetError, Unsupported
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program
from edgecompile.silence import silenced
from edgecompile.target import Artifact
from edgecompile.targets import _executorch_worker
from edgecompile.targets.executorch import ExecuTorch, Session
from tests.random_nets import Recipe, build, example
from tests.targets.coreml_nets import IMAGE, TOKENS, captured, noise
from tests.targets.test_tensorrt_int8 import far, integer_reference, small_cnn

NETS: dict[str, Callable[[], Program]] = {
    "cnn": small_cnn,
    "attention": lambda: captured(
        lambda m, x: F.scaled_dot_product_attention(m.q(x), x, x).softmax(-1), *TOKENS, q=nn.Linear(8, 8)
    ),
    "norms": lambda: captured(lambda m, x: F.gelu(m.g(x)) + m.b(x), *IMAGE, g=nn.GroupNorm(2, 4), b=nn.BatchNorm2d(4)),
    "embedding": lambda: captured(
        lambda m, x: m.n(m.e((x > 0).long())), *TOKENS, e=nn.Embedding(3, 4), n=nn.LayerNorm(4)
    ),
    "random": lambda: Program.capture(
        build(Recipe((("conv_bn", 3), ("pointwise", 5), ("layout", 3)), 2, 1)), (example(),)
    ),
}


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower in this process, where ExecuTorch is imported once; the test of a child lowers as a build does."""

    def lowered(self: ExecuTorch, work: Path) -> dict[str, Any]:
        with silenced(), torch.no_grad():
            _executorch_worker.main(str(work))
        found: dict[str, Any] = json.loads((work / "result.json").read_text())
        return found

    if "child" not in request.node.name:
        monkeypatch.setattr(ExecuTorch, "_lowered", lowered)


def emitted(program: Program, folder: Path) -> tuple[Artifact, Session]:
    target = ExecuTorch()
    folder.mkdir(exist_ok=True)
    artifact = target.emit(program, folder, {"pipeline": "none"})
    session = target.load(artifact)
    assert session is not None
    return artifact, session


def quantized(program: Program) -> Program:
    data = Arrays("noise", (noise(16, *program.inputs[0].shape[1:], seed=2),))
    context = Context(program, target=ExecuTorch(), calib=data)
    return PassManager(parse("quantize", PASSES)).run(program, context)[0].specialised(2)


@pytest.mark.parametrize("name", NETS)
def test_a_file_equals_eager(name: str, tmp_path: Path) -> None:
    program = NETS[name]().specialised(2)
    _, session = emitted(program, tmp_path)
    for seed in (3, 4):
        inputs = tuple(noise(*t.shape, seed=seed) for t in program.inputs)
        assert far(session(inputs), program(*inputs)) <= 1e-4


@pytest.mark.slow
def test_outputs_of_a_run_outlive_the_next(tmp_path: Path) -> None:
    program = small_cnn().specialised(2)
    _, session = emitted(program, tmp_path)
    (first,) = session((noise(2, *IMAGE, seed=3),))
    kept = first.clone()
    session((noise(2, *IMAGE, seed=4),))
    assert torch.equal(first, kept)


@pytest.mark.slow
def test_a_child_gives_the_same_bytes(tmp_path: Path) -> None:
    program = small_cnn().specialised(1)
    one, two = (emitted(program, tmp_path / name)[0] for name in ("one", "two"))
    names = sorted(p.name for p in one.folder.iterdir())
    assert names == ["model.json", "model.pte", "run.py"]
    assert all((one.folder / n).read_bytes() == (two.folder / n).read_bytes() for n in names)


def test_int8_is_xnnpacks_and_within_a_step_of_the_integer_reference(tmp_path: Path) -> None:
    """XNNPACK multiplies by scales in float32, so that a tie may round the other way; no more than that."""
    program = quantized(small_cnn())
    artifact, session = emitted(program, tmp_path)
    assert artifact.facts["portable"] == {}, "an integer layer was left outside XNNPACK"
    x = noise(2, *IMAGE, seed=3)
    found, wanted = session((x,))[0], integer_reference(program, x)[0]
    scale = next(n.args[1] for n in reversed(program.graph.graph.nodes) if "quantize_per_tensor" in n.name)
    assert (found - wanted).abs().max() <= 2.01 * float(scale)
    assert float(F.cosine_similarity(found.flatten(), wanted.flatten(), 0)) > 0.999


def conv(x: Tensor) -> Program:
    layer = nn.Conv2d(4, 8, 3, padding=1)
    return captured(lambda m, v: m.c(v).relu(), *x.shape[1:], c=layer)


def test_one_integer_convolution_is_right_to_the_last_step(tmp_path: Path) -> None:
    x = noise(2, *IMAGE, seed=5)
    program = quantized(conv(x))
    _, session = emitted(program, tmp_path)
    last = next(n for n in reversed(program.graph.graph.nodes) if "quantize_per_tensor" in n.name)
    steps = (session((x,))[0] - integer_reference(program, x)[0]).abs() / float(last.args[1])  # type: ignore[arg-type]
    assert float(steps.max()) <= 1.01
    assert float((steps > 0.5).float().mean()) < 0.01


def test_what_xnnpack_does_not_take_is_told(tmp_path: Path) -> None:
    program = captured(lambda m, x: torch.cumsum(x, 1) + torch.erf(x), *TOKENS).specialised(2)
    artifact, session = emitted(program, tmp_path)
    assert set(artifact.facts["portable"]) == {"aten.cumsum.default", "aten.erf.default"}  # type: ignore[call-overload]
    assert "aten.erf.default: 1 outside XNNPACK, in a portable kernel" in artifact.notes
    x = noise(2, *TOKENS, seed=3)
    assert far(session((x,)), program(x)) <= 1e-4


def test_an_operator_without_a_kernel_is_refused_by_name(tmp_path: Path) -> None:
    program = captured(lambda m, x: torch.special.airy_ai(x), *TOKENS).specialised(2)
    with pytest.raises((Unsupported, TargetError), match="airy_ai"):
        emitted(program, tmp_path)


def test_a_dynamic_shape_is_refused_with_its_layer() -> None:
    reasons = ExecuTorch().refuse(small_cnn())
    assert "a: conv2d (conv2d) has a dynamic shape: fix the batch" in reasons


def test_a_child_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"did not end within 0 s: raise limit_s"):
        ExecuTorch(limit_s=0).emit(small_cnn().specialised(1), tmp_path, {})


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    artifact, _ = emitted(small_cnn().specialised(1), tmp_path)
    whole = artifact.path.read_bytes()
    artifact.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TargetError, match=r"^model\.pte: ExecuTorch does not load it: ") as caught:
        ExecuTorch().load(artifact)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_script_of_the_bundle_runs_it(tmp_path: Path) -> None:
    program = small_cnn().specialised(1)
    artifact, session = emitted(program, tmp_path)
    x = noise(1, *IMAGE, seed=3)
    np.savez(tmp_path / "in.npz", **{f"input:{program.input_names[0]}": x.numpy()})
    command = [sys.executable, "run.py", "in.npz", "out.npz"]
    subprocess.run(command, cwd=artifact.folder, check=True, capture_output=True)
    with np.load(tmp_path / "out.npz") as made:
        assert np.array_equal(made[program.output_names[0]], session((x,))[0].numpy())
