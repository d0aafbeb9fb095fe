"""Removing units of coupled groups: weights are cut, and every size that a node holds as a number is written anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from edgecompile.axes.couple import Coupling, couple
from edgecompile.axes.dims import Dim, Index, kept, size
from edgecompile.axes.shapes import DIVIDED, FILLED, VIEWS
from edgecompile.errors import PassError
from edgecompile.program import Program
from edgecompile.rewrite import argument, copied, map_weights

aten = torch.ops.aten


def shrink(program: Program, keep: Mapping[str, Sequence[int]], coupling: Coupling | None = None) -> Program:
    """A smaller program in which of each named group only these units (indices) are left.

    Sums lose what is removed and nothing else changes, means and variances are over what is kept. `program.kept` says
    for each weight which of the teacher's indices are left. Raises `PassError` for groups and units that are not there.
    """
    return cut(program, keep, coupling)[0].retraced()


def cut(
    program: Program, keep: Mapping[str, Sequence[int]], coupling: Coupling | None = None
) -> tuple[Program, dict[fx.Node, fx.Node]]:
    """The smaller program before it is retraced, and its nodes by those of the program."""
    coupling = coupling or couple(program)
    chosen = coupling.chosen(keep)
    found = {
        (name, axis): index
        for name, dims in coupling.weights.items()
        for axis, dim in enumerate(dims)
        if len(index := kept(dim, chosen)) != dim.size
    }
    made, new = copied(program)
    sizes = {atom: len(index) for atom, index in chosen.items()}
    for node, other in new.items():
        rewrite = _REWRITES.get(cast(Any, node.target)) if node.op == "call_function" else None
        if rewrite is not None:
            rewrite(_Change(coupling, sizes, node, other))

    def left(name: str, value: torch.Tensor) -> torch.Tensor:
        for axis in range(value.dim()):
            if (name, axis) in found:
                value = value.index_select(axis, torch.from_numpy(found[name, axis]).to(value.device))
        return value

    map_weights(made, left)
    made.graph.recompile()
    return dataclasses.replace(made, kept=_history(program, found)), new


def _history(program: Program, found: Mapping[tuple[str, int], Index]) -> dict[str, dict[int, tuple[int, ...]]]:
    """The teacher's indices that are left: those of before, those of them that are kept now."""
    history = {name: dict(axes) for name, axes in program.kept.items()}
    for (name, axis), index in found.items():
        before = history.setdefault(name, {}).get(axis)
        history[name][axis] = tuple(int(i) if before is None else before[int(i)] for i in index)
    return history


@dataclasses.dataclass(frozen=True)
class _Change:
    """A node of the program, its copy, and what is left of each axis."""

    coupling: Coupling
    left: Mapping[Dim, int]
    node: fx.Node
    copy: fx.Node

    def size(self, dim: Dim) -> int:
        """How many indices of an axis are left."""
        return size(dim, self.left)

    def changed(self, dim: Dim) -> bool:
        """Whether something of an axis is removed."""
        return self.size(dim) != dim.size

    @property
    def result(self) -> Sequence[Dim]:
        """The axes of the result."""
        return cast("Sequence[Dim]", self.coupling.dims[self.node])

    @property
    def virtual(self) -> Sequence[Dim]:
        """What the operator's rule noted."""
        return self.coupling.virtual.get(self.node, ())

    def set(self, name: str, value: Any) -> None:
        """Give the copy an argument by the name of its schema."""
        for index, given in enumerate(cast(Any, self.copy.target)._schema.arguments):
            if given.name == name and index < len(self.copy.args):
                self.copy.update_arg(index, value)
            elif given.name == name:
                self.copy.update_kwarg(name, value)


def _view(change: _Change) -> None:
    """The sizes of a reshape: numbers where they are fixed, the dynamic one that changed left to be computed."""
    if not any(map(change.changed, change.result)):
        return
    aligned = change.node.target not in (aten.flatten.using_ints, aten.unflatten.int)
    old = cast("Sequence[Any]", change.copy.args[1]) if aligned else [-1] * len(change.result)
    given: list[Any] = []
    for value, was, dim in zip(old, change.node.meta["val"].shape, change.result, strict=True):
        given.append(change.size(dim) if isinstance(was, int) else -1 if change.changed(dim) else value)
    if given.count(-1) > 1:
        sizes = change.node.meta["val"].shape
        given = [
            _held(change.copy, sizes[axis]) if g == -1 and not change.changed(change.result[axis]) else g
            for axis, g in enumerate(given)
        ]
    change.copy.target = aten.reshape.default
    change.copy.args, change.copy.kwargs = (change.copy.args[0], given), {}


def _held(node: fx.Node, size: Any) -> fx.Node:
    """A node with a dynamic size that an input has, placed before another."""
    for given in node.graph.find_nodes(op="placeholder"):
        for axis, other in enumerate(given.meta["val"].shape):
            if str(other) == str(size):
                with node.graph.inserting_before(node):
                    made = node.graph.call_function(aten.sym_size.int, (given, axis))
                made.meta["val"] = other
                return made
    raise PassError(f"{node.name}: two of its sizes are dynamic, and one of them is that of no input")


def _sizes(change: _Change) -> None:
    """The sizes of a constant or of an expansion."""
    name = "size" if any(a.name == "size" for a in cast(Any, change.node.target)._schema.arguments) else "sizes"
    given = list(argument(change.copy, name))
    change.set(name, [change.size(d) if change.changed(d) else g for g, d in zip(given, change.result, strict=True)])


def _divided(change: _Change) -> None:
    """Pieces of an axis by the sizes that are left of them."""
    if any(map(change.changed, change.virtual)):
        axis = argument(change.copy, "dim")
        change.copy.target = aten.split_with_sizes.default
        change.copy.args = (change.copy.args[0], [change.size(d) for d in change.virtual], axis)
        change.copy.kwargs = {}


def _slice(change: _Change) -> None:
    """A part begins behind what is left of what was before it."""
    if len(change.virtual) == 3 and any(map(change.changed, change.virtual)):
        before, part, _ = map(change.size, change.virtual)
        change.set("start", before)
        change.set("end", before + part)


def _last_norm(change: _Change) -> None:
    dims = change.result[-len(change.node.args[1]) :]  # type: ignore[arg-type]
    change.set("normalized_shape", [change.size(d) for d in dims])


def _counted(name: str) -> Callable[[_Change], None]:
    """A number of groups or repeats."""

    def rewrite(change: _Change) -> None:
        if change.virtual and change.changed(change.virtual[0]):
            change.set(name, change.size(change.virtual[0]))

    return rewrite


def _attention(change: _Change) -> None:
    """The scale that follows from the width of a head stays the one of before."""
    if change.virtual and change.changed(change.virtual[0]) and argument(change.node, "scale") is None:
        change.set("scale", change.virtual[0].size ** -0.5)


_REWRITES: dict[Any, Callable[[_Change], None]] = {
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys((*FILLED, aten.expand.default), _sizes),
    **dict.fromkeys(DIVIDED, _divided),
    aten.slice.Tensor: _slice,
    **dict.fromkeys((aten.layer_norm.default, aten.rms_norm.default), _last_norm),
    aten.group_norm.default: _counted("num_groups"),
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), _counted("groups")),
    **dict.fromkeys(
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input), _counted("groups")
    ),
    aten.repeat_interleave.self_int: _counted("repeats"),
    aten.scaled_dot_product_attention.default: _attention,
}
