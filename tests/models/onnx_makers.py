"""Small ONNX models for tests, and their import in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompile.errors import UNSUPPORTED, USAGE, EdgeCompileError, Unsupported
from edgecompile.models.onnx_file import parse
from edgecompile.program import Program
from edgecompile.program_file import load

FLOAT = TensorProto.FLOAT


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]] | None = None,
    stored: dict[str, Any] | None = None,
    opset: int = 17,
    outputs: tuple[str, ...] = ("y",),
    domains: tuple[str, ...] = (),
    functions: list[onnx.FunctionProto] | None = None,
    kind: int = FLOAT,
    rank: int | None = None,
) -> onnx.ModelProto:
    """A model of float inputs (`{"x": ["n", 3]}` by default) and the outputs named, of the first input's rank."""
    inputs = inputs or {"x": ["n", 3]}
    open_shape: list[Any] = [None] * (len(next(iter(inputs.values()))) if rank is None else rank)
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info(n, kind, open_shape) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (stored or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(made, opset_imports=opsets, functions=functions or [], ir_version=10)


def run(folder: Path, model: onnx.ModelProto, **options: Any) -> Program:
    """Write a model, import it in this process, read the saved program."""
    onnx.save(model, folder / "m.onnx")
    out = folder / "out"
    out.mkdir(exist_ok=True)
    parse(str(folder / "m.onnx"), out, **options)
    return load(out)


def refused(folder: Path, model: onnx.ModelProto, kind: type[EdgeCompileError], **options: Any) -> str:
    """The one line that a model is refused with, its path cut off."""
    with pytest.raises(kind) as caught:
        run(folder, model, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (UNSUPPORTED if kind is Unsupported else USAGE)
    return str(caught.value).replace(f"{folder / 'm.onnx'}: ", "")


def branches(other: list[int], shape: list[Any] | None = None) -> onnx.ModelProto:
    """y = relu(x) when mode == 1, else a constant of the shape `other`."""
    one = helper.make_graph([helper.make_node("Relu", ["x"], ["a"])], "one", [], [onnx.ValueInfoProto(name="a")])
    two = helper.make_graph(
        [helper.make_node("Identity", ["k"], ["b"])],
        "two",
        [],
        [onnx.ValueInfoProto(name="b")],
        [numpy_helper.from_array(np.ones(other, np.float32), "k")],
    )
    nodes = [
        helper.make_node("Equal", ["mode", "one"], ["c"]),
        helper.make_node("If", ["c"], ["y"], name="choose", then_branch=one, else_branch=two),
    ]
    model = graph(nodes, {"x": shape or [2, 3]}, {"one": np.int64(1)}, rank=len(other))
    model.graph.input.append(helper.make_tensor_value_info("mode", TensorProto.INT64, []))
    return model


def looped(trips: int) -> onnx.ModelProto:
    """y = x doubled `trips` times, in a Loop whose body reads a value of the outer graph."""
    body = helper.make_graph(
        [helper.make_node("Mul", ["v", "two"], ["v2"]), helper.make_node("Identity", ["go"], ["go2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, None),
        ],
        [helper.make_tensor_value_info("go2", TensorProto.BOOL, []), helper.make_tensor_value_info("v2", FLOAT, None)],
    )
    nodes = [helper.make_node("Loop", ["trips", "", "x"], ["y"], name="loop", body=body)]
    return graph(nodes, {"x": [2, 3]}, {"trips": np.int64(trips), "two": np.float32(2)})
