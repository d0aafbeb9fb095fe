"""In-place operators out of a captured graph, so that passes may move, merge and replace nodes freely."""

from __future__ import annotations

import operator
import warnings

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


def first_write(graph: fx.Graph) -> fx.Node | None:
    """The first node that writes to one of its arguments: beside it, removing copies would be wrong."""
    return next((node for node in graph.nodes if mutates(node)), None)


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
