"""Bad ONNX files: each with the one line and the exit code of its class."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgecompile.errors import InputError, Unsupported
from edgecompile.models.onnx_file import parse
from tests.models import onnx_makers as makers
from tests.models.onnx_makers import FLOAT, graph


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    return partial(makers.refused, tmp_path)


def recursive() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    functions = [
        helper.make_function("mine", a, ["a"], ["b"], [helper.make_node(b, ["a"], ["b"], domain="mine")], opsets)
        for a, b in (("One", "Two"), ("Two", "One"))
    ]
    return graph([helper.make_node("One", ["x"], ["y"], domain="mine")], domains=("mine",), functions=functions)


def cyclic() -> onnx.ModelProto:
    return graph([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])], outputs=("b",))


@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        (
            graph(
                [
                    helper.make_node("Blur", ["x"], ["a"], name="first"),
                    helper.make_node("Fused", ["a"], ["b"], name="second", domain="com.acme"),
                    helper.make_node("Relu", ["b"], ["y"]),
                ],
                domains=("com.acme",),
            ),
            Unsupported,
            "2 reasons: node 'first' (Blur, opset 17): no such operator in ONNX;"
            " node 'second' (com.acme.Fused, opset 17): operators of the domain 'com.acme' are not known",
        ),
        (
            graph(
                [
                    helper.make_node("NonZero", ["x"], ["a"]),
                    helper.make_node("Det", ["x"], ["b"]),
                    helper.make_node("NonMaxSuppression", ["x", "x"], ["y"], name="nms"),
                ],
                {"x": [1, 3, 3]},
                outputs=("y",),
                kind=FLOAT,
            ),
            Unsupported,
            "2 reasons: node 'a' (NonZero, opset 17): the size of its output depends on the data;"
            " node 'nms' (NonMaxSuppression, opset 17): no importer for this operator",
        ),
        (
            graph([helper.make_node("Relu", ["x"], ["y"])], opset=99),
            Unsupported,
            "opset 99 of ai.onnx: opsets 7 to 28 are known",
        ),
        (
            graph([helper.make_node("Relu", ["x"], ["y"])], opset=0),
            Unsupported,
            "opset 0 of ai.onnx: opsets 7 to 28 are known",
        ),
        (recursive(), InputError, "the function 'One' calls itself"),
        (cyclic(), InputError, "not a valid ONNX model: Nodes in a graph must be topologically sorted"),
        (
            graph([helper.make_node("Add", ["x", "ghost"], ["y"])]),
            InputError,
            "not a valid ONNX model: Nodes in a graph must be topologically sorted, however input 'ghost'",
        ),
        (
            graph([helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["a"])], outputs=("a",)),
            InputError,
            "not a valid ONNX model: Graph must be in single static assignment (SSA) form",
        ),
        (
            graph(
                [helper.make_node("Conv", ["x", "w"], ["y"])],
                {"x": [1, 3, 8, 8]},
                {"w": np.ones((4, 5, 3, 3), np.float32)},
            ),
            Unsupported,
            "node 'y' (Conv, opset 17): PyTorch cannot compute it: RuntimeError: Given groups=1",
        ),
        (
            graph([helper.make_node("StringNormalizer", ["x"], ["y"])], kind=TensorProto.STRING),
            Unsupported,
            "input 'x': not a tensor of a supported element type",
        ),
        (
            graph([helper.make_node("RandomNormalLike", ["x"], ["y"])]),
            Unsupported,
            "node 'y' (RandomNormalLike, opset 17): its output is random",
        ),
    ],
    ids=[
        "unknown",
        "data-sized",
        "opset-99",
        "opset-0",
        "recursive",
        "cyclic",
        "missing-input",
        "twice",
        "shapes",
        "strings",
        "random",
    ],
)
def test_bad_models(refused: Callable[..., str], model: onnx.ModelProto, kind: type[Exception], text: str) -> None:
    assert refused(model, kind).startswith(text)


def test_ir_version_99(refused: Callable[..., str]) -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"])])
    model.ir_version = 99
    assert refused(model, InputError).startswith("not a valid ONNX model: Your model ir_version 99 is higher than")


@pytest.mark.parametrize("content", [b"", b"x", b"a text that is no model", b"\x08\x07" * 3])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not an ONNX model"):
        parse(str(path), tmp_path / "out")


def test_names_are_escaped(refused: Callable[..., str]) -> None:
    node = helper.make_node("Blur", ["x"], ["y"], name="evil\n\x1b[31m")
    assert refused(graph([node]), Unsupported) == (
        "node 'evil\\x0a\\x1b[31m' (Blur, opset 17): no such operator in ONNX"
    )


def test_what_onnx_runtime_refuses_is_said(refused: Callable[..., str]) -> None:
    node = helper.make_node("Det", ["x"], ["y"])
    model = graph([node], {"x": [2, 3, 3]}, kind=TensorProto.DOUBLE)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        ort.InferenceSession(model.SerializeToString(), options)
    assert refused(model, InputError).startswith("ONNX Runtime refuses the model: ")
