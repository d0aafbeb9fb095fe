"""What the DLA of an Orin runs, by the limits that NvInfer.h of TensorRT 10.3 documents for each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from onnx import helper

SUMS = ("Add", "Mul", "Sub", "Max", "Min")
"""Elementwise layers of two values, which the DLA reads at one scale."""


def why_not(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]], constants: dict[str, Any]) -> str | None:
    """What keeps a node off the DLA, None when nothing does."""
    rule = _RULES.get(node.op_type)
    if rule is None:
        return "the DLA has no such layer"
    sizes = [shapes[n] for n in (*node.input, *node.output) if n in shapes and n not in constants]
    if any(len(s) != 4 for s in sizes):
        return "the DLA takes images (4 axes) only"
    if any(s[0] > 4096 or any(d > 8192 for d in s[1:]) for s in sizes):
        return "an axis is over 8192 (the batch over 4096)"
    return rule(node, {a.name: helper.get_attribute_value(a) for a in node.attribute}, shapes, constants)


Rule = Callable[[onnx.NodeProto, dict[str, Any], dict[str, tuple[int, ...]], dict[str, Any]], str | None]


def _within(name: str, values: Any, low: int, high: int) -> str | None:
    wrong = [int(v) for v in values if not low <= int(v) <= high]
    return f"{name} {wrong[0]} is outside {low} to {high}" if wrong else None


def _conv(
    node: onnx.NodeProto, given: dict[str, Any], shapes: dict[str, tuple[int, ...]], constants: Any
) -> str | None:
    if node.input[1] not in constants:
        return "its weight is computed"
    weight = constants[node.input[1]]
    kernel = weight.shape[2:]
    pads = given.get("pads", [0] * 4)
    if any(p >= k for p, k in zip(pads, [*kernel, *kernel], strict=True)):
        return "its padding is not less than its kernel"
    return (
        _within("kernel", kernel, 1, 32)
        or _within("stride", given.get("strides", []), 1, 8)
        or _within("padding", pads, 0, 31)
        or _within("dilation", given.get("dilations", []), 1, 32)
        or _within("output channels", weight.shape[:1], 1, 8192)
    )


def _deconv(
    node: onnx.NodeProto, given: dict[str, Any], shapes: dict[str, tuple[int, ...]], constants: Any
) -> str | None:
    if node.input[1] not in constants:
        return "its weight is computed"
    if given.get("group", 1) != 1:
        return "a transposed convolution has groups"
    if any(given.get("pads", [])) or any(given.get("output_padding", [])):
        return "a transposed convolution has padding"
    if any(d != 1 for d in given.get("dilations", [])):
        return "a transposed convolution has dilation"
    kernel = constants[node.input[1]].shape[2:]
    return _within("kernel", kernel, 1, 32) or _within("stride", given.get("strides", []), 1, 32)


def _pool(
    node: onnx.NodeProto, given: dict[str, Any], shapes: dict[str, tuple[int, ...]], constants: Any
) -> str | None:
    if given.get("ceil_mode", 0) or any(d != 1 for d in given.get("dilations", [])):
        return "a pool rounds its size up or has dilation"
    return (
        _within("window", given["kernel_shape"], 1, 8)
        or _within("stride", given.get("strides", []), 1, 16)
        or _within("padding", given.get("pads", []), 0, 7)
    )


def _sum(node: onnx.NodeProto, given: dict[str, Any], shapes: dict[str, tuple[int, ...]], constants: Any) -> str | None:
    sizes = {shapes.get(n) for n in node.input if n not in constants}
    return None if len(sizes) == 1 else "its inputs differ in shape"


def _concat(
    node: onnx.NodeProto, given: dict[str, Any], shapes: dict[str, tuple[int, ...]], constants: Any
) -> str | None:
    axis = given.get("axis", 0) % len(shapes.get(node.output[0], (0, 0, 0, 0)))
    if len(node.input) < 2 or any(n in constants for n in node.input):
        return "it joins a constant, or one value alone"
    return None if axis == 1 else "it joins another axis than the channels"


def _softmax(
    node: onnx.NodeProto, given: dict[str, Any], shapes: dict[str, tuple[int, ...]], constants: Any
) -> str | None:
    size = shapes.get(node.input[0], ())
    axis = given.get("axis", -1) % len(size)
    if axis == 0:
        return "it runs over the batch"
    others = [d for i, d in enumerate(size) if i not in (0, axis)]
    return _within("softmax axis", [size[axis]], 1, 8192 if all(d == 1 for d in others) else 1024)


def _resize(
    node: onnx.NodeProto, given: dict[str, Any], shapes: dict[str, tuple[int, ...]], constants: Any
) -> str | None:
    old, new = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    if len(old) != 4 or old[:2] != new[:2] or any(b % a for a, b in zip(old[2:], new[2:], strict=True)):
        return "its scale is not a whole number"
    mode = given.get("mode", b"nearest")
    if mode not in (b"nearest", b"linear"):
        return f"its mode is {mode.decode()}"
    ratios = [b // a for a, b in zip(old[2:], new[2:], strict=True)]
    return _within("scale", ratios, 1, 32 if mode == b"nearest" else 4)


def _clip(
    node: onnx.NodeProto, given: dict[str, Any], shapes: dict[str, tuple[int, ...]], constants: Any
) -> str | None:
    low = constants.get(node.input[1]) if len(node.input) > 1 else None
    return None if low is not None and float(low) == 0 else "it clamps below anything but 0"


def _always(
    node: onnx.NodeProto, given: dict[str, Any], shapes: dict[str, tuple[int, ...]], constants: Any
) -> str | None:
    return None


_RULES: dict[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _deconv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    **dict.fromkeys(SUMS, _sum),
    "Concat": _concat,
    "Softmax": _softmax,
    "Resize": _resize,
    "Clip": _clip,
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "LeakyRelu", "BatchNormalization", "Abs"), _always),
}
