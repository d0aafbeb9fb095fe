"""TVM bundles on their device's side: the runner, check.sh and selftest.sh, run under qemu-user and here."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgecompile.building import bundle
from edgecompile.program import Program
from edgecompile.targets.tvm import Tvm

pytest.importorskip("tvm")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
Find = Callable[[str, str], str]


class TwoHeads(nn.Module):
    """A small convolutional net whose outputs are of two types."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 18, 3, padding=1), nn.BatchNorm2d(18), nn.ReLU6(), nn.Conv2d(18, 18, 3, 2, 1, groups=18),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.body(x)
        return y, y.argmax(1)


def bundled(arch: Any, folder: Path) -> Path:
    """The bundle of the small net for an architecture."""
    (folder / "emitted").mkdir()
    made = folder / "bundle"
    made.mkdir()
    program = Program.capture(TwoHeads().eval(), (torch.randn(2, 3, 17, 17),)).specialised(1)
    artifact = Tvm(arch=arch).emit(program, folder / "emitted", {})
    golden = (torch.randn(1, 3, 17, 17, generator=torch.Generator().manual_seed(1)),)
    bundle.fill(made, artifact, None, program, golden, {"target": "tvm", "device": "a board", "edgecompile": "0"})
    return made


def flip(made: Path, kind: type) -> None:
    """One golden output has another sign, and SHA256SUMS fits that."""
    with np.load(made / "golden.npz") as held:
        arrays = {name: held[name] for name in held.files}
    (value,) = (v for k, v in arrays.items() if k.startswith("output:") and v.dtype == kind)
    value.view(np.uint32)[..., -1] ^= 1 << 31
    np.savez(made / "golden.npz", **arrays)  # type: ignore[arg-type]
    names = [line.split("  ")[1] for line in (made / "SHA256SUMS").read_text().splitlines()]
    sums = subprocess.run(["sha256sum", *names], cwd=made, check=True, capture_output=True).stdout
    (made / "SHA256SUMS").write_bytes(sums)


def selftest(
    made: Path, environment: Mapping[str, str], *arguments: str, path: str = "/usr/bin:/bin"
) -> subprocess.CompletedProcess[str]:
    """Run `sh selftest.sh` with no environment but what is given."""
    command = ["sh", str(made / "selftest.sh"), *arguments]
    return subprocess.run(command, env={"PATH": path, **environment}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle for an A100's machine, whose part for the CPU runs here."""
    if platform.machine() != "x86_64" or "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("not run: this is no x86_64 machine with AVX2")
    return bundled("sm_80", tmp_path_factory.mktemp("native"))


@pytest.fixture
def made(native: Path, tmp_path: Path) -> Path:
    """A copy of it, at another place and with no modes."""
    copy = tmp_path / "copy"
    shutil.copytree(native, copy)
    (copy / "tvm_run").chmod(0o644)
    return copy


HERE = f"{Path(sys.executable).parent}:/usr/bin:/bin"
"""A path with a python3 that has TVM."""


def test_the_cpu_part_runs_without_python_and_says_what_it_did_not_run(made: Path) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("not run: there is a GPU here")
    done = selftest(made, {}, path=HERE)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"PASS: cpu: largest differences: \S+ [\d.e-]+, \S+ 0; median [\d.e-]+ ms", first)
    assert second == "NOT RUN: cuda: no GPU here"
    result, manifest = (json.loads((made / f"{name}.json").read_text()) for name in ("result", "manifest"))
    assert result["passed"]
    assert result["rounds"] == 50
    assert set(result["largest_difference"]) == set(manifest["outputs"])
    assert result["tolerance"] == manifest["tolerance"]
    times = result["latency_ms"]
    assert 0 < times["least"] <= times["median"] <= times["p90"]


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_a_flipped_golden_output_fails(made: Path, kind: type) -> None:
    flip(made, kind)
    done = selftest(made, {}, "cpu", "3", path=HERE)
    assert done.returncode == 4
    assert done.stdout.startswith("FAIL: cpu: ")
    assert not json.loads((made / "result.json").read_text())["passed"]


def test_a_golden_file_that_is_no_array_or_too_short_is_one_line(made: Path) -> None:
    whole = (made / "golden.npz").read_bytes()
    for size in (0, 20, 300, 700, len(whole) // 2):
        (made / "golden.npz").write_bytes(whole[:size])
        done = subprocess.run(
            ["sh", "check.sh", "cpu", "1"], cwd=made, env={"PATH": HERE}, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert re.match(r"tvm_run: the golden file (is truncated|has no |holds no array)", done.stderr)


def test_reasons_why_it_cannot_run(made: Path, tmp_path: Path) -> None:
    done = selftest(made, {}, "cuda", path=HERE)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "check.sh: tvm_run did not run on cuda (it ended with 2)"
    (tmp_path / "bin").mkdir()
    for name in ("sh", "sed", "tr", "sha256sum", "dirname", "uname", "chmod", "cat"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or pytest.fail(name))
    bare = str(tmp_path / "bin")
    done = selftest(made, {}, path=bare)
    assert done.returncode == 2
    assert done.stderr.startswith("check.sh: no TVM runtime: pip install apache-tvm==")
    (tmp_path / "bin" / "uname").unlink()
    (tmp_path / "bin" / "uname").write_text("#!/bin/sh\necho riscv64\n")
    (tmp_path / "bin" / "uname").chmod(0o755)
    done = selftest(made, {}, path=bare)
    assert done.returncode == 2
    assert done.stderr.startswith("check.sh: this is riscv64 and the bundle is for x86_64: copy it there")
    (made / "run.py").write_text("another")
    (made / "cpu" / "model.so").unlink()
    done = selftest(made, {}, path=bare)
    assert (done.returncode, done.stderr) == (9, "selftest.sh: not the files that were built: cpu/model.so run.py \n")


def test_run_py_uses_the_cpus_library_where_it_is_told_to(made: Path) -> None:
    environment = {"PATH": HERE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "run.py", "golden.npz", "out.npz"]
    done = subprocess.run(command, cwd=made, env=environment, capture_output=True, text=True)
    assert re.search(r"TVM \S+ finds no device cuda here: TVM_DEVICE=cpu uses the CPU's library", done.stderr)
    subprocess.run(command, cwd=made, env=environment | {"TVM_DEVICE": "cpu"}, check=True)
    with np.load(made / "out.npz") as found, np.load(made / "golden.npz") as golden:
        for name in found.files:
            np.testing.assert_allclose(found[name], golden[f"output:{name}"], rtol=1e-4, atol=1e-5)


def test_the_scripts_are_portable(made: Path, apt_tool: Find) -> None:
    shellcheck = apt_tool("shellcheck", "shellcheck")
    subprocess.run([shellcheck, *map(str, sorted(made.glob("*.sh")))], check=True)


@pytest.mark.parametrize("arch", ["aarch64", "sm_87"])
def test_the_selftest_passes_under_qemu_and_a_flipped_golden_output_fails(
    arch: str, tmp_path: Path, aarch64: dict[str, str]
) -> None:
    made = bundled(arch, tmp_path)
    done = selftest(made, aarch64)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("PASS: cpu: ")
    for name in ("tvm_run", "model.so"):  # JetPack 6 has glibc 2.35
        held = (made / name).read_bytes()
        assert held[18] == 183  # AArch64 in an ELF header
        assert max((int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", held)), default=0) <= 35
    flip(made, np.float32)
    done = selftest(made, aarch64, "cpu", "3")
    assert done.returncode == 4
    assert done.stdout.startswith("FAIL: cpu: ")
    assert not json.loads((made / "result.json").read_text())["passed"]
