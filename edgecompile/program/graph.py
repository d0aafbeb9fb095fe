"""The graph under a Program: exporting, unlifting, tied weights, dead code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from edgecompile.errors import InputError
from edgecompile.functional import acts, functional, loosen_views, number_paddings, restore_batch_norm
from edgecompile.silence import silenced

DynamicShapes = tuple[Mapping[int, str], ...]
"""One mapping an input: axis number to the name of its symbol, e.g. `({0: "batch"}, {0: "batch"})`."""

BATCH = "batch"


def attribute(module: nn.Module, name: str) -> Any:
    """The attribute at a dotted path below `module`."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


@contextmanager
def quiet_export() -> Iterator[None]:
    """Keep torch from logging a traceback, or printing half a graph, for an error that is raised anyway."""
    loggers = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch._dynamo")
    with silenced(*loggers, stderr=True):
        yield


def export(
    model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], shapes: DynamicShapes | None
) -> ExportedProgram:
    dims = {name: Dim(name, min=1) for axes in shapes or () for name in axes.values()}
    specs = [{axis: dims[name] for axis, name in axes.items()} for axes in shapes or ()]
    dynamic: Any = None
    if shapes is not None:
        dynamic = dict(zip(kwargs, specs, strict=True)) if kwargs else tuple(specs)
        if isinstance(model, fx.GraphModule) or not kwargs:
            dynamic = tuple(specs)
    with quiet_export(), torch.no_grad():
        return torch.export.export(model, args, dict(kwargs), dynamic_shapes=dynamic, strict=False)


def unlift(exported: ExportedProgram) -> fx.GraphModule:
    """The callable graph of an exported program, flat in and out, each tied weight under one name."""
    exported = functional(exported)
    signature = exported.graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if written:
        names = ", ".join(map(str, written))
        raise InputError(f"the model writes to {names} while it runs: return the new value as an output instead")
    module = exported.module(check_guards=False)
    output = next(n for n in reversed(module.graph.nodes) if n.op == "output")
    flat, _ = pytree.tree_flatten(output.args[0])
    output.args = (tuple(v for v in flat if isinstance(v, fx.Node)),)
    module.graph.set_codegen(fx.graph.CodeGen())
    # a fresh module: torch's own carries hooks that insist on the original argument names and on fixed sizes
    graph = fx.GraphModule(module, module.graph, class_name="Program")
    for node in graph.graph.nodes:
        _tidy(node)
    restore_batch_norm(graph)
    number_paddings(graph)
    loosen_views(graph)
    _tie(graph)
    graph.recompile()
    return graph


def _tidy(node: fx.Node) -> None:
    """Drop what torch adds to the metadata with every retrace, so that a second retrace changes nothing."""
    node.meta.pop("from_node", None)
    if stack := node.meta.get("nn_module_stack"):
        node.meta["nn_module_stack"] = {re.sub("^(L__self__)+", "L__self__", k): v for k, v in stack.items()}
    if custom := node.meta.get("custom"):
        node.meta["custom"] = {k: v for k, v in custom.items() if not k.startswith("_torchdynamo")}


def _tie(graph: fx.GraphModule) -> None:
    """Make every reader of a shared weight read the first of its names, so that tied weights stay tied when set."""
    first: dict[tuple[Any, ...], str] = {}
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            continue
        value = attribute(graph, node.target)
        if isinstance(value, Tensor) and value.numel():
            key = (value.data_ptr(), value.dtype, value.shape, value.stride())
            node.target = first.setdefault(key, node.target)


def drop_dead(graph: fx.GraphModule) -> None:
    graph.graph.eliminate_dead_code(acts)
    read = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    for name, _ in [*graph.named_parameters(remove_duplicate=False), *graph.named_buffers(remove_duplicate=False)]:
        if name not in read:
            owner, _, leaf = name.rpartition(".")
            delattr(attribute(graph, owner) if owner else graph, leaf)
    graph.recompile()


class _Shapes(fx.Interpreter):
    """Runs a graph on tensors without data, and writes down what each node gives."""

    def __init__(self, graph: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(graph)
        self._mode = mode

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "get_attr" and isinstance(value, Tensor):
            value = self._mode.from_tensor(value, static_shapes=True)
        if n.op != "output":
            n.meta["val"] = value
            n.meta.pop("tensor_meta", None)
        return value


def refresh(graph: fx.GraphModule, inputs: tuple[Tensor, ...] | None = None) -> None:
    """Every node's shape anew, in place and without data; sizes that became numbers are written where they are read.

    The inputs have the sizes that the graph's own have, open ones included, or those of the `inputs` given.
    """
    placeholders = graph.graph.find_nodes(op="placeholder")
    if inputs is None:
        fakes = [node.meta["val"] for node in placeholders]
        mode = next((f.fake_mode for f in fakes if isinstance(f, FakeTensor)), None) or FakeTensorMode()
    else:
        mode = FakeTensorMode()
        fakes = [mode.from_tensor(value, static_shapes=True) for value in inputs]
    with enable_python_dispatcher(), mode, torch.no_grad():  # else composite operators fix open sizes
        _Shapes(graph, mode).run(*fakes)
    for node in list(graph.graph.nodes):
        value = node.meta.get("val")
        if node.op == "call_function" and type(value) in (int, float, bool):
            node.replace_all_uses_with(value)
            graph.graph.erase_node(node)
    drop_dead(graph)


def resized(example: Tensor, axes: Mapping[int, str], batch: int) -> Tensor:
    for axis, name in axes.items():
        if name == BATCH:
            index = torch.arange(batch, device=example.device) % example.shape[axis]
            example = example.index_select(axis, index)
    return example
