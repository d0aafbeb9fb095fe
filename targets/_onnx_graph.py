"""Edits of the exported ONNX graph that give ONNX Runtime the forms it has integer kernels for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgecompile.targets._onnx_light import keep_constants, shapes


class Graph:
    """An ONNX graph with its producers, consumers and constants looked up."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = model.graph
        self.producer = {o: n for n in self.proto.node for o in n.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.proto.node:
            for name in node.input:
                self.consumers[name].append(node)
        self.constants = {t.name: t for t in self.proto.initializer}
        self.outputs = {o.name for o in self.proto.output}
        self.inserted: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []

    def value(self, name: str) -> np.ndarray | None:
        """The constant of that name, None when it is computed, or set aside for its size."""
        stored = self.constants.get(name)
        if stored is None or stored.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(stored)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant under a name that is not taken yet."""
        base, count = name, 0
        while name in self.constants or name in self.producer:
            count += 1
            name = f"{base}_{count}"
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.proto.initializer.append(tensor)
        self.constants[name] = tensor
        return name

    def finish(self) -> None:
        """Place the inserted nodes, and drop nodes and constants that nobody reads any more."""
        before: dict[int, list[onnx.NodeProto]] = defaultdict(list)
        for node, anchor in self.inserted:
            before[id(anchor)].append(node)
        nodes = [n for old in self.proto.node for n in (*before[id(old)], old)]
        reads = Counter(name for n in nodes for name in n.input)
        for node in reversed(nodes):
            if not any(reads[o] or o in self.outputs for o in node.output):
                reads.subtract(node.input)
                node.op_type = ""
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes if n.op_type]
        del self.proto.node[:], self.proto.value_info[:]  # shapes may have changed
        self.proto.node.extend(kept)
        keep_constants(self.proto, {name for name, count in reads.items() if count > 0} | self.outputs)


def name_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Give the outputs their names; an inner value that has one of these names already gets another.

    torch.onnx's own `output_names` does not look, and writes a file in which one name stands for two values. A value
    that is returned twice, or is an input too, gets an Identity for each further name.
    """
    graph = model.graph
    given = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Identity" and n.output[0] in given]:
        graph.node.remove(node)  # what torch.onnx writes for an input that is returned: Identity of x, called x
    taken = (
        {o for n in graph.node for o in n.output} | {i.name for i in graph.input} | {t.name for t in graph.initializer}
    )
    old = [o.name for o in graph.output]
    renamed: dict[str, str] = {}
    for name in names:
        if name in taken and name not in old:
            renamed[name] = _free(f"{name}_value", taken)
    extra = []
    for index, (before, name) in enumerate(zip(old, names, strict=True)):
        if before == name:
            continue
        if before in given or before in old[:index]:
            extra.append(helper.make_node("Identity", [renamed.get(before, before)], [name], name=f"{name}_identity"))
        else:
            renamed[before] = name
    for node in graph.node:
        node.input[:] = [renamed.get(i, i) for i in node.input]
        node.output[:] = [renamed.get(o, o) for o in node.output]
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    for output, name in zip(graph.output, names, strict=True):
        output.name = name
    graph.node.extend(extra)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"{name}_"
    taken.add(name)
    return name


def pool_globally(model: onnx.ModelProto) -> None:
    """ReduceMean over all spatial axes with kept dimensions becomes GlobalAveragePool, which has an integer kernel."""
    found = shapes(model)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*found.value_info, *found.input)}
    graph = Graph(model)
    for node in graph.proto.node:
        axes_value = graph.value(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) == 2 else None
        if axes_value is None:
            continue
        flags = {a.name: a.i for a in node.attribute}
        rank = ranks.get(node.input[0], 0)
        axes = sorted(int(a) % max(rank, 1) for a in axes_value.ravel())
        if rank in (3, 4, 5) and axes == list(range(2, rank)) and flags.get("keepdims", 1) == 1:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    graph.finish()


def merge_quantization(model: onnx.ModelProto) -> None:
    """One QuantizeLinear for readers that round one tensor alike; none for integers that get the same scale again."""
    graph = Graph(model)

    def parameters(node: onnx.NodeProto) -> tuple[object, ...]:
        values = [graph.value(name) for name in node.input[1:]]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        return (axis, *((v.dtype.str, v.shape, v.tobytes()) if v is not None else None for v in values))

    first: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for node in graph.proto.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.output[0] in graph.outputs:
            continue
        if node.op_type == "QuantizeLinear":
            source = graph.producer.get(node.input[0])
            if source is not None and source.op_type == "DequantizeLinear" and parameters(source) == parameters(node):
                renamed[node.output[0]] = source.input[0]
                continue
            kept = first.setdefault((node.input[0], parameters(node)), node.output[0])
            if kept != node.output[0]:
                renamed[node.output[0]] = kept
    graph.finish()


def transpose_weights(model: onnx.ModelProto) -> None:
    """Transpose of a dequantized constant becomes dequantization of the transposed constant."""
    graph = Graph(model)
    for node in graph.proto.node:
        source = graph.producer.get(node.input[0]) if node.op_type == "Transpose" else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        stored = graph.value(source.input[0])
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        if stored is None or perm is None or sorted(perm) != list(range(stored.ndim)):
            continue
        axis = next((a.i for a in source.attribute if a.name == "axis"), 1) % stored.ndim
        name = graph.constant(f"{source.input[0]}_t", np.transpose(stored, perm))
        node.op_type = "DequantizeLinear"
        node.input[:] = [name, *source.input[1:]]
        del node.attribute[:]
        scale = graph.value(source.input[1])
        if scale is not None and scale.ndim == 1:
            node.attribute.append(helper.make_attribute("axis", perm.index(axis)))
    graph.finish()


def integer_bias(model: onnx.ModelProto) -> int:
    """Store the bias behind an integer matrix product as int32 at scale x_scale * w_scale; returns how many.

    ONNX Runtime's integer Gemm wants it so, and runs the layer in float (slower than never quantized) without it. The
    rounding is half a step of the int32 accumulator; a bias that would not fit 31 bits stays float.
    """
    graph = Graph(model)
    count = 0
    for node in list(graph.proto.node):
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        scale = _product_scale(graph, node)
        bias_of = _bias(graph, node)
        if scale is None or bias_of is None:
            continue
        holder, position = bias_of
        name = holder.input[position]
        bias = graph.value(name)
        if bias is None or bias.ndim != 1 or bias.dtype != np.float32:
            continue
        per_channel = np.broadcast_to(scale, bias.shape).astype(np.float64)
        steps = np.rint(bias / per_channel)
        if not np.all(np.abs(steps) < 2**31 - 1):
            continue
        parts = [
            graph.constant(f"{name}_int32", steps.astype(np.int32)),
            graph.constant(f"{name}_scale", per_channel.astype(np.float32)),
            graph.constant(f"{name}_zero_point", np.zeros(bias.shape, np.int32)),
        ]
        output = f"{parts[0]}_dequantized"
        dequantize = helper.make_node("DequantizeLinear", parts, [output], name=f"{parts[0]}_dequantize", axis=0)
        graph.inserted.append((dequantize, holder))
        holder.input[position] = output
        count += 1
    graph.finish()
    return count


def _product_scale(graph: Graph, node: onnx.NodeProto) -> np.ndarray | None:
    """x_scale * w_scale of a product of a dequantized activation and a dequantized constant, else None."""
    left, right = (graph.producer.get(name) for name in node.input[:2])
    if left is None or right is None or {left.op_type, right.op_type} != {"DequantizeLinear"}:
        return None
    if graph.value(right.input[0]) is None:
        return None
    x, w = graph.value(left.input[1]), graph.value(right.input[1])
    return None if x is None or w is None or x.size != 1 else np.asarray(x.reshape(()) * w.reshape(-1), np.float64)


def _bias(graph: Graph, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
    """The node and input that hold the bias of a product: Gemm itself, or the only Add behind a MatMul."""
    if node.op_type == "Gemm":
        return (node, 2) if len(node.input) == 3 else None
    users = graph.consumers[node.output[0]]
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    return users[0], 1 if users[0].input[0] == node.output[0] else 0


def tidy(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Strip what torch writes of the building machine (absolute source paths), and add our own metadata."""
    graph = model.graph
    for holder in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        kept = [(p.key, p.value) for p in holder.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
        del holder.metadata_props[:]
        for key, value in kept:
            holder.metadata_props.add(key=key, value=value)
        holder.doc_string = ""
    del graph.metadata_props[:], model.metadata_props[:]
    graph.name, model.doc_string = "edgecompile", ""
    model.producer_name, model.producer_version = "edgecompile", metadata.get("edgecompile", "")
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
