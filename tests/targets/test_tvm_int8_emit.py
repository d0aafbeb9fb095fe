"""INT8 programs through the TVM target: what `quantize` makes runs in integers, what has no rule is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.data import Arrays
from edgecompile.errors import Unsupported
from edgecompile.pass_manager import Context
from edgecompile.passes.quantize import Quantize
from edgecompile.program import Program
from edgecompile.target import Artifact
from edgecompile.targets._tvm_int8 import planned
from edgecompile.targets.onnx import Onnx
from edgecompile.targets.tvm import Tvm

pytest.importorskip("tvm")
pytestmark = pytest.mark.filterwarnings("ignore")
Q = torch.ops.quantized_decomposed


class Small(nn.Module):
    """Convolutions of each kind, a residual, pools, a border, a reshape and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 24, 3, 2, 1), nn.Conv2d(24, 24, 3, padding=1)
        self.deep, self.narrow = nn.Conv2d(24, 24, 3, 2, 0, groups=24), nn.Conv2d(24, 40, 1)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.stem(x)), 2)
        x = torch.relu(self.wide(x) + x)
        x = self.narrow(F.relu(self.deep(F.pad(x, (0, 1, 0, 1)))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def quantized(target: Any, model: nn.Module, shape: tuple[int, ...]) -> Program:
    torch.manual_seed(0)
    program = Program.capture(model.eval(), (torch.randn(2, *shape),))
    calib = Arrays("noise", (torch.randn(32, *shape),), batch_size=8)
    made = Quantize(smooth=False).run(program, Context(program, target=target, calib=calib))
    return made.specialised(1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Artifact]:
    torch.manual_seed(0)
    made = quantized(Tvm(), Small(), (3, 33, 33))
    return made, Tvm().emit(made, tmp_path_factory.mktemp("int8"), {})


def test_every_layer_and_everything_between_runs_in_integers(small: tuple[Program, Artifact]) -> None:
    program, artifact = small
    plan = planned(program.exported(), False)
    assert (len(plan.layers), len(plan.sums)) == (6, 1)  # the mean too
    assert len(plan.moves) == 3  # pool, border, flatten
    rows: Any = artifact.facts["functions"]
    assert {r["rule"] for r in rows} <= {"int8 tile", "int8 elements", "elements"}
    assert sum(r["rule"] == "int8 tile" for r in rows) >= 6
    assert sum(r["operations"] for r in rows if r["rule"] == "elements") < 20 * 3 * 33 * 33  # quantizes the input
    assert artifact.notes == ()


def test_it_agrees_with_onnx_runtime(small: tuple[Program, Artifact], tmp_path: Path) -> None:
    program, artifact = small
    session, other = Tvm().load(artifact), Onnx().reference(Onnx().emit(program, tmp_path, {}))
    assert session is not None
    x = [torch.randn(1, 3, 33, 33) for _ in range(8)]
    ours, theirs = (torch.cat([run((v,))[0] for v in x]).flatten().double() for run in (session, other))
    assert float(torch.cosine_similarity(ours, theirs, 0)) > 0.999


class Odd(nn.Module):
    """Quantized patterns without an integer rule, a layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.only_weights, self.up = nn.Linear(8, 8, bias=False), nn.ConvTranspose2d(2, 2, 2, bias=False)
        for layer in (self.only_weights, self.up):
            layer.register_buffer("w8", torch.ones_like(layer.weight, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, Q.dequantize_per_tensor(self.only_weights.w8, 0.1, 0, -127, 127, torch.int8))
        q = self.around(y)
        up = F.conv_transpose2d(q, Q.dequantize_per_tensor(self.up.w8, 0.1, 0, -127, 127, torch.int8))
        return up.sum() + torch.matmul(q, self.around(y * 2))

    @staticmethod
    def around(x: Tensor) -> Tensor:
        integers = Q.quantize_per_tensor(x, 0.1, 0, 0, 255, torch.uint8)
        return Q.dequantize_per_tensor(integers, 0.1, 0, 0, 255, torch.uint8)  # type: ignore[no-any-return]


def test_what_would_be_fake_quantized_is_refused_all_of_it(tmp_path: Path) -> None:
    program = Program.capture(Odd().eval(), (torch.randn(2, 2, 8, 8),)).specialised(1)
    reasons = Tvm().refuse(program)
    text = "\n".join(reasons)
    for word in ("linear", "conv_transpose2d", "matmul"):
        assert word in text
    assert "keep the layer in float" in text
    with pytest.raises(Unsupported, match="no integer rule"):
        Tvm().emit(program, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_a_gpu_has_no_integers(small: tuple[Program, Artifact]) -> None:
    assert not Tvm(arch="sm_80").quantizable()
    assert "no INT8 for sm_80" in Tvm(arch="sm_80").refuse(small[0])[0]


@pytest.mark.slow
def test_sdot_gives_the_same_integers_under_qemu(
    small: tuple[Program, Artifact], aarch64: dict[str, str], tmp_path: Path
) -> None:
    program, host = small
    artifact = Tvm(arch="aarch64").emit(program, tmp_path, {})
    assert artifact.path.read_bytes()[18] == 183
    rows: Any = artifact.facts["functions"]
    assert sum(r["rule"] == "int8 tile" for r in rows) >= 6
    session, x = Tvm().load(host), torch.randn(1, 3, 33, 33)
    assert session is not None
    qemu, *where = aarch64["EDGECOMPILE_RUN"].split()
    library = f"LD_LIBRARY_PATH={aarch64['TVM_LIBRARY_PATH']}"
    command = [qemu, *where, "-E", library, str(tmp_path / "tvm_run"), str(tmp_path)]
    golden = {
        f"input:{program.input_names[0]}": x.numpy(),
        f"output:{program.output_names[0]}": session((x,))[0].numpy(),
    }
    for shift in (0.0, 0.1):
        np.savez(tmp_path / "golden.npz", **{k: v + (shift if k[0] == "o" else 0) for k, v in golden.items()})
        assert (subprocess.run(command).returncode == 0) == (shift == 0)


@pytest.mark.slow
def test_what_runs_in_floats_between_integers_is_told(tmp_path: Path) -> None:
    """A pool to 2x2 has no integer form: it is no secret."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.adaptive_avg_pool2d(self.first(x).relu(), 2))  # type: ignore[no-any-return]

    x = torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    program = Program.capture(Pooled().eval(), (x[:2],))
    made = Quantize().run(program.clone(), Context(program, target=Tvm(), calib=Arrays("noise", (x,))))
    artifact = Tvm().emit(made.retraced().specialised(1), tmp_path, {})
    told = [note for note in artifact.notes if "in floats between integers" in note]
    assert len(told) == 1
    assert "adaptive_avg_pool2d" in told[0]
