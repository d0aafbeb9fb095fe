"""ONNX files as a whole: exported networks come back, sizes and batches, and every bad file with its error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from edgecompile.errors import EdgeCompileError, InputError, Unsupported
from edgecompile.ingest import ChildLimits, parse_in_child, read_status, vet
from edgecompile.models._onnx_check import import_check
from edgecompile.models.onnx_file import imported, load, opset_of, parse
from edgecompile.program import Program, op_name
from edgecompile.program_file import load as load_program
from edgecompile.rewrite import layer
from tests.models import onnx_makers as makers
from tests.models.onnx_makers import branches, graph, looped

FLOAT = TensorProto.FLOAT


class Net(nn.Module):
    """Convolutions, batch norm, grouped and transposed ones, pooling, a residual and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Sequential(nn.Linear(6 * 16, 12), nn.GELU(), nn.LayerNorm(12), nn.Linear(12, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + torch.nn.functional.hardswish(self.depthwise(x))
        x = torch.nn.functional.adaptive_avg_pool2d(self.norm(self.up(x)), 4)
        return self.head(x.flatten(1)).softmax(-1)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
    return net


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more threads, and lose much where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Program]:
    return partial(makers.run, tmp_path)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    return partial(makers.refused, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.slow
def test_an_exported_network_comes_back_with_its_batch(net: Net, tmp_path: Path) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    example = torch.randn(2, 3, 16, 16)
    batch = torch.export.Dim("batch")
    torch.onnx.export(net, (example,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    vet(path)
    parse_in_child("onnx", {"path": path}, out, ChildLimits(wall_s=120))
    result: Any = read_status(out).result
    assert result["relative_error"] < 1e-5
    program = load_program(out)
    assert program.batch is None
    for size in (1, 2, 5):
        x = torch.randn(size, 3, 16, 16)
        assert torch.allclose(program(x)[0], net(x), atol=1e-5)
    whole = {op_name(n) for n in program.graph.graph.nodes if n.op == "call_function"}
    assert {"conv2d", "conv_transpose2d.input", "linear", "layer_norm", "softmax.int"} <= whole
    assert {"stem.0.weight", "head.0.bias", "head.3.bias"} <= set(program.weights())
    assert program.weights()["stem.0.weight"].requires_grad
    text = str(program)
    assert str(program.retraced()) == text


def test_layers_bear_the_names_of_their_nodes(run: Callable[..., Program]) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "block/0.w"], ["a"], name="/block/0/MatMul"),
        helper.make_node("Add", ["block/0.b", "a"], ["b"], name="/block/0/Add"),
        helper.make_node("Relu", ["b"], ["y"], name="/block/1/Relu"),
    ]
    stored = {"block/0.w": np.eye(3, 4, dtype=np.float32), "block/0.b": np.ones(4, np.float32)}
    program = run(graph(nodes, stored=stored))
    calls = [n for n in program.graph.graph.nodes if n.op == "call_function"]
    assert [(op_name(n), layer(n)) for n in calls] == [
        ("linear", "block.0.Add"),
        ("relu", "block.1.Relu"),
    ]
    assert sorted(program.weights()) == ["block.0.b", "block.0.w"]
    assert program.weights()["block.0.w"].shape == (4, 3)


def test_same_file_same_bytes(net: Net, tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    onnx.save(graph(nodes, stored={"w": np.ones((2, 3), np.float32)}), tmp_path / "m.onnx")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        parse(str(tmp_path / "m.onnx"), tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["graph.json", "inputs.safetensors", "meta.json", "weights.safetensors"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_shapes_are_computed_at_import_and_the_batch_flows_through(run: Callable[..., Program]) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Gather", ["s", "one"], ["c"]),
        helper.make_node("Mul", ["c", "two"], ["c2"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Unsqueeze", ["c2", "axis"], ["c1"]),
        helper.make_node("Concat", ["n1", "c1", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
    ]
    stored = {k: np.int64(v) for k, v in {"zero": 0, "one": 1, "two": 2}.items()}
    program = run(graph(nodes, {"x": ["n", 3, 4]}, stored | {"axis": np.array([0]), "rest": np.array([-1])}))
    assert program.batch is None
    names = [op_name(n) for n in program.graph.graph.nodes if n.op == "call_function"]
    assert names in (["sym_size.int", "reshape"], ["sym_size.int", "view"])
    assert program(torch.randn(5, 3, 4))[0].shape == (5, 6, 2)
    assert program.notes[0].startswith("ONNX opset 17, written by")


def test_a_model_that_fixes_its_batch_is_static_and_says_why(run: Callable[..., Program]) -> None:
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"])]
    program = run(graph(nodes, {"x": ["n", 2]}, {"to": np.array([1, 2])}))
    assert program.batch == 1
    assert program.notes[0].startswith("static batch: ")


def test_sizes_that_the_file_leaves_open(run: Callable[..., Program], refused: Callable[..., str]) -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 3, "h", None]})
    assert refused(model, InputError) == (
        "sizes that the file leaves open: 'x' [n, 3, h, ?]; give numbers for N: --input x=1x3xNxN"
    )
    assert refused(model, InputError, inputs={"xx": [1]}) == "no input 'xx'; did you mean x? (known: x)"
    assert refused(model, InputError, inputs={"x": [1, 4, 8, 8]}) == (
        "input 'x' [n, 3, h, ?] cannot have the sizes 1x4x8x8"
    )
    program = run(model, inputs={"x": [1, 3, 8, 6]})
    assert program.batch is None
    assert program.interface[0] == "x: float32[batch, 3, 8, 6]"


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT16, TensorProto.BOOL])
def test_inputs_of_every_kind(run: Callable[..., Program], kind: int) -> None:
    op = "Not" if kind == TensorProto.BOOL else "Neg"
    program = run(graph([helper.make_node(op, ["x"], ["y"])], kind=kind))
    assert program.inputs[0].shape == (2, 3)


def test_a_branch_on_an_input_is_a_selection_or_fixed(run: Callable[..., Program], refused: Callable[..., str]) -> None:
    program = run(branches([2, 3]))
    x = torch.randn(2, 3)
    assert torch.equal(program(x, torch.tensor(1))[0], x.relu())
    assert torch.equal(program(x, torch.tensor(7))[0], torch.ones(2, 3))
    note = "node 'choose' (If, opset 17): both branches are computed, since its condition is computed from input 'mode'"
    assert note in program.notes
    fixed = run(branches([2, 3]), fixed={"mode": 1})
    assert fixed.input_names == ("x",)
    assert [op_name(n) for n in fixed.graph.graph.nodes if n.op == "call_function"] == ["relu"]
    assert refused(branches([2, 3]), InputError, fixed={"mod": 1}).startswith(
        "no input 'mod' to fix; did you mean mode?"
    )
    assert refused(branches([4]), Unsupported) == (
        "node 'choose' (If, opset 17): its condition is computed from input 'mode' and its branches give float32[2, 3]"
        " and float32[4]; fixing the input to one value leaves one branch"
    )
    assert run(branches([4]), fixed={"mode": 0})(x)[0].shape == (4,)


def test_short_loops_are_unrolled_and_long_ones_refused(
    run: Callable[..., Program], refused: Callable[..., str]
) -> None:
    x = torch.randn(2, 3)
    assert torch.equal(run(looped(3))(x)[0], x * 8)
    assert refused(looped(1000), Unsupported) == ("node 'loop' (Loop, opset 17): a loop of more than 64 iterations")


def test_functions_of_the_file_are_inlined(run: Callable[..., Program]) -> None:
    twice = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="mine")]
    program = run(graph(nodes, domains=("mine",), functions=[twice]))
    x = torch.randn(4, 3)
    assert torch.equal(program(x)[0], x + x)


def test_weights_beside_the_model(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    w = np.random.default_rng(0).standard_normal((3, 500)).astype(np.float32)
    onnx.save(graph(nodes, stored={"w": w}), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin")
    vet(tmp_path / "m.onnx")
    parse(str(tmp_path / "m.onnx"), tmp_path)
    assert np.array_equal(load_program(tmp_path).weights()["w"].detach().numpy(), w.T)


def test_the_oracle_names_the_node_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Elu", ["x"], ["b"], name="second"),
        helper.make_node("Add", ["a", "b"], ["y"], name="third"),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(graph(nodes), path)
    model = load(str(path))
    program, module = imported(str(path), model, opset_of(str(path), model), {})
    assert import_check(str(path), program, module=module) < 1e-6
    for node in program.graph.graph.nodes:
        if node.op == "call_function" and op_name(node) == "elu":
            node.args = (node.args[0], 0.5)
    program.graph.recompile()
    elu = next(s for s in module._block.steps if s.node.name == "second")
    elu.node.attributes["alpha"] = 0.5  # type: ignore[index]
    with pytest.raises(InputError) as caught:
        import_check(str(path), program, module=module)
    assert "imported operators disagree with ONNX Runtime by" in str(caught.value)
    assert str(caught.value).endswith(" of the output's scale: first at node 'second' (Elu)")


def test_the_saved_notes(run: Callable[..., Program], tmp_path: Path) -> None:
    run(graph([helper.make_node("Relu", ["x"], ["y"])]))
    notes = json.loads((tmp_path / "out" / "meta.json").read_text())["notes"]
    assert notes == [
        "ONNX opset 17, written by unknown; 0 nodes computed at import",
        "agrees with ONNX Runtime to 0.0e+00 of the output's scale",
    ]


def test_a_path_may_be_relative_and_errors_name_it_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    onnx.save(graph(nodes, stored={"w": np.ones((2, 3), np.float32)}), "below/m.onnx")
    parse_in_child("onnx", {"path": "below/m.onnx"}, tmp_path / "out", ChildLimits(wall_s=120))
    assert load_program(tmp_path / "out").outputs()
    onnx.save(graph([helper.make_node("Nonsense", ["x"], ["y"])]), "below/odd.onnx")
    with pytest.raises(EdgeCompileError, match=r"^below/odd\.onnx: ") as caught:
        parse_in_child("onnx", {"path": "below/odd.onnx"}, tmp_path / "odd", ChildLimits(wall_s=120))
    assert str(tmp_path) not in str(caught.value)
