"""In-place operators out of a captured graph, so that passes may move, merge and replace nodes freely."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

aten = torch.ops.aten

DROPOUTS = (
    aten.dropout_.default,
    aten.feature_dropout_.default,
    aten.alpha_dropout_.default,
    aten.feature_alpha_dropout_.default,
)
PASSING = (
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
)


def functional(exported: ExportedProgram) -> ExportedProgram:
    """The program without in-place operators (`relu_`, `add_`, writes into slices); itself when it has none.

    torch.export keeps them, and a pass that rewires a graph in which a later node changes an earlier value is
    wrong without a trace. torch's own functionalisation with an empty table keeps `conv2d`, `linear`,
    attention and the like whole; only batch norm is taken apart, which `restore_batch_norm` mends once the
    graph is unlifted.
    """
    if not any(mutates(node) for node in exported.graph.nodes):
        return exported
    for node in list(exported.graph.nodes):
        # dropout that is off returns its very input, which torch's functionalisation takes for a copy
        if node.target in PASSING and node.args[2] is False:
            node.replace_all_uses_with(node.args[0], delete_user_cb=lambda user: user.op != "output")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own copying of its tree specifications
        result: ExportedProgram = exported.run_decompositions({})
    return result


def mutates(node: fx.Node) -> bool:
    """Whether a node writes to one of its arguments (dropout that is off and `detach_` only say so)."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return False
    if node.target is aten.detach_.default:
        return False
    return not (node.target in DROPOUTS and len(node.args) > 2 and node.args[2] is False)


def acts(node: fx.Node) -> bool:
    """Whether a node does more than give a value; random operators, attention and dropout that is off do not.

    torch counts these as doing something, so that an attention whose result nobody reads would stay.
    """
    if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
        return mutates(node)
    return node.is_impure(impure_random=False)


def first_write(graph: fx.Graph) -> fx.Node | None:
    """The first node that writes to one of its arguments: beside it, removing copies would be wrong."""
    return next((node for node in graph.nodes if mutates(node)), None)


def loosen_views(graph: fx.GraphModule) -> None:
    """Write a view behind a transposition as a reshape.

    Export makes a view of a reshape where the strides allow it. Those of attention depend on the kernel that runs it,
    and of the kernels that a mask or a type leads to, export knows one.
    """
    for node in graph.graph.find_nodes(op="call_function", target=aten.view.default):
        if getattr(node.args[0], "target", None) in (aten.transpose.int, aten.permute.default):
            node.target = aten.reshape.default


def number_paddings(graph: fx.GraphModule) -> None:
    """Write convolutions with `padding="same"` or `"valid"` with the numbers that these words stand for.

    An odd sum of both sides has its one more at the end, as torch pads it: that is a pad of its own before.
    """
    for node in list(graph.graph.nodes):
        target = _NUMBERED.get(node.target)
        if target is None:
            continue
        given = {a.name: a.default_value for a in node.target._schema.arguments}
        given |= dict(zip(given, node.args, strict=False)) | node.kwargs
        sizes = [int(s) for s in given["weight"].meta["val"].shape[2:]]
        stride, dilation = (_each(given[name], len(sizes)) for name in ("stride", "dilation"))
        total = [d * (k - 1) if given["padding"] == "same" else 0 for d, k in zip(dilation, sizes, strict=True)]
        with graph.graph.inserting_before(node):
            x = given["input"]
            if any(t % 2 for t in total):
                more = [side for t in reversed(total) for side in (0, t % 2)]
                x = _copied(graph, node, aten.constant_pad_nd.default, (x, more, 0.0))
            args = (x, given["weight"], given["bias"], stride, [t // 2 for t in total], dilation, given["groups"])
            new = _copied(graph, node, target, args)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()


_NUMBERED = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def _each(value: int | list[int], count: int) -> list[int]:
    found = [value] if isinstance(value, int) else [int(v) for v in value]
    return found * count if len(found) == 1 else found


def _copied(graph: fx.GraphModule, node: fx.Node, target: OpOverload, args: tuple[Any, ...]) -> fx.Node:
    """A call that stands where `node` does and comes from where that does."""
    new = graph.graph.call_function(target, args)
    values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in args]
    new.meta = {**node.meta, "custom": dict(node.meta.get("custom", {})), "val": target(*values)}
    new.meta.pop("tensor_meta", None)
    return new


def restore_batch_norm(graph: fx.GraphModule) -> None:
    """Write `getitem(_native_batch_norm_legit_no_training(...), 0)` as `batch_norm` again."""
    for node in list(graph.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        users = list(node.users)
        if any(u.target is not operator.getitem or u.args[1] != 0 for u in users):
            continue  # somebody reads the saved statistics: nothing of an inference graph
        x, weight, bias, mean, var, momentum, eps = node.args
        for user in users:
            with graph.graph.inserting_before(user):
                args = (x, weight, bias, mean, var, False, momentum, eps, False)
                new = graph.graph.call_function(aten.batch_norm.default, args)
            new.meta = {**node.meta, "val": user.meta.get("val")}
            new.meta.pop("tensor_meta", None)
            user.replace_all_uses_with(new)
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)
    graph.recompile()
