"""Branches that are left out by chance while a program is trained, so that it does without any of them later."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from edgecompile.axes import couple
from edgecompile.errors import PassError
from edgecompile.passes._branches import Branch, branches, separate
from edgecompile.passes._stack import Layer, stacks
from edgecompile.program import Program
from edgecompile.rewrite import aten

_GATES = "layerdrop_gates"


def gated(program: Program, learner: nn.Module) -> Tensor:
    """Gates [layers] of a module made of the program's graph: at 0 the branches of that layer are left out.

    Branches within one of the layers that repeat share a gate, as LayerDrop drops whole layers; others have their own.
    What is left is not scaled up. All gates are at 1.
    """
    assert isinstance(learner, fx.GraphModule)
    coupling = couple(program)
    chosen = separate(branches(program, coupling))
    if not chosen:
        raise PassError("distill: layerdrop: this program has no residual branch that could be left out")
    places = _places(chosen, [one for stack in stacks(program, coupling) for one in stack])
    gates = torch.ones(len(set(places)))
    learner.register_buffer(_GATES, gates, persistent=False)
    here = {node.name: node for node in learner.graph.nodes}
    with learner.graph.inserting_before(next(iter(learner.graph.nodes))):
        read = learner.graph.get_attr(_GATES)
    for branch, place in zip(chosen, places, strict=True):
        total, stays = here[branch.total.name], here[branch.stays.name]
        ends = next(a for a in total.args[:2] if a is not stays)
        with learner.graph.inserting_before(total):
            gate = learner.graph.call_function(aten.select.int, (read, 0, place))
            left = learner.graph.call_function(aten.mul.Tensor, (ends, gate))
            new = learner.graph.call_function(aten.add.Tensor, (stays, left))
        total.replace_all_uses_with(new)
        learner.graph.erase_node(total)
    learner.recompile()
    return gates


def _places(chosen: list[Branch], layers: list[Layer]) -> list[int]:
    """The gate of each branch: that of the layer that its sum lies in, else its own."""
    owner = {node: number for number, one in enumerate(layers) for node in one.nodes}
    known: dict[object, int] = {}
    return [known.setdefault(owner.get(b.total, b), len(known)) for b in chosen]
