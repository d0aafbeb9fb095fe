"""Packages for several shapes: each of them equals the program, others are refused with the axis that is fixed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.errors import TargetError
from edgecompile.program import Program
from edgecompile.targets._coreml_image import Picture
from edgecompile.targets._mil_read import parse_spec
from edgecompile.targets.coreml import CoreMl, Interpreted
from tests.targets.coreml_nets import captured, noise, packaged


def convolutions() -> Program:
    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.d(F.max_pool2d(m.c(x).relu(), 2)).relu()  # type: ignore[operator]
        up = F.interpolate(y, scale_factor=2.0, mode="nearest")
        return m.l(F.adaptive_avg_pool2d(y, 1).flatten(1)), up  # type: ignore[operator]

    layers = {"c": nn.Conv2d(3, 8, 3, padding=1), "d": nn.Conv2d(8, 8, 3, 2, 1), "l": nn.Linear(8, 5)}
    return captured(forward, 3, 16, 16, **layers).specialised(1)


SIZES = [[1, 3, 16, 16], [1, 3, 24, 32], [1, 3, 40, 16]]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("shapes", [SIZES, [[1, 3, 16, 16], [4, 3, 16, 16]]], ids=["sizes", "batches"])
def test_every_shape_equals_the_program(shapes: list[list[int]], dtype: str, tmp_path: Path) -> None:
    program = convolutions()
    assert CoreMl(shapes=tuple(map(tuple, shapes))).refuse(program) == []
    package = packaged(program, tmp_path / "work", dtype, shapes=shapes)
    loaded = Interpreted(package)
    for seed, shape in enumerate(shapes):
        x = noise(*shape, seed=seed)
        for found, wanted in zip(loaded((x,)), program(x), strict=True):
            assert found.shape == wanted.shape
            assert (found - wanted).abs().max() <= {"fp32": 1e-5, "fp16": 5e-3}[dtype] * wanted.abs().max()
    spec = parse_spec((package / "Data" / "com.apple.CoreML" / "model.mlmodel").read_bytes())
    kind = spec.description.input[0].type.multiArrayType
    assert sorted(list(s.shape) for s in kind.enumeratedShapes.shapes) == sorted(shapes)
    assert list(kind.shape) == shapes[0]
    with pytest.raises(TargetError, match=r"input x has shape \[1, 4, 16, 16\]"):
        loaded.interpreter.run({"x": noise(1, 4, 16, 16)})


def test_pictures_of_several_sizes(tmp_path: Path) -> None:
    program, picture = convolutions(), Picture((0.5,), (0.25,))
    loaded = Interpreted(packaged(program, tmp_path / "work", "fp32", shapes=SIZES, image=dataclasses.asdict(picture)))
    for shape in SIZES:
        raw = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).float()
        x = (raw / 255 - 0.5) / 0.25
        for found, wanted in zip(loaded((x,)), program(x), strict=True):
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_fixed_axes_are_named() -> None:
    flat = captured(lambda m, x: m.l(x.flatten(1)), 3, 8, 8, l=nn.Linear(192, 5)).specialised(1)
    (reason,) = CoreMl(shapes=((1, 3, 8, 8), (1, 3, 8, 16))).refuse(flat)
    assert reason.startswith("shapes: the program does not take 1x3x8x16: it fixes axis 3 at 8 (mat1 and mat2 shapes")
    for shapes, text in (
        (((1, 3, 8, 16),), "shapes: 1x3x8x8, which the build has, must be among them"),
        (((1, 3, 8),), "shapes: each has 4 axes of 1 or more, as 1x3x8x8"),
    ):
        assert CoreMl(shapes=shapes).refuse(flat) == [text]
    viewed = captured(lambda m, x: m.l(x.reshape(-1, 3, 8, 8).mean((2, 3))), 3, 8, 8, l=nn.Linear(3, 5)).specialised(1)
    (reason,) = CoreMl(shapes=((1, 3, 8, 8), (1, 3, 8, 12))).refuse(viewed)
    assert "it fixes axis 3 at 8" in reason
