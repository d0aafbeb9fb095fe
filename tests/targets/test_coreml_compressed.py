"""Compressed weights in Core ML packages: decoded from the package they are the program's, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from edgecompile.errors import Unsupported
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program
from edgecompile.rewrite import map_weights
from edgecompile.targets._compressed import compressed
from edgecompile.targets._mil_read import Const, MilProgram, read_package
from edgecompile.targets.coreml import CoreMl, Interpreted
from tests.targets.coreml_nets import captured, noise, packaged


def network(zeros: float = 0.0) -> Program:
    """Every kind of layer whose weight is compressed; a part of each weight is zero."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.t(m.d(m.c(x).relu()).relu()).relu()  # type: ignore[operator]
        z = m.n(m.l(y.mean((2, 3))))  # type: ignore[operator]
        rows: Tensor = m.e((x.flatten(1)[:, :64] > 0).long())  # type: ignore[operator]
        return z + rows.sum(-1)

    layers = {
        "c": nn.Conv2d(8, 16, 3, padding=1),
        "d": nn.Conv2d(16, 16, 1, groups=2),
        "t": nn.ConvTranspose2d(16, 16, 2, 2),
        "l": nn.Linear(16, 64),
        "n": nn.Identity(),
        "e": nn.Embedding(64, 32),
    }
    program = captured(forward, 8, 8, 8, **layers)
    generator = torch.Generator().manual_seed(5)

    def pruned(name: str, value: Tensor) -> Tensor:
        if value.dim() < 2 or not zeros:
            return value
        kept = torch.rand(value.shape, generator=generator) >= zeros
        return nn.Parameter(value * kept)

    map_weights(program, pruned)
    return program


def passed(text: str, program: Program) -> Program:
    return PassManager(parse(text, PASSES)).run(program, Context(program))[0].specialised(1)


def dense(program: Program) -> list[Tensor]:
    """The compressed weights as the program itself computes them."""
    found = []
    for one in compressed(program):
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in program.graph.graph.nodes:
            if node.op == "get_attr" or node <= one.node:
                if node.op in ("placeholder", "output") or any(n not in copies for n in node.all_input_nodes):
                    continue
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[one.node])
        found.append(fx.GraphModule(program.graph, graph)())
    return found


def kinds(mil: MilProgram) -> set[str]:
    return {op.kind.removeprefix("constexpr_") for op in mil.ops if op.kind.startswith("constexpr_")}


def agree(program: Program, package: Path, dtype: str) -> MilProgram:
    """Constants bit for bit, and the whole package on an input."""
    loaded = Interpreted(package)
    held = {(tuple(v.shape), v.numpy().tobytes()) for v in loaded.interpreter.constants.values() if hasattr(v, "numpy")}
    wanted = dense(program)
    assert wanted
    for value in wanted:
        value = value.detach()
        value = (value if dtype == "fp32" else value.half().float()) + 0.0  # no negative zeros
        assert (tuple(value.shape), value.contiguous().numpy().tobytes()) in held
    x = noise(1, 8, 8, 8, seed=4)
    found, right = loaded((x,))[0], program(x)[0]
    assert (found - right).abs().max() <= {"fp32": 1e-6, "fp16": 2e-3}[dtype] * right.abs().max()
    return loaded.interpreter.program


CASES = [
    ("compress_weights(smallest=64)", 0.0, "fp32", {"blockwise_shift_scale"}),
    ("compress_weights(smallest=64, dtype=int4, group=4)", 0.0, "fp16", {"blockwise_shift_scale"}),
    ("compress_weights(smallest=64, group=8, symmetric=False)", 0.0, "fp16", {"blockwise_shift_scale"}),
    ("palettize(smallest=64, bits=1)", 0.0, "fp32", {"lut_to_dense"}),
    ("palettize(smallest=64, bits=3, group=4)", 0.0, "fp16", {"lut_to_dense"}),
    ("palettize(smallest=64, bits=5)", 0.0, "fp16", {"lut_to_dense"}),
    ("palettize(smallest=64, bits=4)", 0.7, "fp16", {"lut_to_sparse", "sparse_to_dense"}),
    ("compress_weights(smallest=64, group=4)", 0.7, "fp32", {"sparse_blockwise_shift_scale", "sparse_to_dense"}),
]


@pytest.mark.parametrize(("text", "zeros", "dtype", "forms"), CASES)
def test_decoded_weights_are_the_programs(text: str, zeros: float, dtype: str, forms: set[str], tmp_path: Path) -> None:
    program = passed(text, network(zeros))
    assert CoreMl().refuse(program) == []
    assert len(compressed(program)) == 5
    assert kinds(agree(program, packaged(program, tmp_path / "work", dtype), dtype)) >= forms


@pytest.mark.parametrize("ios", ["16", "17"])
@pytest.mark.parametrize("text", ["compress_weights(smallest=64)", "palettize(smallest=64, bits=3)"])
@pytest.mark.slow
def test_older_systems_get_the_forms_they_have(text: str, ios: str, tmp_path: Path) -> None:
    program = passed(text, network())
    assert CoreMl(ios=ios).refuse(program) == []
    mil = agree(program, packaged(program, tmp_path / "work", "fp16", ios), "fp16")
    assert kinds(mil) == {"affine_dequantize" if "compress" in text else "lut_to_dense"}


@pytest.mark.parametrize("ios", ["16", "18"])
@pytest.mark.slow
def test_pruned_float_weights_are_stored_sparse(ios: str, tmp_path: Path) -> None:
    program, whole = network(0.8).specialised(1), network().specialised(1)
    package = packaged(program, tmp_path / "work", "fp16", ios)
    loaded = Interpreted(package)
    assert "sparse_to_dense" in kinds(loaded.interpreter.program)
    x = noise(1, 8, 8, 8, seed=4)
    found, right = loaded((x,))[0], program(x)[0]
    assert (found - right).abs().max() <= 2e-3 * right.abs().max()
    assert "sparse_to_dense" not in kinds(read_package(packaged(whole, tmp_path / "whole", "fp16", ios)))


def stored_bits(mil: MilProgram, key: str) -> set[str]:
    known = {op.name: op.inputs["val"].dtype for op in mil.ops if op.kind == "const"}
    values = [op.inputs[key] for op in mil.ops if op.kind.startswith("constexpr_") and key in op.inputs]
    return {v.dtype if isinstance(v, Const) else known[v.name] for v in values}


@pytest.mark.slow
def test_numbers_take_the_bits_that_were_asked_for(tmp_path: Path) -> None:
    for text, key, wanted in (
        ("compress_weights(smallest=64, dtype=int4, group=4)", "data", {"INT4"}),
        ("palettize(smallest=64, bits=1)", "indices", {"UINT1"}),
        ("palettize(smallest=64, bits=7)", "indices", {"UINT8"}),
    ):
        folder = tmp_path / wanted.copy().pop()
        mil = read_package(packaged(passed(text, network()), folder))
        assert stored_bits(mil, key) == wanted, text


def test_what_an_older_system_lacks_is_refused_by_layer(tmp_path: Path) -> None:
    for text, reason in (
        ("compress_weights(smallest=64, group=4)", "c: scales of groups need iOS 18: coreml(ios=18), or group=0"),
        ("compress_weights(smallest=64, dtype=int4)", "c: 4-bit weights need iOS 18: coreml(ios=18), or dtype=int8"),
        ("palettize(smallest=64, group=4)", "c: a palette for each group of channels needs iOS 18"),
    ):
        program = passed(text, network())
        reasons = CoreMl(ios="17").refuse(program)
        assert reasons
        assert reasons[0].startswith(reason)
        with pytest.raises(Unsupported, match="need"):
            CoreMl(ios="17").emit(program, tmp_path, {})


def test_the_forms_survive_saving(tmp_path: Path) -> None:
    from edgecompile.program_file import load, save

    for text in ("compress_weights(smallest=64, dtype=int4, group=4)", "palettize(smallest=64, bits=3, group=4)"):
        program = passed(text, network())
        folder = tmp_path / text.partition("(")[0]
        folder.mkdir()
        save(program, folder)
        again = load(folder)
        assert [type(o) for o in compressed(again)] == [type(o) for o in compressed(program)]
        assert all(torch.equal(a, b) for a, b in zip(dense(again), dense(program), strict=True))
        assert np.array_equal(again(noise(1, 8, 8, 8))[0].detach(), program(noise(1, 8, 8, 8))[0].detach())
