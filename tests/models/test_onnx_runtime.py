"""Imported layers against ONNX Runtime over their options: equal or refused, never silently wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.models.onnx_runtime import data, error, one_node

FEW = settings(max_examples=80, derandomize=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more threads, and lose much where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@FEW
@given(
    transposed=st.booleans(),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.sampled_from([(1, 1), (2, 1), (2, 2)]),
    pads=st.one_of(
        st.sampled_from(["VALID", "SAME_UPPER", "SAME_LOWER"]),
        st.tuples(*[st.integers(0, 2)] * 4),
    ),
    group=st.sampled_from([1, 2]),
    extra=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    biased=st.booleans(),
)
def test_convolutions(
    transposed: bool,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    pads: Any,
    group: int,
    extra: tuple[int, int],
    biased: bool,
) -> None:
    x, w, b = data(2, 4, *size), data(4, 4 // group, *kernel, seed=1), data(4, seed=2)
    attributes: dict[str, Any] = {"strides": stride, "dilations": dilation, "group": group}
    attributes |= {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}
    if transposed:
        if isinstance(pads, tuple):
            attributes["output_padding"] = extra
        b = data(4 // group * group, seed=2)
    stored = {"w": w} | ({"b": b} if biased else {})
    op = "ConvTranspose" if transposed else "Conv"
    found = error(one_node(op, {"x": x}, stored, 11, **attributes), {"x": x})
    if transposed and isinstance(pads, str) and isinstance(found, str):
        assert "auto_pad with a kernel smaller than its stride" in found
        return
    assert isinstance(found, float), found
    assert found < 1e-4


@FEW
@given(
    op=st.sampled_from(["MaxPool", "AveragePool"]),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.one_of(st.sampled_from(["VALID", "SAME_UPPER", "SAME_LOWER"]), st.tuples(*[st.integers(0, 2)] * 4)),
    ceil=st.booleans(),
    include=st.booleans(),
)
def test_pools(
    op: str,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pads: Any,
    ceil: bool,
    include: bool,
) -> None:
    if isinstance(pads, tuple):
        assume(all(p < k for p, k in zip(pads, kernel * 2, strict=True)))
    x = data(2, 3, *size)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": stride}
    attributes |= {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads, "ceil_mode": int(ceil)}
    if op == "AveragePool":
        attributes["count_include_pad"] = int(include)
    found = error(one_node(op, {"x": x}, {}, 19 if op == "AveragePool" else 12, **attributes), {"x": x})
    assert isinstance(found, float), found
    assert found < 1e-5


@settings(FEW, max_examples=200)
@given(
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    how=st.sampled_from(["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"]),
    rule=st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]),
    size=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    to=st.one_of(
        st.tuples(st.integers(1, 14), st.integers(1, 14)),
        st.tuples(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]), st.sampled_from([0.5, 0.8, 2.0, 2.5])),
    ),
)
def test_resize(mode: str, how: str, rule: str, size: tuple[int, int], to: tuple[Any, Any]) -> None:
    x = data(1, 2, *size)
    by_size = isinstance(to[0], int)
    stored = {"sizes": np.array([1, 2, *to], np.int64)} if by_size else {"scales": np.array([1, 1, *to], np.float32)}
    model = one_node(
        "Resize",
        {"x": x},
        stored,
        13,
        operands=["x", "", "", "sizes"] if by_size else ["x", "", "scales"],
        mode=mode,
        coordinate_transformation_mode=how,
        nearest_mode=rule,
    )
    found = error(model, {"x": x})
    if isinstance(found, str):
        assert "align_corners with scales" in found
        return
    assert found < 1e-4


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize(
    ("op", "gates", "attributes"),
    [
        ("LSTM", 4, {}),
        ("GRU", 3, {"linear_before_reset": 1}),
        ("GRU", 3, {"linear_before_reset": 0}),
        ("RNN", 1, {}),
        ("RNN", 1, {"activations": ["Relu"]}),
    ],
)
def test_recurrent_layers(op: str, gates: int, attributes: dict[str, Any], direction: str, states: bool) -> None:
    dirs, hidden, steps, batch = 2 if direction == "bidirectional" else 1, 5, 6, 3
    if "activations" in attributes:
        attributes = {"activations": attributes["activations"] * dirs}
    inputs = {"x": data(steps, batch, 4)}
    stored = {
        "w": data(dirs, gates * hidden, 4, seed=1),
        "r": data(dirs, gates * hidden, hidden, seed=2),
        "b": data(dirs, 2 * gates * hidden, seed=3),
    }
    operands = ["x", "w", "r", "b"]
    if states:
        inputs["h"] = data(dirs, batch, hidden, seed=4)
        operands += ["", "h"]
        if op == "LSTM":
            inputs["c"] = data(dirs, batch, hidden, seed=5)
            operands += ["c"]
    outputs = ["y", "y_h", "y_c"] if op == "LSTM" else ["y", "y_h"]
    model = one_node(op, inputs, stored, 14, outputs, operands, hidden_size=hidden, direction=direction, **attributes)
    found = error(model, inputs)
    assert isinstance(found, float), found
    assert found < 1e-5


@pytest.mark.parametrize(("axis", "opset"), [(0, 11), (1, 11), (2, 11), (1, 13), (-1, 13), (-1, 12)])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_took_all_later_axes_as_one_before_opset_13(op: str, axis: int, opset: int) -> None:
    x = data(2, 3, 4)
    found = error(one_node(op, {"x": x}, {}, opset, axis=axis), {"x": x})
    assert isinstance(found, float), found
    assert found < 1e-6


@pytest.mark.parametrize(
    ("op", "opset", "stored", "attributes"),
    [
        ("GlobalLpPool", 11, {}, {"p": 3}),
        ("Upsample", 9, {"s": np.array([1, 1, 2, 3], np.float32)}, {"mode": "nearest"}),
        ("Upsample", 9, {"s": np.array([1, 1, 2, 2], np.float32)}, {"mode": "linear"}),
        ("Clip", 6, {}, {"min": -0.5, "max": 0.25}),
        ("Slice", 9, {}, {"starts": [1, 0], "ends": [3, 2], "axes": [2, 3]}),
        ("Pad", 2, {}, {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "mode": "reflect"}),
        ("Pad", 2, {}, {"pads": [1, 0, 0, 0, 0, 2, 0, 0], "mode": "edge"}),
        ("Squeeze", 11, {}, {"axes": [0]}),
        ("Unsqueeze", 11, {}, {"axes": [0, 3]}),
        ("ReduceSum", 11, {}, {"axes": [1, -1], "keepdims": 0}),
        ("TopK", 1, {}, {"k": 2, "axis": 1}),
        ("Split", 11, {}, {"axis": 1, "split": [1, 2]}),
        ("Dropout", 7, {}, {}),
    ],
)
def test_attributes_of_old_opsets(op: str, opset: int, stored: dict[str, Any], attributes: dict[str, Any]) -> None:
    x = data(1, 3, 4, 5)
    outputs = ["y", "z"] if op in ("TopK", "Split") else ["y"]
    model = one_node(op, {"x": x}, stored, max(opset, 7), outputs, **attributes)
    found = error(model, {"x": x})
    assert isinstance(found, float), found
    assert found < 1e-5


def test_non_zero_is_known_or_refused() -> None:
    x = data(2, 3)
    node = "node 'it' (NonZero, opset 13): the size of its output depends on the data"
    assert error(one_node("NonZero", {"x": x}, {}, 13), {"x": x}) == node
    model = one_node("Add", {"x": x}, {"b": x}, 13)
    model.graph.node.insert(0, helper.make_node("NonZero", ["b"], ["z"]))
    model.graph.output.append(onnx.ValueInfoProto(name="z"))
    assert error(model, {"x": x}) == 0.0
