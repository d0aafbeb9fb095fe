"""Taking an optimised graph apart: what is found, what is refused, and that the model is never run."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompile.errors import InputError
from edgecompile.hostcost import geometry, runtime
from edgecompile.hostcost.cut import take_apart
from edgecompile.hostcost.plain import Plain

IMAGE = (1, 16, 8, 8)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _convs(path: Path, integer: bool = False, widths: tuple[int, ...] = (16, 16, 16, 32)) -> Path:
    graph = Plain(integer)
    out = graph.rounded("x")
    for inner, outer in itertools.pairwise(widths):
        out = graph.conv(out, inner, outer, 3)
    return _write(path, graph.model({"x": (1, widths[0], 8, 8)}, [out]))


def _graph(path: Path, nodes: list[onnx.NodeProto], shape: list[int | str], **constants: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("strange", 1)])
    model.ir_version = 10
    return _write(path, model.SerializeToString())


@pytest.mark.parametrize("integer", [False, True])
def test_every_cut_runs_alone_and_gives_the_shapes_it_has_in_the_network(tmp_path: Path, integer: bool) -> None:
    cuts = take_apart(_convs(tmp_path / "m.onnx", integer))
    assert sum(geometry.kind(c).startswith("conv3") for c in cuts) == 3
    for cut in cuts:
        model, feed = cut.model()
        found = runtime.session(model).run(None, feed)
        assert [tuple(v.shape) for v in found] == [t.shape for t in cut.results if t is not None]
        assert [v.dtype for v in found] == [runtime.DTYPES[t.number] for t in cut.results if t is not None]


def test_one_tensor_that_is_read_twice_stays_one(tmp_path: Path) -> None:
    (cut,) = take_apart(_graph(tmp_path / "m.onnx", [helper.make_node("Mul", ["x", "x"], ["y"])], [4, 8]))
    model, feed = cut.model()
    (value,) = feed.values()
    np.testing.assert_array_equal(runtime.session(model).run(None, feed)[0], value * value)
    assert cut.in_bytes == 4 * 8 * 4


def test_equal_layers_have_one_key_and_unequal_ones_their_own(tmp_path: Path) -> None:
    convs = [c for c in take_apart(_convs(tmp_path / "m.onnx")) if geometry.macs(c)]
    assert len({c.key for c in convs}) == 2
    assert convs[0].key == convs[1].key != convs[2].key
    integer = [c for c in take_apart(_convs(tmp_path / "q.onnx", True)) if geometry.macs(c)]
    assert not {c.key for c in integer} & {c.key for c in convs}


def test_axes_are_part_of_the_key_and_scales_are_not(tmp_path: Path) -> None:
    def key(op: str, **constants: np.ndarray) -> str:
        node = helper.make_node(op, ["x", *constants], ["y"])
        return take_apart(_graph(tmp_path / "m.onnx", [node], [4, 6, 8], **constants))[0].key

    assert key("ReduceMax", a=np.array([1])) != key("ReduceMax", a=np.array([2]))
    assert key("Mul", a=np.array([2.0], np.float32)) == key("Mul", a=np.array([3.0], np.float32))
    assert key("Pow", a=np.array([3.0], np.float32)) != key("Pow", a=np.array([2.5], np.float32))


def test_weights_bytes_and_macs(tmp_path: Path) -> None:
    conv = next(c for c in take_apart(_convs(tmp_path / "m.onnx")) if geometry.macs(c))
    assert geometry.macs(conv) == 16 * 16 * 9 * 8 * 8
    assert conv.weight_bytes == (16 * 16 * 9 + 16) * 4
    assert conv.in_bytes == conv.out_bytes == 16 * 8 * 8 * 4


def test_the_model_itself_is_never_run(tmp_path: Path) -> None:
    """Running this raises: the index is outside the table whatever the input is."""
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["z"]),
        helper.make_node("Cast", ["z"], ["i"], to=TensorProto.INT64),
        helper.make_node("Add", ["i", "far"], ["j"]),
        helper.make_node("Gather", ["table", "j"], ["y"]),
    ]
    constants = {
        "zero": np.zeros(1, np.float32),
        "far": np.array([10**6]),
        "table": np.ones((5, 8), np.float32),
    }
    path = _graph(tmp_path / "m.onnx", nodes, [3], **constants)
    with pytest.raises(Exception, match="bounds"):
        runtime.session(path).run(None, {"x": np.zeros(3, np.float32)})
    cuts = take_apart(path)
    gather = next(c for c in cuts if c.op == "Gather")
    model, feed = gather.model()
    assert runtime.session(model).run(None, feed)[0].shape == (3, 8)
    assert gather.weight_bytes == 0


def test_what_cannot_be_priced_is_named(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["b"])], "b", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, [3])]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], name="choose", then_branch=branch, else_branch=branch),
    ]
    with pytest.raises(InputError, match=r"m\.onnx: .*choose \(If\): control flow; time the whole model"):
        take_apart(_graph(tmp_path / "m.onnx", nodes, [3]))
    with pytest.raises(InputError, match=r"input x .* export it with fixed shapes"):
        take_apart(_graph(tmp_path / "d.onnx", [helper.make_node("Neg", ["x"], ["y"])], ["batch", 3]))
    with pytest.raises(InputError, match=r"NonZero.* no fixed shape"):
        take_apart(_graph(tmp_path / "n.onnx", [helper.make_node("NonZero", ["x"], ["y"], name="n")], [3, 3]))
    with pytest.raises(InputError, match=r"c\.onnx: ONNX Runtime .* does not load it"):
        take_apart(_graph(tmp_path / "c.onnx", [helper.make_node("Odd", ["x"], ["y"], domain="strange")], [3]))
    with pytest.raises(InputError, match="no such file"):
        take_apart(tmp_path / "absent.onnx")
