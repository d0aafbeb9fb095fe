"""What a Core ML model takes and gives beside what the program does: numbers become vectors, booleans integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgecompile.program import Program, op_name
from edgecompile.rewrite import argument, layer
from edgecompile.silence import silenced
from edgecompile.targets._coreml_compressed import marked, register
from edgecompile.targets._coreml_image import to_bytes
from edgecompile.targets._coreml_shapes import Shapes, free

aten = torch.ops.aten
INTERFACE_KEY = "edgecompile.interface"
"""Where the package's user-defined metadata keeps what `interface` gives."""
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_PLAIN = {
    getattr(getattr(aten, f"__{name}__"), kind): getattr(getattr(aten, f"bitwise_{name}"), kind)
    for name in ("and", "or", "xor")
    for kind in ("Tensor", "Scalar")
}
"""Python's operators, which coremltools takes for operators in place."""
_POOLS = (
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool3d.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
)
_SURE = {
    *(aten.conv1d.default, aten.conv2d.default, aten.linear.default, aten.batch_norm.default, aten.layer_norm.default),
    *(aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.silu.default, aten.sigmoid.default),
    *(aten.hardswish.default, aten.hardsigmoid.default, aten.gelu.default, aten.tanh.default, aten.softmax.int),
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.matmul.default, aten.embedding.default),
    *(aten.scaled_dot_product_attention.default, aten.max_pool2d.default, aten.adaptive_avg_pool2d.default),
    *(aten.mean.dim, aten.cat.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default),
    *(aten.transpose.int, aten.unsqueeze.default, aten.select.int, aten.slice.Tensor, aten.index.Tensor),
    *(aten._to_copy.default, aten.__and__.Tensor),
}
"""Operators with a Core ML form whatever their arguments, up to so many axes and in these types."""
_SURE_AXES = 5
_SURE_DTYPES = (torch.float32, torch.int64, torch.int32, torch.bool)
_CORE = {"float32": "float32", "float16": "float32", "bfloat16": "float32"}


def bounded(program: Program) -> tuple[Program, dict[str, Any]]:
    """A program that Core ML can take, and how the two interfaces map: inputs and outputs with name, dtype and shape.

    Core ML knows no numbers without axes, no booleans and no 64-bit integers at its border, an output must be computed,
    and no two have the same name. An output of the program that is an input has `input` instead of `core`.
    """
    program = program.clone()
    graph = program.graph.graph
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    returned, names = list(program.outputs()), list(program.output_names)
    examples, given = list(program.inputs), []
    for i, (node, example) in enumerate(zip(placeholders, program.inputs, strict=True)):
        given.append(_entry(str(node.target), example, {"core": str(node.target)}))
        examples[i] = _input(graph, node, example)
    taken = {str(n.target) for n in placeholders}
    made: dict[fx.Node, str] = {}
    gives = []
    for node, name in zip(returned, names, strict=True):
        if node in placeholders:
            where = {"input": str(node.target)}
        else:
            where = {"core": made.setdefault(node, _free(name, taken))}
            taken.add(where["core"])
        gives.append(_entry(name, node.meta["val"], where))
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    output.args = (tuple(_output(graph, output, node) for node in made),)
    program.graph.recompile()
    changed = dataclasses.replace(program, inputs=tuple(examples), output_names=tuple(made.values()))
    return changed, {"inputs": given, "outputs": gives}


def decomposed(program: Program, shapes: Shapes = ()) -> ExportedProgram:
    """The program in operators that coremltools knows, others taken apart as far as torch can.

    Compressed weights have become markers, and the axes in which `shapes` differ are free.
    """
    program = marked(program)
    with silenced(stderr=True), torch.no_grad():
        exported: ExportedProgram = free(program, shapes) if shapes else program.exported()
        exported = exported.run_decompositions({})
        for node in exported.graph.nodes:
            node.target = _PLAIN.get(node.target, node.target) if node.op == "call_function" else node.target
        known: dict[Any, Any] = {**torch._decomp.decomposition_table}
        known |= dict(torch.export.default_decompositions().items())  # type: ignore[no-untyped-call]
        for _ in range(3):
            table = {n.target: known[n.target] for n in _unknown(exported) if n.target in known}
            if not table:
                break
            exported = exported.run_decompositions(table)
    for node in exported.graph.nodes:
        if node.target in _POOLS and len(node.args) == 2:
            node.args = (*node.args, node.args[1])  # coremltools reads no stride as an error
    return exported


def plain(program: Program) -> bool:
    """Whether a program is made of nothing that Core ML could refuse: it need not be taken apart to see it."""
    for node in program.graph.graph.nodes:
        if node.op != "call_function":
            continue
        if (
            node.target not in _SURE
            or node.meta["val"].dim() > _SURE_AXES
            or node.meta["val"].dtype not in _SURE_DTYPES
        ):
            return False
    return True


def without_form(exported: ExportedProgram) -> list[fx.Node]:
    """The nodes that coremltools has no translation for."""
    unknown = _unknown(exported)
    return [n for n in exported.graph.nodes if n in unknown or _longer_output(n)]


def _unknown(exported: ExportedProgram) -> set[fx.Node]:
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as registry

    register()
    called = [n for n in exported.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    return {n for n in called if n.target._schema.returns and registry.get_func(n.target.name()) is None}


def _longer_output(node: fx.Node) -> bool:
    """A transposed convolution with output padding but no padding: coremltools' translation ends in an error."""
    transposed = node.target in _TRANSPOSED
    return transposed and any(argument(node, "output_padding")) and not any(argument(node, "padding"))


def place(node: fx.Node) -> str:
    """Layer, operator and teacher's node, for a reason: `head.fc: linear (linear_3)`."""
    return f"{layer(node)}: {op_name(node)} ({node.meta.get('custom', {}).get('origin', node.name)})"


def core_dtype(dtype: str) -> str:
    """What Core ML's border holds for a torch dtype: float32 or int32."""
    return _CORE.get(dtype, "int32")


def to_core(interface: Mapping[str, Any], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The program's inputs as the package takes them, by name."""
    found = {}
    for entry, value in zip(interface["inputs"], inputs, strict=True):
        value = value.detach().reshape(value.shape or (1,))
        value = to_bytes(entry["image"], value) if "image" in entry else value
        found[entry["core"]] = value.to(getattr(torch, core_dtype(entry["dtype"])))
    return found


def from_core(
    interface: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """The package's outputs as the program gives them, in order."""
    taken = {entry["name"]: value for entry, value in zip(interface["inputs"], inputs, strict=True)}
    found = []
    for entry in interface["outputs"]:
        value = taken[entry["input"]] if "input" in entry else outputs[entry["core"]]
        value = value.to(getattr(torch, entry["dtype"]))
        found.append(value if interface.get("shapes") else value.reshape(entry["shape"]))
    return tuple(found)


def _entry(name: str, value: Tensor, where: Mapping[str, str]) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.")
    return {"name": name, "dtype": dtype, "shape": [int(n) for n in value.shape], **where}


def _input(graph: fx.Graph, node: fx.Node, example: Tensor) -> Tensor:
    """Let the users of an input read it behind what turns Core ML's form into the program's; the new example."""
    users, value = list(node.users), node
    if example.dtype == torch.bool:
        with graph.inserting_after(value):
            value = graph.call_function(aten.ne.Scalar, (value, 0))
        example = example.to(torch.int32)
    if not example.dim():
        with graph.inserting_after(value):
            value = graph.call_function(aten.reshape.default, (value, []))
        example = example.reshape(1)
    for user in users:
        user.replace_input_with(node, value)
    return example


def _output(graph: fx.Graph, output: fx.Node, node: fx.Node) -> fx.Node:
    value: Tensor = node.meta["val"]
    with graph.inserting_before(output):
        if value.dtype == torch.bool:
            node = graph.call_function(aten.to.dtype, (node, torch.int32))
        if not value.dim():
            node = graph.call_function(aten.reshape.default, (node, [1]))
    return node


def _free(name: str, taken: set[str]) -> str:
    """The name itself, or with a number behind it where an input or another output has it."""
    found, count = name, 1
    while found in taken:
        found, count = f"{name}_out{count if count > 1 else ''}", count + 1
    return found
