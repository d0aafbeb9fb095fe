"""Which weights of a program training changes, and asking for their gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, fx, nn

from edgecompile.program import Program
from edgecompile.rewrite import argument, aten, weight


@contextlib.contextmanager
def gradients(weights: Iterable[Tensor]) -> Iterator[None]:
    """These weights ask for gradients, and all others do as before."""
    held = list(weights)
    before = [w.requires_grad for w in held]
    for w in held:
        w.requires_grad_(True)
    try:
        yield
    finally:
        for w, kept in zip(held, before, strict=True):
            w.requires_grad_(kept)
            w.grad = None


def trainable(program: Program) -> dict[str, Tensor]:
    """Float weights that layers multiply with or add: parameters, and what passes made of them."""
    statistics, weights = set(running(program)), program.weights()
    found = {}
    for node in program.graph.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        value = weights.get(name)
        if value is None or not value.is_floating_point() or name in statistics or not node.users:
            continue
        if isinstance(value, nn.Parameter) or any(_multiplied(node, user) for user in node.users):
            found[name] = value
    return found


def _multiplied(node: fx.Node, user: fx.Node) -> bool:
    """Whether a layer reads a node as its weight or bias."""
    schema = getattr(user.target, "_schema", None)
    names = {a.name for a in schema.arguments} if schema is not None else set()
    return any(argument(user, name) is node for name in ("weight", "bias") if name in names)


def running(program: Program) -> dict[str, Tensor]:
    """The statistics that batch norms remember."""
    found = {}
    for node in program.graph.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        for name in ("running_mean", "running_var"):
            read = argument(node, name)
            if (value := weight(program, read)) is not None:
                found[str(read.target)] = value
    return found


def placed(module: nn.Module, device: str, filters: torch.memory_format = torch.channels_last) -> nn.Module:
    """The module on a device, its filters laid out channels last."""
    module.to(device)
    for value in (*module.parameters(), *module.buffers()):
        if value.dim() == 4:
            value.data = value.data.contiguous(memory_format=filters)
    return module


def laid_out(value: Tensor, device: str) -> Tensor:
    """A tensor on a device, pictures channels last."""
    value = value.to(device)
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
