"""Take ONNX Runtime's own optimised graph apart into one-node models, without ever running it."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompile.errors import InputError
from edgecompile.hostcost import runtime
from edgecompile.hostcost.runtime import DTYPES, ELEMENTS, Array

if TYPE_CHECKING:
    import onnx

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
"""Operators that only rename memory inside a graph."""
_TABLES = frozenset({"Gather", "GatherElements", "GatherND", "EmbedLayerNormalization"})
_POSITIVE = frozenset({"Sqrt", "Log", "Pow", "Reciprocal"})


@dataclass(frozen=True)
class Tensor:
    """Shape and ONNX element type of one operand; `value` is what a small constant holds."""

    shape: tuple[int, ...]
    number: int
    constant: bool = False
    value: bytes | None = field(default=None, repr=False)

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return math.prod(self.shape) * DTYPES[self.number].itemsize


@dataclass(frozen=True)
class Cut:
    """One node with all that decides how long it takes; the same `key` takes the same time.

    `reads` and `writes` are the names of its tensors in the graph. `same` has, per operand, the place of the first
    operand that is the same tensor. `view`: it only renames memory.
    """

    name: str
    op: str
    domain: str
    attributes: Mapping[str, Any]
    operands: tuple[Tensor | None, ...]
    results: tuple[Tensor | None, ...]
    same: tuple[int, ...]
    opsets: tuple[tuple[str, int], ...]
    proto: bytes = field(repr=False)
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    view: bool = False

    @property
    def weight_bytes(self) -> int:
        """Bytes of constants that are read whole; of a table that is gathered from, none."""
        if self.op in _TABLES:
            return 0
        return sum(t.size_bytes for t in self.operands if t is not None and t.constant)

    @property
    def in_bytes(self) -> int:
        """Bytes of the computed operands, each once."""
        parts = [t.size_bytes for i, t in enumerate(self.operands) if t and not t.constant and self.same[i] == i]
        return sum(parts)

    @property
    def out_bytes(self) -> int:
        """Bytes of the results."""
        return sum(t.size_bytes for t in self.results if t is not None)

    @property
    def key(self) -> str:
        """Digest of operator, version, attributes, shapes and element types, and of constants that choose the work."""
        version = dict(self.opsets).get(self.domain, 0)
        parts: list[object] = [self.domain, self.op, version, sorted((k, repr(v)) for k, v in self.attributes.items())]
        for index, tensor in enumerate(self.operands):
            parts.append(tensor and (tensor.shape, tensor.number, tensor.constant, self._chosen(tensor)))
            parts.append(self.same[index])
        parts.append([t and (t.shape, t.number) for t in self.results])
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]

    def _chosen(self, tensor: Tensor) -> object:
        """Scales and addends take the same time whatever they are; axes, shapes and exponents do not."""
        if tensor.value is None:
            return None
        if tensor.number in (6, 7) and len(tensor.value) <= 128:
            return tensor.value
        if self.op == "Pow":
            return tensor.value
        return any(tensor.value) if tensor.number in (2, 3) and len(tensor.value) == 1 else None

    def describe(self) -> str:
        """`Conv 1x64x14x14 64x64x3x3` for a table that people read."""
        shapes = ["x".join(map(str, t.shape)) for t in self.operands if t is not None and t.shape]
        return " ".join([self.op, *shapes[:3]])

    def model(self) -> tuple[bytes, dict[str, Array]]:
        """The node alone as an ONNX model with constants of our own making, and the values to feed."""
        import onnx
        from onnx import helper, numpy_helper

        node = onnx.NodeProto.FromString(self.proto)
        node.name = "node"
        feed: dict[str, Array] = {}
        inputs, constants = [], []
        for index, tensor in enumerate(self.operands):
            if tensor is None:
                continue
            node.input[index] = name = f"x{self.same[index]}"
            if self.same[index] != index:
                continue
            value = self._value(index, tensor)
            if tensor.constant:
                constants.append(numpy_helper.from_array(value, name))
            else:
                inputs.append(helper.make_tensor_value_info(name, tensor.number, tensor.shape))
                feed[name] = value
        outputs = []
        for index, result in enumerate(self.results):
            if result is not None:
                node.output[index] = f"y{index}"
                outputs.append(onnx.ValueInfoProto(name=f"y{index}"))
        graph = helper.make_graph([node], "cut", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in self.opsets])
        model.ir_version = 10
        return model.SerializeToString(), feed

    def _value(self, index: int, tensor: Tensor) -> Array:
        if tensor.value is not None:
            return np.frombuffer(tensor.value, DTYPES[tensor.number]).reshape(tensor.shape).copy()
        first = self.operands[0]
        largest = None
        if self.op in _TABLES and index and first is not None and first.shape:
            largest = first.shape[int(self.attributes.get("axis", 0))] if self.op != "GatherND" else 1
        return runtime.made_up(tensor.shape, tensor.number, largest, self.op in _POSITIVE)


def take_apart(model: Path, threads: int = 1) -> list[Cut]:
    """The nodes of the graph that ONNX Runtime makes of an ONNX file, in its order.

    ONNX Runtime infers the shapes and folds constants; the network itself is not run. Shapes must be fixed, and every
    node must stand on its own: control flow, sequences and operators of unknown libraries are an InputError.
    """
    import onnx

    if not model.is_file():
        raise InputError(f"{model}: no such file; give an ONNX file")
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as folder:
        out = Path(folder) / "optimised.onnx"
        runtime.save_optimised(model, out, threads)
        optimised = onnx.load(str(out), load_external_data=False)
        tensors = _tensors(model.name, optimised, out)
    graph = optimised.graph
    border = {i.name for i in graph.input} | {o.name for o in graph.output}
    opsets = tuple((o.domain, o.version) for o in optimised.opset_import)
    refused = [f"{n.name or n.op_type} ({n.op_type}): {why}" for n in graph.node if (why := _refusal(n, tensors))]
    if refused:
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise InputError(
            f"{model.name}: cannot be priced node by node: {'; '.join(refused[:5])}{more}; time the whole model instead"
        )
    return [_cut(node, index, tensors, border, opsets) for index, node in enumerate(graph.node)]


def _refusal(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> str:
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        return "control flow"
    unknown = [name for name in (*node.input, *node.output) if name and name not in tensors]
    return f"{unknown[0]} has no fixed shape" if unknown else ""


def _cut(
    node: onnx.NodeProto, index: int, tensors: Mapping[str, Tensor], border: set[str], opsets: Sequence[tuple[str, int]]
) -> Cut:
    from onnx import helper

    names = list(node.input)
    used = {node.domain, "", "com.microsoft"}
    attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}
    return Cut(
        name=node.name or f"{node.op_type}_{index}",
        op=node.op_type,
        domain=node.domain,
        attributes=attributes,
        operands=tuple(tensors[n] if n else None for n in names),
        results=tuple(tensors[n] if n else None for n in node.output),
        same=tuple(names.index(n) for n in names),
        opsets=tuple((d, v) for d, v in opsets if d in used),
        proto=node.SerializeToString(),
        reads=tuple(names),
        writes=tuple(node.output),
        view=node.op_type in VIEWS and not border.intersection([*names, *node.output]),
    )


def _plain(value: Any) -> Any:
    if hasattr(value, "SerializeToString"):
        return value.SerializeToString(deterministic=True)
    return list(value) if isinstance(value, (list, tuple)) or type(value).__name__.startswith("Repeated") else value


def _tensors(name: str, model: onnx.ModelProto, path: Path) -> dict[str, Tensor]:
    """Every tensor of an optimised graph by name: constants from the file, the rest as ONNX Runtime infers them."""
    import onnx
    from onnx import numpy_helper

    found: dict[str, Tensor] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type not in DTYPES:
            continue
        small = tensor.data_location != onnx.TensorProto.EXTERNAL
        value = np.ascontiguousarray(numpy_helper.to_array(tensor)).tobytes() if small else None
        found[tensor.name] = Tensor(tuple(tensor.dims), tensor.data_type, True, value)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.output[:], bare.graph.value_info[:]
    bare.graph.output.extend(onnx.ValueInfoProto(name=o) for n in bare.graph.node for o in n.output if o)
    whole = path.with_name("whole.onnx")
    whole.write_bytes(bare.SerializeToString())
    live = runtime.session(whole, settings={"session.disable_prepacking": "1"})
    for value in live.get_inputs():
        element = value.type.removeprefix("tensor(").removesuffix(")")
        if value.name not in found and (element not in ELEMENTS or not all(isinstance(d, int) for d in value.shape)):
            raise InputError(
                f"{name}: input {value.name} is {value.type} of shape {value.shape}; export it with fixed shapes"
            )
    for value in (*live.get_inputs(), *live.get_outputs()):
        element = value.type.removeprefix("tensor(").removesuffix(")")
        if element in ELEMENTS and all(isinstance(d, int) for d in value.shape):
            found.setdefault(value.name, Tensor(tuple(value.shape), ELEMENTS[element][0]))
    return found


def time_alone_us(cut: Cut, threads: int, budget_s: float = 0.006) -> float:
    """Warm microseconds of a run of a node on its own."""
    model, feed = cut.model()
    live = runtime.session(model, threads)
    try:
        call = runtime.bound(live, feed)
    except Exception as error:  # the runtime's exceptions share no base class of its own
        text = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{cut.name} ({cut.op}): does not run alone on made-up values: {text}; time the whole model instead"
        ) from None
    return runtime.typical_us(call, threads, budget_s)
