"""Program: a model on its way to a device, as an unlifted ATen graph that can be called, trained and re-exported."""

from __future__ import annotations

import copy
import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from edgecompile.errors import InputError

DynamicShapes = tuple[Mapping[int, str], ...]
"""One mapping an input: axis number to the name of its symbol, e.g. `({0: "batch"}, {0: "batch"})`."""

BATCH = "batch"


@dataclass(frozen=True)
class Program:
    """A model with fixed inputs and outputs: an ATen graph, its example inputs, and where its weights came from.

    `graph` takes the inputs positionally and returns a flat tuple of tensors. `inputs` are the example inputs; axes in
    `dynamic_shapes` may take any size from 1 up, all others are fixed. `origin` names, for each weight, the weight of
    the teacher it descends from, and `kept` the teacher's indices that survive along each axis that was shrunk; nodes
    carry the teacher node's name in `meta["custom"]["origin"]`.
    """

    graph: fx.GraphModule
    inputs: tuple[Tensor, ...]
    dynamic_shapes: DynamicShapes | None = None
    output_names: tuple[str, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @staticmethod
    def capture(
        model: nn.Module,
        inputs: Sequence[Tensor] | Mapping[str, Tensor],
        dynamic_batch: bool = True,
    ) -> Program:
        """Export `model` in evaluation mode; the example batch should be 2 (an example of 1 would fix it silently).

        The first axis of every input is the batch and becomes dynamic; where the model does not allow that, the
        program is static and `notes` says why. Raises `InputError` for models that cannot be exported (control flow
        that depends on data), that write to their own buffers, or whose outputs are not tensors.
        """
        model = model.eval()
        args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
        tensors = (*args, *kwargs.values())
        _check_inputs(tensors)
        try:
            with torch.no_grad():
                names = _output_names(model(*args, **kwargs))
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"the model fails on its example inputs: {_first_line(error)}") from error
        sizes = {int(t.shape[0]) for t in tensors if t.dim()}
        can_batch = dynamic_batch and len(sizes) == 1 and all(t.dim() for t in tensors) and sizes != {1}
        notes: tuple[str, ...] = ()
        if dynamic_batch and not can_batch:
            notes = ("static batch: the inputs do not share a first axis larger than 1",)
        shapes: DynamicShapes | None = tuple({0: BATCH} for _ in tensors) if can_batch else None
        try:
            exported = _export(model, args, kwargs, shapes)
        except Exception as error:
            if shapes is None:
                raise _not_exportable(error) from error
            dynamic_error, shapes = error, None
            try:
                exported = _export(model, args, kwargs, None)
            except Exception as second:
                raise _not_exportable(second) from second
            notes = (f"static batch: the model does not export with a dynamic one ({_first_line(dynamic_error)})",)
        graph = _unlift(exported)
        _functional(graph.graph)
        for node in graph.graph.nodes:
            node.meta.setdefault("custom", {}).setdefault("origin", node.name)
        program = Program(graph, tensors, shapes, names, notes=notes)
        _drop_dead(program.graph)
        return dataclasses.replace(program, origin={name: name for name in program.weights()})

    @property
    def input_names(self) -> tuple[str, ...]:
        """The placeholders' names, in order."""
        return tuple(str(n.target) for n in self.graph.graph.nodes if n.op == "placeholder")

    @property
    def interface(self) -> tuple[str, ...]:
        """Names, dtypes and shapes of inputs and outputs: what a pass may never change."""
        symbols = self.symbols()
        placeholders = [n for n in self.graph.graph.nodes if n.op == "placeholder"]
        outputs = zip(self.output_names, self.outputs(), strict=True)
        return (
            *(f"{n.target}: {type_text(n.meta.get('val'), symbols)}" for n in placeholders),
            *(f"-> {name}: {type_text(n.meta.get('val'), symbols)}" for name, n in outputs),
        )

    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes that the program returns, in order."""
        node = next(n for n in reversed(self.graph.graph.nodes) if n.op == "output")
        return tuple(cast(Sequence[fx.Node], node.args[0]))

    def symbols(self) -> dict[str, str]:
        """torch's name of each dynamic size to ours: `{"s77": "batch"}`."""
        placeholders = [n for n in self.graph.graph.nodes if n.op == "placeholder"]
        return {
            str(node.meta["val"].shape[axis]): name
            for node, axes in zip(placeholders, self.dynamic_shapes or (), strict=False)
            for axis, name in axes.items()
            if "val" in node.meta
        }

    def weights(self) -> dict[str, Tensor]:
        """Every parameter, buffer and constant that the graph reads, by dotted name; tied weights once."""
        found: dict[str, Tensor] = {}
        for node in self.graph.graph.nodes:
            if node.op == "get_attr" and isinstance(value := attribute(self.graph, str(node.target)), Tensor):
                found[str(node.target)] = value
        return found

    @property
    def batch(self) -> int | None:
        """The fixed batch, or None while it is dynamic."""
        if self.dynamic_shapes and any(BATCH in axes.values() for axes in self.dynamic_shapes):
            return None
        return int(self.inputs[0].shape[0]) if self.inputs and self.inputs[0].dim() else 1

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", self.graph(*inputs))

    def clone(self) -> Program:
        """A copy that shares nothing with this one; its weights can be changed freely."""
        return dataclasses.replace(self, graph=copy.deepcopy(self.graph))

    def exported(self) -> ExportedProgram:
        """The `ExportedProgram` that target toolchains read; raises torch's error when the graph does not hold together."""
        return _export(self.graph, self.inputs, {}, self.dynamic_shapes)

    def retraced(self) -> Program:
        """Drop dead code and dead weights and export again: the verifier, which also refreshes every shape.

        Raises what torch raises, which names the node, when the graph does not hold together.
        """
        _drop_dead(self.graph)
        program = dataclasses.replace(self, graph=_unlift(self.exported()))
        _drop_dead(program.graph)
        alive = program.weights()
        origin = {name: self.origin.get(name, name) for name in alive}
        kept = {name: axes for name, axes in self.kept.items() if name in alive}
        return dataclasses.replace(program, origin=origin, kept=kept)

    def specialised(self, batch: int) -> Program:
        """This program at one fixed batch, which is what is emitted; raises `InputError` when it is fixed at another."""
        if self.batch is not None:
            if self.batch != batch:
                raise InputError(f"the program's batch is fixed at {self.batch}, not {batch}: capture it at batch {batch}")
            return self.clone()
        axes = self.dynamic_shapes or ()
        inputs = tuple(_resized(t, d, batch) for t, d in zip(self.inputs, axes, strict=True))
        graph = copy.deepcopy(self.graph)
        return dataclasses.replace(self, graph=graph, inputs=inputs, dynamic_shapes=None).retraced()

    def __str__(self) -> str:
        return text_form(self)


def attribute(module: nn.Module, name: str) -> Any:
    """The attribute at a dotted path below `module`."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def text_form(program: Program) -> str:
    """One line a node, weights inline with their types; stable from capture to capture, for reading and golden tests."""
    symbols = program.symbols()
    graph = program.graph.graph
    weights = {n: f"{n.target}: {type_text(n.meta.get('val'), symbols)}" for n in graph.nodes if n.op == "get_attr"}

    def show(value: Any) -> str:
        if isinstance(value, fx.Node):
            return weights.get(value, f"%{value.name}")
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(show(v) for v in value) + "]"
        return str(value)

    lines = ["program(" + ", ".join(i for i in program.interface if not i.startswith("->")) + ")"]
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        args = [show(a) for a in node.args] + [f"{k}={show(v)}" for k, v in node.kwargs.items()]
        kind = type_text(node.meta.get("val"), symbols)
        lines.append(f"  %{node.name} = {op_name(node)}({', '.join(args)}) : {kind}")
    returned = zip(program.output_names, program.outputs(), strict=True)
    lines.append("  return " + ", ".join(f"{name}={show(node)}" for name, node in returned))
    return "\n".join(lines)


def op_name(node: fx.Node) -> str:
    """`conv2d`, `add.Tensor`, `quantized_decomposed.quantize_per_tensor`: ATen's namespace and `.default` left out."""
    name = str(node.target).removeprefix("aten.").removesuffix(".default")
    return name if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "__name__", name)


def type_text(value: Any, symbols: Mapping[str, str]) -> str:
    """`float32[batch, 3, 224, 224]` for a tensor, a tuple of those for several, else the Python type's name."""
    if isinstance(value, Tensor):
        sizes = []
        for size in value.shape:
            text = str(size)
            for symbol, name in symbols.items():
                text = text.replace(symbol, name)
            sizes.append(text)
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(sizes)}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(type_text(v, symbols) for v in value) + ")"
    return type(value).__name__


def _check_inputs(tensors: Sequence[Any]) -> None:
    for index, value in enumerate(tensors):
        if not isinstance(value, Tensor):
            raise InputError(f"example input {index}: expected a tensor, got {type(value).__name__}")
    if not tensors:
        raise InputError("the model has no example inputs: give them beside the module, or with --input NAME=1x3x224x224")


def _output_names(outputs: Any) -> tuple[str, ...]:
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    names: list[str] = []
    for path, value in leaves:
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise InputError(f"output {pytree.keystr(path)} is a {type(value).__name__}: only tensors can be compiled")
        word = "_".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        word = "".join(c if c.isalnum() or c == "_" else "_" for c in word)
        names.append(f"output_{word}" if word.isdigit() else word or "output")
    if not names:
        raise InputError("the model returns no tensor")
    return tuple(name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__


def _not_exportable(error: Exception) -> InputError:
    text = str(error)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        what = "its control flow depends on the data (an `if` or a loop over tensor values)"
        return InputError(f"the model cannot be exported: {what}; rewrite it with torch.where or torch.cond: {_first_line(error)}")
    return InputError(f"the model cannot be exported by torch.export: {_first_line(error)}")


@contextmanager
def quiet_export() -> Iterator[None]:
    """Keep torch from logging a traceback for an error that is raised and reported anyway."""
    loggers = [logging.getLogger(name) for name in ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _export(
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


def _unlift(exported: ExportedProgram) -> fx.GraphModule:
    """The callable graph of an exported program, flat in and out, each tied weight under one name."""
    signature = exported.graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if written:
        raise InputError(f"the model writes to {', '.join(map(str, written))} while it runs: return the new value as an output instead")
    module = cast(fx.GraphModule, exported.module(check_guards=False))
    output = next(n for n in reversed(module.graph.nodes) if n.op == "output")
    flat, _ = pytree.tree_flatten(output.args[0])
    output.args = (tuple(v for v in flat if isinstance(v, fx.Node)),)
    module.graph.set_codegen(fx.graph.CodeGen())
    # a fresh module: torch's own carries hooks that insist on the original argument names and on fixed sizes
    graph = fx.GraphModule(module, module.graph, class_name="Program")
    for node in graph.graph.nodes:
        _tidy(node)
    _tie(graph)
    graph.recompile()
    return graph


_VIEWS = ("view", "reshape", "expand", "permute", "transpose", "slice", "select", "squeeze", "unsqueeze", "flatten", "split", "chunk", "unbind", "alias", "detach", "t", "as_strided", "narrow", "diagonal")


def _functional(graph: fx.Graph) -> None:
    """Replace `relu_(x)` by `relu(x)` wherever nothing else can see that x was written to.

    Not where x is a view or has views, an input or a weight: such a write stays, and is functionalised by the exporters.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        name = getattr(getattr(node.target, "_schema", None), "name", "")
        if node.op != "call_function" or not name.endswith("_") or name.endswith("__") or not node.args:
            continue
        written = node.args[0]
        packet = getattr(torch.ops.aten, name.removeprefix("aten::").removesuffix("_"), None)
        overload = getattr(packet, node.target._overloadname, None)
        if overload is None or not isinstance(written, fx.Node) or written.op != "call_function":
            continue
        if _is_view(written) or any(_is_view(user) for user in written.users):
            continue
        written.replace_all_uses_with(node, delete_user_cb=lambda user, n=node: order[user] > order[n])
        node.target = overload


def _is_view(node: fx.Node) -> bool:
    name = getattr(getattr(node.target, "_schema", None), "name", "")
    return name.removeprefix("aten::") in _VIEWS


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


def _drop_dead(graph: fx.GraphModule) -> None:
    graph.graph.eliminate_dead_code()
    read = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    for name, _ in [*graph.named_parameters(remove_duplicate=False), *graph.named_buffers(remove_duplicate=False)]:
        if name not in read:
            owner, _, leaf = name.rpartition(".")
            delattr(attribute(graph, owner) if owner else graph, leaf)
    graph.recompile()


def _resized(example: Tensor, axes: Mapping[int, str], batch: int) -> Tensor:
    for axis, name in axes.items():
        if name == BATCH:
            index = torch.arange(batch, device=example.device) % example.shape[axis]
            example = example.index_select(axis, index)
    return example
