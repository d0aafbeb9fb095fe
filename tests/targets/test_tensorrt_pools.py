"""Pools whose window covers all of their input reach TensorRT as global ones, whatever the window's size."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgecompile.program import Program
from edgecompile.targets.tensorrt import TensorRT

LARGE = 1280
"""EfficientNet's own: the width of its last layer, on 7x7 places. TensorRT's parser refuses the window as it is."""


@pytest.mark.parametrize(
    ("pool", "kind"),
    [
        (nn.AvgPool2d(LARGE, ceil_mode=True), "GlobalAveragePool"),
        (nn.AvgPool2d((12, 20), ceil_mode=True, count_include_pad=False), "GlobalAveragePool"),
        (nn.MaxPool2d(12), "GlobalMaxPool"),
        (nn.AvgPool2d((12, 6)), "AveragePool"),
        (nn.AvgPool2d(12, padding=2), "AveragePool"),
        (nn.MaxPool2d(3, 2), "MaxPool"),
    ],
)
def test_windows_that_cover_everything_are_global(pool: nn.Module, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), pool)
    x = torch.randn(2, 3, 14, 14)
    program = Program.capture(network, (x,)).specialised(1)
    target = TensorRT(dtype="fp32")
    assert target.refuse(program) == []
    artifact = target.emit(program, tmp_path, {})
    found = [n.op_type for n in onnx.load(str(artifact.path)).graph.node]
    assert found == ["Conv", kind]
    (output,) = target.reference(artifact)((x[1:],))
    torch.testing.assert_close(output, network(x[1:]).detach(), rtol=1e-5, atol=1e-6)
