"""Valid model files of every kind, made by the libraries that own the formats, and ways to change them."""

from __future__ import annotations

import io
import json
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn


class Small(nn.Module):
    """A net with tied weights, buffers of several dtypes, and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.head.weight
        self.register_buffer("scale", torch.arange(4.0))
        self.register_buffer("table", torch.ones(3, dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)).mean((2, 3)) * self.scale
        return self.tied(self.head(y)) + torch.tensor([1.0, 2.0, 3.0, 4.0])


class Shapes(nn.Module):
    """A net whose sizes need arithmetic and guards, and whose interface is nested."""

    def forward(self, x: torch.Tensor, y: torch.Tensor, *, k: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        a = (x[:, : x.shape[1] // 2].sum() + y.sum()).reshape(1) + k[0]
        return {"a": a, "b": x.reshape(x.shape[0] * x.shape[1])[::2]}


def state_dict() -> dict[str, Any]:
    """A state dict with bf16, int8, tied and non-contiguous tensors, and entries that are none."""
    return {
        **Small().state_dict(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "view": torch.arange(6.0).reshape(2, 3).t(),
        "parameter": nn.Parameter(torch.ones(2)),
        "small": torch.tensor([1, 2], dtype=torch.uint16),
        "epoch": 3,
        "size": torch.Size([2]),
    }


def saved(value: object, **options: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def exported(folder: Path) -> dict[str, bytes]:
    """Two `.pt2` files: a dynamic batch with constants, and guards with a nested interface."""
    batch, dynamic = torch.export.Dim("batch", min=1), torch.export.Dim.DYNAMIC
    one = torch.export.export(Small().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    two = torch.export.export(
        Shapes().eval(),
        (torch.randn(4, 8), torch.randn(8, 8)),
        {"k": [torch.ones(1), None]},
        dynamic_shapes={"x": {0: batch, 1: dynamic}, "y": {0: 2 * batch}, "k": [{}, None]},
    )
    torch.export.save(one, folder / "one.pt2")
    torch.export.save(two, folder / "two.pt2", extra_files={"labels.txt": "cat"})
    return {name: (folder / f"{name}.pt2").read_bytes() for name in ("one", "two")}


def onnx_model(**options: Any) -> onnx.ModelProto:
    """A small convolution net with a subgraph, a Constant node and an int64 initialiser."""
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    shape = numpy_helper.from_array(np.array([0, 4], np.int64), "shape")
    flag = helper.make_tensor("flag", TensorProto.BOOL, [], [True])
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(operator, ["pooled"], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name, operator in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["pooled"]),
        helper.make_node("If", ["flag"], ["chosen"], **branches),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(4, np.float32))),
        helper.make_node("Reshape", ["chosen", "shape"], ["r"]),
        helper.make_node("Add", ["r", "k"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "net", [x], [y], [weight, shape, flag])
    opsets = options.pop("opset_imports", [helper.make_opsetid("", 18)])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=options.pop("ir_version", 10))
    onnx.checker.check_model(model)
    return model


def external_model(folder: Path, entries: Mapping[str, str], **tensor: Any) -> Path:
    """`model.onnx` in `folder` whose one weight (4 floats) has these external data entries."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    other = tensor.pop("also", None)
    weights = [weight]
    if other is not None:
        second = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in other.items():
            second.external_data.add(key=key, value=value)
        weights.append(second)
    return write(folder / "model.onnx", graph_of([helper.make_node("Relu", ["w"], ["y"])], weights))


def graph_of(nodes: list[onnx.NodeProto], weights: list[TensorProto] | None = None) -> bytes:
    """A model of these nodes, unchecked."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [], [y], weights or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


def write(path: Path, data: bytes) -> Path:
    """Write and return the path."""
    path.write_bytes(data)
    return path


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    """The members of a zip file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def replaced(data: bytes, suffix: str, change: Callable[[bytes], bytes | None]) -> bytes:
    """The zip file with the member that ends in `suffix` changed, or dropped where that gives None."""
    members = unzipped(data)
    name = next(name for name in members if name.endswith(suffix))
    new = change(members.pop(name))
    return zipped(members | ({} if new is None else {name: new}))


def edited(data: bytes, change: Callable[[Any], object], suffix: str = "models/model.json") -> bytes:
    """The zip file with a JSON member edited in place."""

    def apply(text: bytes) -> bytes:
        value = json.loads(text)
        change(value)
        return json.dumps(value).encode()

    return replaced(data, suffix, apply)


def added(data: bytes, name: str, content: bytes = b"x") -> bytes:
    """The zip file with one more member below its root."""
    members = unzipped(data)
    root = next(iter(members)).partition("/")[0]
    return zipped(members | {f"{root}/{name}": content})


def soon(start: float) -> bool:
    """Whether a hostile file was dealt with in bounded processor time since `start`; True under a slow tracer.

    Files are made so that a reader without bounds would take minutes; ten seconds leave room for a slow machine.
    """
    return sys.gettrace() is not None or time.process_time() - start < 10


class Touch:
    """Pickles to a call that writes a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (f"touch '{self.marker}'",)
