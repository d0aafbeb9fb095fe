"""What the Core ML target refuses, all at once, and what its run.py says and maps."""

from __future__ import annotations

import runpy
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

from edgecompile.errors import Unsupported
from edgecompile.program import Program
from edgecompile.targets import _coreml_convert
from edgecompile.targets.coreml import CoreMl
from tests.targets.coreml_nets import IMAGE, Small, captured, noise

RUNNER = Path(_coreml_convert.__file__).parent / "runners" / "coreml_run.py"


@pytest.mark.slow
def test_every_unsupported_operator_is_listed_with_its_layer(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.modified_bessel_k0(x)

    program = captured(lambda m, x: torch.special.airy_ai(m.o(m.c(x))), *IMAGE, c=nn.Conv2d(4, 4, 1), o=Odd())
    reasons = CoreMl().refuse(program)
    assert reasons[0] == "o: special_modified_bessel_k0 (special_modified_bessel_k0) has no Core ML form"
    assert len(reasons) == 2
    assert "special_airy_ai" in reasons[1]
    with pytest.raises(Unsupported, match="2 reasons: o: special_modified_bessel_k0"):
        CoreMl().emit(program.specialised(1), tmp_path, {})
    assert CoreMl().refuse(captured(lambda m, x: m.c(x).softmax(1), *IMAGE, c=nn.Conv2d(4, 4, 1))) == []


@pytest.mark.slow
def test_operators_that_fail_to_convert_are_collected(tmp_path: Path) -> None:
    """coremltools knows these operators, but not with these arguments."""

    class Wrap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(x, (1, 1, 1, 1), mode="circular")

    program = captured(lambda m, x: m.two(m.c(m.one(x))), *IMAGE, one=Wrap(), two=Wrap(), c=nn.Conv2d(4, 4, 1))
    with pytest.raises(Unsupported) as caught:
        CoreMl().emit(program.specialised(1), tmp_path, {})
    assert "\n" not in str(caught.value)
    assert [r.partition(" (")[0] for r in caught.value.reasons] == ["one: pad", "two: pad"]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda m, x: x.double().sum(1), "float64, which Core ML does not have"),
        (lambda m, x: x.reshape(x.shape[0], 2, 2, 2, 2, 2, 2)[:, :, 0].sum((1, 2)), "has 7 axes; Core ML takes 5"),
        (lambda m, x: x + (m.b > 2**40), "has integers beyond 32 bits"),
        (lambda m, x: x, "no output is computed"),
    ],
    ids=["float64", "axes", "wide", "nothing"],
)
def test_what_core_ml_cannot_hold_is_refused(function: Callable[..., Any], text: str) -> None:
    module = Small(function)
    module.register_buffer("b", torch.tensor([2**41] * 64))
    program = Program.capture(module.eval(), (noise(2, 64),))
    reasons = CoreMl().refuse(program)
    assert any(text in r for r in reasons), reasons


def test_output_padding_alone_is_refused() -> None:
    """coremltools has no translation for it; left alone, its error would name nothing."""
    program = captured(lambda m, x: m.c(x), *IMAGE, c=nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1))
    assert CoreMl().refuse(program) == ["c: conv_transpose2d.input (conv_transpose2d) has no Core ML form"]


@pytest.mark.skipif(sys.platform == "darwin", reason="there it runs")
def test_run_py_says_where_it_runs(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, RUNNER, "a.npz", "b.npz"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("run.py: Core ML runs on macOS only")


def test_run_py_maps_arrays_as_the_interpreter_does() -> None:
    runner = runpy.run_path(str(RUNNER))
    interface = {
        "inputs": [
            {"name": "m", "core": "m", "dtype": "bool", "shape": [2]},
            {"name": "s", "core": "s", "dtype": "float32", "shape": []},
        ],
        "outputs": [
            {"name": "m_", "input": "m", "dtype": "bool", "shape": [2]},
            {"name": "k", "core": "k", "dtype": "int64", "shape": []},
        ],
    }
    given = {"m": np.array([True, False]), "s": np.float32(2)}
    feed = runner["core_inputs"](interface, given, np)
    assert {k: (v.dtype.name, v.shape) for k, v in feed.items()} == {"m": ("int32", (2,)), "s": ("float32", (1,))}
    found = runner["program_outputs"](interface, given, {"k": np.array([3], dtype=np.int32)}, np)
    assert found["m_"].dtype == bool
    assert (found["k"].dtype.name, found["k"].shape, int(found["k"])) == ("int64", (), 3)
    with pytest.raises(SystemExit, match="input m is missing"):
        runner["core_inputs"](interface, {}, np)
    with pytest.raises(SystemExit, match="has shape"):
        runner["core_inputs"](interface, {**given, "m": np.zeros(3, dtype=bool)}, np)
