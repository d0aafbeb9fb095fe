"""remove_branches: choices that are already made, and parts that hold nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from edgecompile.pass_manager import Context, Pass
from edgecompile.program import Program
from edgecompile.rewrite import argument, call, nodes, replace, same_type, shape, weight

aten = torch.ops.aten

LOGICAL = {
    aten.logical_and.default: True,
    aten.bitwise_and.Tensor: True,
    aten.logical_or.default: False,
    aten.bitwise_or.Tensor: False,
}
MASKED = (aten.where.self, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.cat.default, *LOGICAL)


@dataclass(frozen=True)
class RemoveBranches(Pass):
    """Remove branches never taken: constant masks of `where` and `masked_fill`, empty parts of `cat`.

    before:
        %where = where.self(mask: bool[4], %x, %y)        (mask true everywhere)
        %cat = cat([%where, %empty: float32[batch, 0]], 1)
    after:
        %x

    Run `fold_constants` first: it makes masks constant. Outputs that nobody reads go with every retrace. A
    product with zero is kept (it is NaN for infinite inputs), and so is a branch whose type is not the
    result's.
    """

    name: ClassVar[str] = "remove_branches"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        for node in nodes(program, *MASKED):
            taken = _concatenated(program, node) if node.target is aten.cat.default else _taken(program, node)
            if taken is not None and same_type(node, taken):
                replace(program, node, taken)
                ctx.count("removed")
        return program


def _taken(program: Program, node: fx.Node) -> Any:
    """The operand that a constant mask always chooses."""
    if node.target in LOGICAL:
        for mask, other in (node.args[:2], node.args[1::-1]):
            if _everywhere(program, mask) is LOGICAL[node.target]:
                return other
        return None
    if node.target is aten.where.self:
        chosen = _everywhere(program, node.args[0])
        return None if chosen is None else node.args[1 if chosen else 2]
    return node.args[0] if _everywhere(program, argument(node, "mask")) is False else None


def _everywhere(program: Program, mask: Any) -> bool | None:
    """The one value of a constant boolean mask; None for any other."""
    constant: Tensor | None = weight(program, mask)
    if constant is None or constant.dtype != torch.bool or not constant.numel():
        return None
    first = bool(constant.flatten()[0])
    return first if bool((constant == first).all()) else None


def _concatenated(program: Program, node: fx.Node) -> fx.Node | None:
    """The concatenation of the parts that hold something; None when all do and there are several."""
    parts, axis = list(node.args[0]), int(argument(node, "dim"))  # type: ignore[arg-type]
    full = [p for p in parts if not _empty(p, axis)]
    if len(full) == 1:
        return full[0] if isinstance(full[0], fx.Node) else None
    if not full or len(full) == len(parts):
        return None
    return call(program, aten.cat.default, (full, axis), node)


def _empty(part: Any, axis: int) -> bool:
    sizes = shape(part)
    # a one-dimensional tensor of no elements may stand among any shapes: an old rule of cat's
    return sizes is not None and (sizes[axis] == 0 if len(sizes) > 1 else sizes == (0,)) is True
