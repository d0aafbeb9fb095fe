"""Measured tiles: any tile gives the same numbers, the log is kept and used, what cannot be measured is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgecompile.building.jobs import prepare
from edgecompile.building.options import BuildOptions
from edgecompile.errors import SpecError
from edgecompile.program import Program
from edgecompile.store import Cache
from edgecompile.targets import _tvm_graph, _tvm_machine
from edgecompile.targets._tvm_choice import Task, Tile, choose, ranked, read
from edgecompile.targets._tvm_elements import Simd
from edgecompile.targets.tvm import Tvm
from tests.targets import test_tvm_int8
from tests.targets.test_tvm import hashes

pytest.importorskip("tvm")
pytestmark = pytest.mark.filterwarnings("ignore")
MACHINE = _tvm_machine.host(_tvm_machine.flags())
PAIR = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.Flatten()).eval()


def run(module: nn.Module, x: torch.Tensor, simd: Simd) -> torch.Tensor:
    """The module's output with these tiles, and a check that a task was given its tile."""
    import tvm
    from tvm import relax

    graph = _tvm_graph.imported(torch.export.export(module.eval(), (x,)), simd)
    scheduled, functions = _tvm_graph.lowered(graph, MACHINE.target(), simd)
    assert all(f.rule for f in functions)
    machine = relax.VirtualMachine(_tvm_graph.executable(scheduled, MACHINE.target()), tvm.cpu())
    return torch.from_numpy(machine["main"](tvm.runtime.tensor(x.numpy()))[0].numpy())


@pytest.mark.parametrize(
    ("layer", "shape", "task"),
    [
        (nn.Conv2d(5, 44, 3, padding=1), (1, 5, 13, 13), Task("float", 13, 44, 45)),
        (nn.Linear(20, 77), (9, 20), Task("float", 9, 77, 20)),
        (nn.Conv2d(24, 24, 3, padding=1, groups=24), (1, 24, 9, 11), Task("window", 11, 24, 9)),
    ],
    ids=["conv", "linear", "depthwise"],
)
def test_every_tile_gives_the_same_sums(layer: nn.Module, shape: tuple[int, ...], task: Task) -> None:
    x = torch.randn(shape)
    tiles = ranked(task, MACHINE.simd)
    assert len(tiles) > 1
    for tile in [tiles[0], tiles[1], tiles[-1], min(tiles), max(tiles)]:
        found = run(layer, x, replace(MACHINE.simd, tuned=((task, tile),)))
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)


def test_every_tile_gives_the_same_integers() -> None:
    grid = test_tvm_int8.Grid(0.02, 128)
    layer = test_tvm_int8.Layer(F.linear, (44, 24), grid, test_tvm_int8.Grid(0.05, 120))
    x, task = torch.randn(7, 24), Task("int8", 7, 44, 24)
    wanted = layer.expected(x)
    for tile in ranked(task, MACHINE.simd):
        found = run(layer, x, replace(MACHINE.simd, tuned=((task, tile),)))
        assert np.array_equal(layer.y.integers(found), wanted)  # type: ignore[union-attr]


def test_the_estimate_comes_first_and_a_measured_tile_before_it() -> None:
    task, simd = Task("float", 56, 64, 64), Simd(8, 16)
    tiles = ranked(task, simd)
    assert choose(task, simd) == tiles[0]
    assert choose(task, replace(simd, tuned=((task, tiles[3]),))) == tiles[3]
    assert len(set(tiles)) == len(tiles)
    assert read({task: Tile(57, 1), Task("float", 1, 8, 8): Tile(1, 1)}) == ((Task("float", 1, 8, 8), Tile(1, 1)),)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, str], dict[str, str], torch.Tensor]:
    """The same program emitted twice with time to tune."""
    root = tmp_path_factory.mktemp("tuned")
    program = Program.capture(PAIR, (torch.randn(1, 3, 6, 6),)).specialised(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        made = []
        for name in ("first", "second"):
            (root / name).mkdir()
            made.append(Tvm(tune="1m").emit(program, root / name, {}))
        entries = list((root / "cache").rglob("tile.json"))
    assert len(entries) == 2  # a convolution each
    session, x = Tvm().load(made[0]), torch.randn(1, 3, 6, 6)
    assert session is not None
    torch.testing.assert_close(session((x,))[0], PAIR(x), rtol=1e-4, atol=1e-5)
    return made[0], made[1], hashes(root / "first"), hashes(root / "second"), x


def test_what_was_measured_is_kept_and_gives_the_same_bytes(twice: Any) -> None:
    first, second, before, after, _ = twice
    assert before == after
    assert first.facts["tuned"] == second.facts["tuned"]
    assert "tuned: 0 tiles tried" not in first.notes[0]
    assert second.notes[0].startswith("tuned: 0 tiles tried")


def test_a_log_is_by_task_and_cpu(tmp_path: Path) -> None:
    from edgecompile.targets._tvm_tune import Log

    log, task = Log(Cache(tmp_path), {"cpu": "a"}), Task("float", 3, 8, 9)
    log.write({task: Tile(2, 1)})
    assert log.read([task, Task("float", 3, 8, 10)]) == {task: Tile(2, 1)}
    assert Log(Cache(tmp_path), {"cpu": "b"}).read([task]) == {}


def test_no_time_and_no_cpu_to_measure_on_are_refused() -> None:
    with pytest.raises(SpecError, match=r"tune 'soon': expected a time such as 20m"):
        Tvm(tune="soon")
    with pytest.raises(SpecError, match=r"tune=20m measures on this CPU: .* not for arch=sm_87"):
        Tvm(arch="sm_87", tune="20m")
    with pytest.raises(SpecError, match=r"--tune 20m: no artifact of orin measures kernels here; tvm@host does"):
        prepare(BuildOptions(target="orin", tune="20m"))
    with pytest.raises(SpecError, match=r"--tune '20': expected a time"):
        BuildOptions(tune="20")


@pytest.mark.runtimes
def test_the_flag_reaches_every_artifact_for_this_cpu_that_was_not_given_a_time() -> None:
    jobs = prepare(BuildOptions(target="host", tune="90s"))
    assert [getattr(t, "tune", None) for job in jobs for t in (job.target, *job.rivals)] == [None, "90s"]
    (job,) = prepare(BuildOptions(target="tvm(tune='5s')@host", tune="90s"))
    assert job.target == Tvm(tune="5s")
