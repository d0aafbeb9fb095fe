"""Weight-only compression in ONNX Runtime: the program's numbers, in as few bits as the operator set has."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program
from edgecompile.targets.onnx import Onnx


def network() -> Program:
    torch.manual_seed(0)
    layers = (nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 64))
    return Program.capture(nn.Sequential(*layers).eval(), (torch.randn(2, 8, 8, 8),))


@pytest.mark.parametrize("opset", [20, 21])
@pytest.mark.parametrize(
    "text",
    [
        "compress_weights(smallest=64)",
        "compress_weights(smallest=64, dtype=int4)",
        "compress_weights(smallest=64, dtype=int4, group=8, symmetric=False)",
        "palettize(smallest=64, bits=3, group=8)",
    ],
)
def test_the_file_gives_the_programs_numbers(text: str, opset: int, tmp_path: Path) -> None:
    program = network()
    program = PassManager(parse(text, PASSES)).run(program, Context(program))[0].specialised(1)
    target = Onnx(opset=opset)
    assert target.refuse(program) == []
    artifact = target.emit(program, tmp_path, {})
    x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(3))
    run = target.load(artifact)
    found, wanted = run((x,))[0], program(x)[0].detach()
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    graph = onnx.load(str(artifact.path)).graph
    bits = {t.data_type for t in graph.initializer if len(t.dims) > 1}
    if "palettize" in text:
        assert bits == {onnx.TensorProto.FLOAT}
        assert artifact.notes[0].startswith("palettes are stored as whole numbers")
    else:
        assert bits == {onnx.TensorProto.INT4 if "int4" in text and opset == 21 else onnx.TensorProto.INT8}
        assert artifact.notes == ()
