"""The TVM target: libraries equal eager and have the same bytes twice, refusals at once, crashes in one line."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgecompile.errors import TargetError, Unsupported
from edgecompile.program import Program
from edgecompile.target import Artifact
from edgecompile.targets import tvm as module
from edgecompile.targets.tvm import Tvm
from tests.random_nets import KINDS, Recipe, build, example
from tests.targets.test_tvm_rules import compiled

pytest.importorskip("tvm")
pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = nn.Sequential(
    nn.Conv2d(3, 18, 3, padding=1), nn.BatchNorm2d(18), nn.ReLU6(), nn.Conv2d(18, 18, 3, 2, 1, groups=18),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 10),
).eval()  # fmt: skip


def program(model: nn.Module = SMALL, shape: tuple[int, ...] = (2, 3, 17, 17), batch: int = 1) -> Program:
    return Program.capture(model, (torch.randn(shape),)).specialised(batch)


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Program]:
    made = program()
    return Tvm().emit(made, tmp_path_factory.mktemp("tvm"), {"pipeline": "none"}), made


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_the_library_equals_eager_and_says_what_took_what(emitted: tuple[Artifact, Program]) -> None:
    artifact, _ = emitted
    session, x = Tvm().load(artifact), torch.randn(1, 3, 17, 17)
    assert session is not None
    torch.testing.assert_close(session((x,))[0], SMALL(x), rtol=1e-4, atol=1e-5)
    rows: Any = artifact.facts["functions"]
    assert {r["rule"] for r in rows} == {"tile", "elements"}
    assert artifact.notes == ()
    first = session((x,))[0].clone()
    session.bound((x,))()
    assert torch.equal(session((x,))[0], first)


def test_inputs_that_are_not_aligned_are_copied(emitted: tuple[Artifact, Program]) -> None:
    session, held = Tvm().load(emitted[0]), torch.randn(3 * 17 * 17 + 1)
    assert session is not None
    x = held[1:].reshape(1, 3, 17, 17)
    torch.testing.assert_close(session((x,))[0], SMALL(x), rtol=1e-4, atol=1e-5)


def test_the_same_bytes_twice(emitted: tuple[Artifact, Program], tmp_path: Path) -> None:
    artifact, made = emitted
    again = Tvm().emit(made, tmp_path, {"pipeline": "none"})
    assert hashes(again.folder) == hashes(artifact.folder)
    assert again.facts == artifact.facts


def test_run_py_runs_without_torch(emitted: tuple[Artifact, Program], tmp_path: Path) -> None:
    artifact, made = emitted
    x = torch.randn(1, 3, 17, 17)
    np.savez(tmp_path / "in.npz", **{made.input_names[0]: x.numpy()})
    (tmp_path / "torch.py").write_text("raise ImportError('torch must not be imported')")
    command = [sys.executable, str(artifact.folder / "run.py"), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    with np.load(tmp_path / "out.npz") as found:
        assert list(found.files) == list(made.output_names)
        np.testing.assert_allclose(found[made.output_names[0]], SMALL(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_equal_eager(seed: int) -> None:
    kinds = sorted(KINDS)
    recipe = Recipe(tuple((kinds[(5 * seed + i) % len(kinds)], 7 * seed + 3 * i) for i in range(4)), seed * 5, seed)
    made = Program.capture(build(recipe), (example(2),)).specialised(2)
    x = example(2, seed=seed + 1)

    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return made(x)

    run, _ = compiled(Flat(), (x,))
    for found, wanted in zip(run(x), made(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()) + 1e-6)


def test_all_refusals_come_at_once() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(x) + torch.special.ndtri(torch.sigmoid(x)) + x.double().float()

    reasons = Tvm().refuse(program(Odd(), (2, 4)))
    assert len(reasons) == 1
    assert "float64" in reasons[0]

    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(x) + torch.special.ndtri(torch.sigmoid(x))

    reasons = Tvm().refuse(program(Unknown(), (2, 4)))
    assert len(reasons) == 2
    assert "i0" in reasons[0]
    assert "ndtri" in reasons[1]


@pytest.mark.slow
def test_a_large_function_without_a_rule_is_refused_unless_allowed(tmp_path: Path) -> None:
    class Sums(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, 1)

    made = program(Sums(), (2, 1200, 1200))
    with pytest.raises(Unsupported, match=r"no schedule rule takes it and it has .* operations"):
        Tvm().emit(made, tmp_path, {})
    assert not list(tmp_path.iterdir())
    artifact = Tvm(allow_slow=True).emit(made, tmp_path, {})
    assert "no schedule rule" in artifact.notes[0]


def test_a_crash_and_a_limit_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = program()
    with pytest.raises(TargetError, match="did not end within 1 s"):
        Tvm(limit_s=1).emit(made, tmp_path, {})
    crash = tmp_path / "crash"
    (crash / "tvm").mkdir(parents=True)
    (crash / "tvm" / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(sys, "path", [str(crash), *sys.path])
    with pytest.raises(TargetError, match="was ended by signal 11"):
        Tvm()._compiled(_work(made, tmp_path))


def _work(made: Program, folder: Path) -> Path:
    torch.export.save(made.exported(), folder / "program.pt2")
    order = '{"arch": "host", "vectors": "auto", "linker": "g++", "large": 1, "allow_slow": true}'
    (folder / "order.json").write_text(order)
    return folder


def test_missing_tools_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match=r"edgecompile\[tvm\]"):
        Tvm().emit(program(), tmp_path, {})
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="apt-get install g"):
        Tvm().emit(program(), tmp_path, {})


def test_a_library_with_a_flipped_header_is_one_line(emitted: tuple[Artifact, Program], tmp_path: Path) -> None:
    broken = bytearray(emitted[0].path.read_bytes())
    broken[0] ^= 0xFF
    (tmp_path / "model.so").write_bytes(broken)
    with pytest.raises(TargetError, match=r"model.so: TVM .* does not load it"):
        Tvm().load(Artifact("tvm", tmp_path, "model.so", (), emitted[0].facts))


@pytest.mark.slow
def test_objects_for_android_are_the_same_twice_and_need_no_linker(tmp_path: Path) -> None:
    made = program()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        artifact = Tvm(arch="android").emit(made, tmp_path / name, {})
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    with tarfile.open(artifact.path) as archive:
        member = archive.extractfile(archive.getmembers()[0])
        assert member is not None
        assert member.read(20)[18] == 183  # AArch64 in an ELF header
    assert "not_run_here" in artifact.facts
    assert Tvm(arch="android").load(artifact) is None
    subprocess.run(["sh", "-n", str(tmp_path / "a" / "build.sh")], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "minilm", "resnet18", "resnet50"])
def test_networks_equal_eager_and_every_function_has_a_rule(name: str, tmp_path: Path) -> None:
    from tests.bench.networks import teacher

    made = teacher(name).program.specialised(1)
    artifact = Tvm().emit(made, tmp_path, {})
    session = Tvm().load(artifact)
    assert session is not None
    with torch.no_grad():
        for found, wanted in zip(session(made.inputs), made(*made.inputs), strict=True):
            assert (found - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))
    assert artifact.notes == ()


@pytest.mark.slow
def test_the_factor_of_a_sum_is_not_lost(tmp_path: Path) -> None:
    """TVM's own importer leaves `alpha` of add, sub and rsub out."""

    class Sums(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.add(x, x.sin(), alpha=3) + torch.sub(x.cos(), 2.0, alpha=0.5)
            return torch.rsub(y, x, alpha=2) - torch.sub(x, y, alpha=4)

    x = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    program = Program.capture(Sums().eval(), (x,)).specialised(2)
    session = Tvm().load(Tvm().emit(program, tmp_path, {}))
    assert session is not None
    assert (session((x,))[0] - program(x)[0]).abs().max() <= 1e-5
