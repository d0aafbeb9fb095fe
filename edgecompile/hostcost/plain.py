"""Write small plain ONNX models, in float or with Q/DQ around what has an integer kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompile.hostcost.runtime import Array, made_up

if TYPE_CHECKING:
    import onnx

_OPSET = 20
_SCALE, _ZERO = np.float32(0.02), np.uint8(128)


class Plain:
    """An ONNX graph under construction; values are named as they come.

    Constants of one shape are made to differ: the runtime would store equal ones once.
    """

    def __init__(self, integer: bool = False) -> None:
        self.integer = integer
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}

    def node(self, op: str, inputs: Sequence[str], results: int = 1, **fields: Any) -> str:
        """Add a node; the name of its first result."""
        from onnx import helper

        names = [f"n{len(self._nodes)}_{i}" for i in range(results)]
        self._nodes.append(helper.make_node(op, list(inputs), names, **fields))
        return names[0]

    def constant(self, value: Array) -> str:
        """Add a constant."""
        name = f"c{len(self._constants)}"
        self._constants[name] = np.roll(value, 7 * len(self._constants) + 1) if value.size > 1024 else value
        return name

    def value(self, *shape: int) -> str:
        """Add floats of a shape."""
        return self.constant(made_up(shape, 1))

    def rounded(self, name: str) -> str:
        """The value behind Q and DQ where the graph is integer."""
        if not self.integer:
            return name
        scale, zero = self.constant(np.asarray(_SCALE)), self.constant(np.asarray(_ZERO))
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [name, scale, zero]), scale, zero])

    def weight(self, *shape: int, axis: int = 0) -> str:
        """Weights, stored as signed bytes per channel of `axis` where the graph is integer."""
        if not self.integer:
            return self.value(*shape)
        count = shape[axis]
        parts = (made_up(shape, 3), np.full(count, 0.01, np.float32), np.zeros(count, np.int8))
        return self.node("DequantizeLinear", [self.constant(p) for p in parts], axis=axis)

    def bias(self, count: int) -> str:
        """A bias of convolutions and Gemm."""
        if not self.integer:
            return self.value(count)
        scale = np.full(count, 0.01 * float(_SCALE), np.float32)
        parts = (np.zeros(count, np.int32), scale, np.zeros(count, np.int32))
        return self.node("DequantizeLinear", [self.constant(p) for p in parts], axis=0)

    def conv(
        self, data: str, inner: int, outer: int, kernel: int, stride: int = 1, group: int = 1, fused: bool = False
    ) -> str:
        """A padded convolution and, in float, a Relu: in integers a zero point of 128 would keep the layer in float.

        `fused` adds a pointwise convolution of the same data, as a shortcut does.
        """
        weight = self.weight(outer, inner // group, kernel, kernel)
        shape: dict[str, Any] = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "strides": [stride] * 2}
        out = self.node("Conv", [data, weight, self.bias(outer)], **shape, group=group)
        if fused:
            short = self.node("Relu", [self.node("Conv", [data, self.weight(outer, inner, 1, 1)])])
            out = self.node("Add", [short, out])
        return self.rounded(out if self.integer else self.node("Relu", [out]))

    def product(self, data: str, inner: int, outer: int) -> str:
        """A product with constant weights."""
        return self.rounded(self.node("MatMul", [data, self.weight(inner, outer, axis=1)]))

    def model(self, inputs: Mapping[str, tuple[int, ...]], outputs: Sequence[str]) -> bytes:
        """The whole as bytes of an ONNX file with float inputs."""
        import onnx
        from onnx import helper, numpy_helper

        graph = helper.make_graph(
            self._nodes,
            "plain",
            [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in self._constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
        model.ir_version = 10
        data: bytes = model.SerializeToString()
        return data
