"""The few graph edits that passes share: read and set weights, find users, replace nodes, keep provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor

from edgecompile.program import Program, attribute

aten = torch.ops.aten


def nodes(program: Program, *targets: OpOverload) -> Iterator[fx.Node]:
    """Every call of any of `targets`, in graph order; safe while nodes are replaced."""
    for node in list(program.graph.graph.nodes):
        if node.op == "call_function" and node.target in targets:
            yield node


def argument(node: fx.Node, name: str) -> Any:
    """The value of an operator's argument by its schema name, the schema's default when it was left out."""
    schema = cast(OpOverload, node.target)._schema
    for index, arg in enumerate(schema.arguments):
        if arg.name == name:
            if index < len(node.args):
                return node.args[index]
            return node.kwargs.get(name, arg.default_value)
    raise KeyError(f"{node.target} has no argument {name}")


def weight(program: Program, node: Any) -> Tensor | None:
    """The tensor a `get_attr` node reads, None for any other node or value."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = attribute(program.graph, str(node.target))
    return value if isinstance(value, Tensor) else None


def readers(program: Program, node: fx.Node) -> list[fx.Node]:
    """Every node that reads the same weight as a `get_attr` node, through any of its `get_attr` nodes."""
    same = [n for n in program.graph.graph.nodes if n.op == "get_attr" and n.target == node.target]
    return [user for n in same for user in n.users]


def weight_readers(program: Program) -> dict[str, list[fx.Node]]:
    """Every weight's readers by the weight's name, in one walk (`readers` walks the graph each time)."""
    found: dict[str, list[fx.Node]] = {}
    for node in program.graph.graph.nodes:
        if node.op == "get_attr":
            found.setdefault(str(node.target), []).extend(node.users)
    return found


def set_weight(program: Program, node: fx.Node, value: Tensor) -> None:
    """Change the weight that a `get_attr` node reads, for all who read it.

    A weight with several readers (tied) changes for each of them: check `readers` first, or use `add_weight`
    to give one reader its own.
    """
    _assign(program.graph, str(node.target), value)
    node.meta["val"] = _meta_like(node, value)


def add_weight(program: Program, name: str, value: Tensor, before: fx.Node, origin: str | None = None) -> fx.Node:
    """A new weight under `name` (made unique) and the `get_attr` node that reads it, placed before `before`.

    `origin` is the teacher's weight that it comes from, if one does.
    """
    base, count = name, 1
    while _exists(program.graph, name):
        name, count = f"{base}_{count}", count + 1
    _assign(program.graph, name, value)
    with program.graph.graph.inserting_before(before):
        node = program.graph.graph.get_attr(name)
    node.meta["val"] = _meta_like(before, value)
    if origin is not None:
        cast("dict[str, str]", program.origin)[name] = origin
    return node


def call(
    program: Program,
    target: OpOverload,
    args: tuple[Any, ...],
    like: fx.Node,
    kwargs: dict[str, Any] | None = None,
) -> fx.Node:
    """A new call before `like` that inherits its provenance: source layer, origin and all else in `meta`."""
    with program.graph.graph.inserting_before(like):
        node = program.graph.graph.call_function(target, args, kwargs or {})
    node.meta = {k: v for k, v in like.meta.items() if k not in ("val", "tensor_meta", "custom")}
    node.meta["custom"] = dict(like.meta.get("custom", {}))
    infer(node)
    return node


def infer(node: fx.Node) -> None:
    """Set `meta["val"]` of a new or changed call from its arguments' own, for rewrites that look at shapes.

    Raises what the operator raises on shapes that do not fit, here rather than at the next retrace; does
    nothing when an argument's own value is not known.
    """
    if any("val" not in n.meta for n in node.all_input_nodes):
        return
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
    mode = next(
        (v.fake_mode for n in node.all_input_nodes if isinstance(v := n.meta["val"], FakeTensor)),
        nullcontext(),
    )
    with mode, torch.no_grad():
        node.meta["val"] = cast(OpOverload, node.target)(*args, **kwargs)


def shape(node: Any) -> tuple[int | torch.SymInt, ...] | None:
    """The sizes of a node's tensor, symbols for the dynamic ones; None for anything else."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def same_type(a: Any, b: Any) -> bool:
    """Whether two nodes hold tensors of one dtype and one shape, whatever sizes the dynamic axes take."""
    if shape(a) is None or shape(b) is None:
        return False
    first, second = a.meta["val"], b.meta["val"]
    # symbols by their text: comparing SymInts would add guards to the shared symbolic environment
    return first.dtype == second.dtype and [str(s) for s in first.shape] == [str(s) for s in second.shape]


def replace(program: Program, old: fx.Node, new: fx.Node) -> None:
    """Let every user of `old` read `new` instead, and drop `old`."""
    old.replace_all_uses_with(new)
    program.graph.graph.erase_node(old)


def only_user(node: fx.Node) -> fx.Node | None:
    """The single user of a node, None when it has none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def layer(node: fx.Node) -> str:
    """The dotted name of the teacher's module that a node came from, else the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return str(paths[-1]) if paths else str(node.meta.get("custom", {}).get("origin", node.name))


def copied(program: Program) -> tuple[Program, dict[fx.Node, fx.Node]]:
    """A clone, and its nodes by those of the program."""
    made = program.clone()
    return made, dict(zip(program.graph.graph.nodes, made.graph.graph.nodes, strict=True))


def map_weights(program: Program, change: Callable[[str, Tensor], Tensor]) -> None:
    """Replace every weight by `change(name, weight)`, tied ones once."""
    for name, value in program.weights().items():
        _assign(program.graph, name, change(name, value))


def _exists(module: nn.Module, name: str) -> bool:
    try:
        attribute(module, name)
    except AttributeError:
        return False
    return True


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module
    for part in path.split(".") if path else ():
        if not isinstance(child := getattr(owner, part, None), nn.Module):
            child = nn.Module()
            owner.add_module(part, child)
        owner = child
    old = getattr(owner, leaf, None)
    trainable = old.requires_grad if isinstance(old, nn.Parameter) else None
    if isinstance(old, Tensor):
        delattr(owner, leaf)
    if trainable is not None or (old is None and isinstance(value, nn.Parameter)):
        owner.register_parameter(
            leaf, nn.Parameter(value.detach(), bool(trainable) if old is not None else value.requires_grad)
        )
    else:
        owner.register_buffer(leaf, value.detach())


def _meta_like(node: fx.Node, value: Tensor) -> Tensor:
    """A fake tensor of the value's shape in the node's fake mode, for later readers of `meta["val"]`."""
    fake = node.meta.get("val")
    fake = fake if isinstance(fake, Tensor) else None
    if fake is None:
        fake = next((v for n in node.graph.nodes if isinstance(v := n.meta.get("val"), Tensor)), None)
    mode = getattr(fake, "fake_mode", None)
    return mode.from_tensor(value.detach(), static_shapes=True) if mode is not None else value.detach().to("meta")
