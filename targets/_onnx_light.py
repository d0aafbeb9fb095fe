"""What onnx's tools need of a model, without the numbers of its large weights, which they copy several times."""

from __future__ import annotations

import math
from collections.abc import Set

import onnx

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
_LARGE = 1 << 14
"""Numbers of a weight from which these tools do without its numbers."""
_PRODUCTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "Gather": (0,)}
"""Operators, and those of their inputs whose numbers no simplification looks at; it merges matrices of MatMul."""


def shapes(model: onnx.ModelProto, **options: bool) -> onnx.GraphProto:
    """The graph with every shape that onnx's `infer_shapes` finds, and large weights without their numbers."""
    light = _without(model, {t.name for t in model.graph.initializer if _large(t)})
    return onnx.shape_inference.infer_shapes(light, **options).graph


def with_shapes(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """The same model, with the shapes of its values and outputs written into it."""
    found = shapes(model, **options)
    del model.graph.output[:], model.graph.value_info[:]
    model.graph.output.extend(found.output)
    model.graph.value_info.extend(found.value_info)
    return model


def simplify(model: onnx.ModelProto, notes: list[str]) -> None:
    """Simplify a model in place with onnxsim; a note where its result does not check and is not used.

    Large weights that only products read are inputs of the model that onnxsim sees.
    """
    import onnxsim

    graph = model.graph
    aside = _only_multiplied(graph)
    light = _without(model, aside)
    for stored in list(light.graph.initializer):
        if stored.name in aside:
            light.graph.input.append(onnx.helper.make_tensor_value_info(stored.name, stored.data_type, stored.dims))
            light.graph.initializer.remove(stored)
    simplified, same = onnxsim.simplify(light)
    if not same:
        notes.append("onnxsim's result differed from its input and was not used")
        return
    keep_constants(graph, aside)
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend(simplified.graph.node)
    graph.output.extend(simplified.graph.output)
    graph.value_info.extend(simplified.graph.value_info)
    graph.initializer.extend(simplified.graph.initializer)
    keep_constants(graph, {i for n in graph.node for i in n.input} | {o.name for o in graph.output})
    del model.opset_import[:], model.functions[:]
    model.opset_import.extend(simplified.opset_import)
    model.functions.extend(simplified.functions)


def checked(model: onnx.ModelProto, full: bool = True) -> bytes:
    """The file of a model that onnx's checker has passed; the same model gives the same bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    onnx.checker.check_model(content, full_check=full)
    return content


def keep_constants(graph: onnx.GraphProto, read: Set[str]) -> None:
    """Drop the constants that nobody reads; the others are not copied, since a model's memory is freed as a whole."""
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def _without(model: onnx.ModelProto, aside: Set[str]) -> onnx.ModelProto:
    """A copy whose weights of these names have type and shape alone."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph, own = light.graph, model.graph
    graph.name = own.name
    graph.node.extend(own.node)
    graph.input.extend(own.input)
    graph.output.extend(own.output)
    graph.value_info.extend(own.value_info)
    for stored in own.initializer:
        if stored.name in aside:
            graph.initializer.add(name=stored.name, data_type=stored.data_type, dims=stored.dims)
        else:
            graph.initializer.append(stored)
    return light


def _large(stored: onnx.TensorProto) -> bool:
    return stored.data_type not in _INTEGERS and math.prod(stored.dims) >= _LARGE


def _only_multiplied(graph: onnx.GraphProto) -> set[str]:
    """Large weights that only products with computed values read."""
    aside = {t.name for t in graph.initializer if _large(t)} - {o.name for o in graph.output}
    constants = {t.name for t in graph.initializer}
    for node in graph.node:
        places = _PRODUCTS.get(node.op_type, ())
        computed = any(name not in constants for name in node.input)
        for at, name in enumerate(node.input):
            if name in aside and not (at in places and computed):
                aside.discard(name)
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            return set()  # a graph inside may read any of them
    return aside
