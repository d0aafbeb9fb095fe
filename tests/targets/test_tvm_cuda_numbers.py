"""The CUDA source itself, run thread by thread on this CPU, against the functions in plain loops."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
pytest.importorskip("tvm")

from edgecompile.program import Program
from edgecompile.targets import _tvm_cuda, _tvm_graph, _tvm_machine
from tests.random_nets import KINDS, Recipe, build, example
from tests.targets.cuda_on_cpu import Emulated, grids, scratch

pytestmark = pytest.mark.filterwarnings("ignore")


class Attention(nn.Module):
    """Embedding, layer norm, attention with softmax, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 24)
        self.norm, self.q, self.k, self.v = nn.LayerNorm(24), *(nn.Linear(24, 24) for _ in range(3))
        self.out = nn.Linear(24, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(ids))
        a = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.out(nn.functional.gelu(x + a)).softmax(-1)


NETS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(3, 18, 3, 2, 1), nn.BatchNorm2d(18), nn.SiLU(), nn.Conv2d(18, 18, 3, 1, 1, groups=18),
            nn.Conv2d(18, 40, 1), nn.ReLU6(), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(40, 7),
        ),
        torch.zeros(1, 3, 17, 17),
    ),
    "dilated": (
        nn.Sequential(nn.Conv2d(4, 70, 3, dilation=2), nn.Hardswish(), nn.Conv2d(70, 8, 5)),
        torch.zeros(1, 4, 19, 21),
    ),
    "rows": (
        nn.Sequential(nn.Linear(200, 70), nn.LayerNorm(70), nn.Sigmoid(), nn.Linear(70, 300)),
        torch.zeros(1, 200),
    ),
    "attention": (Attention(), torch.zeros(1, 37, dtype=torch.int64)),
    "sums of one term, uneven windows": (
        nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Hardswish(), nn.AvgPool2d(1), nn.AdaptiveAvgPool2d((4, 5))),
        torch.zeros(1, 4, 7, 7),
    ),
    "borders": (
        nn.Sequential(nn.Conv2d(3, 20, 1), nn.ReLU6(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(20, 20, 3, 2, groups=20)),
        torch.zeros(1, 3, 12, 12),
    ),
    "products": (nn.Sequential(nn.Linear(200, 136), nn.GELU(), nn.Linear(136, 72)), torch.zeros(1, 90, 200)),
}  # fmt: skip
CLOSE = {"float32": 1e-5, "float16": 1e-3}
CASES = [
    *((name, "float32") for name in NETS),
    *(pytest.param(name, "float16", marks=pytest.mark.slow) for name in ("products", "convolutions", "attention")),
]


def numbers(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def fused(name: str, dtype: str = "float32") -> Any:
    torch.manual_seed(0)
    model, x = NETS[name]
    exported = torch.export.export(model.eval(), (x,))
    return _tvm_cuda.fused(_tvm_cuda.imported(exported, dtype), _tvm_cuda.target("sm_87"))


def differences(plain: Any, module: Any, emulated: Emulated, backwards: bool) -> dict[str, float]:
    """The largest difference between every function's kernels and its plain loops, relative to the largest value."""
    import tvm
    from tvm import tirx

    rng, cpu, found = np.random.default_rng(0), _tvm_machine.host(_tvm_machine.flags()).target(), {}
    for name, function in plain.functions_items():
        if not isinstance(function, tirx.PrimFunc):
            continue
        label = name.name_hint
        main = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        arrays = [numbers(tuple(int(d) for d in b.shape), str(b.dtype), rng) for b in function.params]
        held = [tvm.runtime.tensor(a) for a in arrays]
        tvm.compile(main, target=cpu)["main"](*held)
        by_name = {b.name: a for b, a in zip(module[label].params, arrays, strict=True)} | scratch(module[label])
        for index, sizes in enumerate(grids(module[label])):
            kernel = f"{label}_kernel_{index}" if index else f"{label}_kernel"
            names = [p[-1].removesuffix("_ptr") for p in emulated.parameters[kernel]]
            emulated.run(kernel, [by_name[n] for n in names], sizes, backwards)
        wanted = held[-1].numpy()
        error = np.abs(arrays[-1].astype(np.float64) - wanted).max()
        found[label] = float(error / max(1.0, float(np.abs(wanted).max())))
    return found


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_kernels_run_thread_by_thread_equal_plain_loops(name: str, dtype: str, tmp_path: Path) -> None:
    plain, where = fused(name, dtype), _tvm_cuda.target("sm_87")
    module, rules = _tvm_cuda.scheduled(plain.clone(), where)
    source = _tvm_cuda.source_of(_tvm_graph.executable(module, where))
    assert ("mma_sync" in source) == ((name, dtype) == ("products", "float16"))
    emulated = Emulated(source, tmp_path)
    for backwards in (False, True):
        found = differences(plain, module, emulated, backwards)
        assert set(found) == set(rules)
        assert {label: error for label, error in found.items() if not error <= CLOSE[dtype]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_kernels_of_random_networks_equal_plain_loops(seed: int, tmp_path: Path) -> None:
    kinds, where = sorted(KINDS), _tvm_cuda.target("sm_80")
    recipe = Recipe(tuple((kinds[(5 * seed + i) % len(kinds)], 7 * seed + 3 * i) for i in range(4)), seed * 5, seed)
    exported = Program.capture(build(recipe), (example(2),)).specialised(2).exported()
    plain = _tvm_cuda.fused(_tvm_cuda.imported(exported, "float32"), where)
    module, _ = _tvm_cuda.scheduled(plain.clone(), where)
    emulated = Emulated(_tvm_cuda.source_of(_tvm_graph.executable(module, where)), tmp_path)
    found = differences(plain, module, emulated, backwards=bool(seed % 2))
    assert {label: error for label, error in found.items() if not error <= 1e-5} == {}


def test_a_missing_barrier_is_seen(tmp_path: Path) -> None:
    plain, where = fused("rows"), _tvm_cuda.target("sm_87")
    module, _ = _tvm_cuda.scheduled(plain.clone(), where)
    source = _tvm_cuda.source_of(_tvm_graph.executable(module, where)).replace("__syncthreads();", "")
    emulated = Emulated(source, tmp_path)
    wrong = [differences(plain, module, emulated, backwards) for backwards in (False, True)]
    assert any(not error <= 1e-2 for found in wrong for error in found.values())


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_program_before_scheduling_equals_eager(name: str, dtype: str) -> None:
    import tvm
    from tvm import relax

    cpu = _tvm_machine.host(_tvm_machine.flags()).target()
    run = relax.VirtualMachine(_tvm_graph.executable(fused(name, dtype), cpu), tvm.cpu())["main"]
    model, like = NETS[name]
    kind = str(like.dtype).removeprefix("torch.")
    x = torch.from_numpy(numbers(tuple(like.shape), kind, np.random.default_rng(1)))
    with torch.no_grad():
        wanted = model(x)
    found = torch.from_numpy(run(tvm.runtime.tensor(x.numpy()))[0].numpy())
    torch.testing.assert_close(found, wanted, rtol=0, atol=2 * CLOSE[dtype] * max(1.0, float(wanted.abs().max())))
