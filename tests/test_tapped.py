"""Layers of an artifact whose runtime shows none, by a second build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from edgecompile.building.tapped import second_build, with_outputs
from edgecompile.data import Arrays
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program, attribute
from edgecompile.target import Target, loaded
from edgecompile.targets.executorch import ExecuTorch
from edgecompile.targets.tvm import Tvm
from edgecompile.verify import first_drift, layer_drift


class Net(nn.Module):
    """Two convolutions with a sum and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = (x + self.middle(x)).relu()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def captured() -> Program:
    torch.manual_seed(0)
    return Program.capture(Net().eval(), {"x": noise(2, 3, 8, 8)})


def values(program: Program, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """What torch computes at every node."""
    found: dict[str, Any] = {}

    class Keep(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n.name] = super().run_node(n)
            return found[n.name]

    with torch.no_grad():
        Keep(program.graph).run(*inputs)
    return found


def test_outputs_are_added_behind_the_programs_own() -> None:
    program = captured().specialised(1)
    names = [n.name for n in program.graph.graph.nodes if n.op == "call_function"]
    more, seen = with_outputs(program, [*names, "nothing"])
    assert seen == names[:-1]  # the last one is an output already
    x = (noise(1, 3, 8, 8, seed=2),)
    wanted = values(program, x)
    for value, name in zip(more(*x)[1:], seen, strict=True):
        assert torch.equal(value, wanted[name])
    assert len(set(more.output_names)) == len(more.output_names)
    assert [n.name for n in program.outputs()] == names[-1:]


@pytest.mark.parametrize("target", [Tvm(), pytest.param(ExecuTorch(), marks=pytest.mark.slow)], ids=lambda t: t.name)
def test_layers_are_those_of_eager(target: Target) -> None:
    program = captured().specialised(1)
    names = [n.name for n in program.graph.graph.nodes if n.op == "call_function"]
    x = (noise(1, 3, 8, 8, seed=2),)
    wanted = values(program, x)
    with second_build(target, program, 1, here=True) as tap:
        found = tap(names, x)
    assert set(found) == set(names[:-1])
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_wrong_layer_of_integers_is_named(tmp_path: Path) -> None:
    program, target = captured(), Tvm()
    data = Arrays("noise", (noise(32, 3, 8, 8, seed=3),))
    result, _ = PassManager(parse("quantize", PASSES)).run(program, Context(program, target=target, calib=data))
    broken = result.specialised(1)
    nodes = broken.graph.graph.nodes
    scale = next(n for n in nodes if n.op == "get_attr" and "middle" in n.target and "scale" in n.target)
    attribute(broken.graph, str(scale.target)).mul_(4)
    run, _ = loaded(target, target.emit(broken, tmp_path, {}), 1, here=True)
    assert run is not None
    with second_build(target, broken, 1, here=True) as tap:
        layers = layer_drift(program, broken, tap, run, [(noise(1, 3, 8, 8, seed=4),)])
    first = first_drift(layers)
    assert first is not None
    assert first.startswith("middle")
    assert any(name.startswith("first") and db is not None and db > 20 for name, db in layers)
