"""fold_constants: what does not depend on the inputs is computed once, here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from edgecompile.functional import first_write
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._affine import title
from edgecompile.passes.remove_identity import ASSERTS
from edgecompile.program import Program
from edgecompile.rewrite import add_weight, replace, weight, weight_readers

aten = torch.ops.aten

FREE_BYTES = 64 * 1024
"""A constant of this size may always be stored, whatever it replaces: masks, position indices."""
GROWTH = 4
CASTS = (aten.to.dtype, aten._to_copy.default)
SMALL = (torch.uint8, torch.float8_e4m3fn)
LIMIT_BYTES = 16 * 1024 * 1024
WORKSPACE_BYTES = 512 * 1024 * 1024

LIKE = (aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)
NEW = (aten.new_zeros.default, aten.new_ones.default, aten.new_full.default)
UNINITIALISED = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute every value that does not depend on the inputs once and store it as a weight.

    before:
        %arange = arange(4) : int64[4]
        %lt = lt.Scalar(%arange, 3) : bool[4]
        %where = where.self(%lt, %x, zero: float32[])
    after:
        %where = where.self(constant.lt: bool[4], %x, zero: float32[])

    A stored value is at most 64 KiB, or at most four times the weights it replaces and no larger than 16 MiB
    or those weights, whichever is more; a weight that is still read elsewhere is not replaced. Trainable
    weights stay trainable.

    Kept: a program with operators in place, with a note; random operators; operators outside `aten` (quantize
    and dequantize of weights stay visible to the targets), whatever has a dynamic size; with a note, values
    that would be too large to store.
    """

    name: ClassVar[str] = "fold_constants"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        if (write := first_write(program.graph.graph)) is not None:
            ctx.note(f"program left alone: {write.name} writes in place")
            return program
        constant: set[fx.Node] = set()
        for node in program.graph.graph.nodes:
            if weight(program, node) is not None or (node.op == "call_function" and _foldable(node, constant)):
                constant.add(node)
        for node in list(program.graph.graph.nodes):
            if node.target in ASSERTS and all(n in constant for n in node.all_input_nodes):
                program.graph.graph.erase_node(node)
        readers = weight_readers(program)
        for node in list(program.graph.graph.nodes):
            if node not in constant or node.op == "get_attr" or all(user in constant for user in node.users):
                continue
            cone = _cone(node)
            inside = set(cone)
            origins = [n for n in cone if n.op == "get_attr"]
            replaced = {
                str(n.target): n.meta["val"].nbytes
                for n in origins
                if all(reader in inside for reader in readers.get(str(n.target), [None]))
            }
            if reason := _too_large(node.meta["val"].nbytes, sum(replaced.values())):
                ctx.note(f"{title(node)} kept: {reason}")
                continue
            _store(program, node, cone)
            ctx.count("folded", sum(n.op == "call_function" for n in cone))
        return program


def _foldable(node: fx.Node, constant: set[fx.Node]) -> bool:
    """Whether a call gives the same tensor in every run."""
    value = node.meta.get("val")
    if not isinstance(node.target, OpOverload) or not isinstance(value, Tensor):
        return False
    schema = node.target._schema
    if node.target.namespace != "aten" or schema.is_mutable or schema.name.split("::")[1] in UNINITIALISED:
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags and not _deterministic(node):
        return False
    if any(not isinstance(size, int) for size in value.shape) or value.nbytes > WORKSPACE_BYTES:
        return False
    first = node.args[0] if node.args else None
    if node.target in CASTS and isinstance(first, fx.Node) and first.meta["val"].dtype in SMALL:
        return False  # a palette's indices and FP8 numbers stay visible to the targets
    given = node.all_input_nodes[1:] if node.target in (*LIKE, *NEW) else node.all_input_nodes
    return all(n in constant for n in given)


def _deterministic(node: fx.Node) -> bool:
    """Dropout that is off draws no random numbers."""
    return node.target is aten.dropout.default and node.args[2] is False


def _cone(node: fx.Node) -> list[fx.Node]:
    """All that a constant is computed from, itself last, in graph order."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in found:
            continue
        found.add(current)
        stack.extend(current.all_input_nodes[1:] if current.target in (*LIKE, *NEW) else current.all_input_nodes)
    return sorted(found)


def _too_large(size: int, replaced: int) -> str | None:
    if size <= max(FREE_BYTES, min(GROWTH * replaced, max(LIMIT_BYTES, replaced))):
        return None
    return f"its {_kib(size)} KiB would replace {_kib(replaced)} KiB of weights"


def _kib(size: int) -> int:
    return math.ceil(size / 1024)


def _store(program: Program, node: fx.Node, cone: list[fx.Node]) -> None:
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for each in cone:
            values[each] = _value(program, each, values)
    result = values[node].clone(memory_format=torch.contiguous_format)
    weights = [n for n in cone if n.op == "get_attr"]
    trainable = any(isinstance(w := weight(program, n), nn.Parameter) and w.requires_grad for n in weights)
    if trainable and result.is_floating_point():
        result = nn.Parameter(result)
    origins = {program.origin.get(str(n.target)) for n in weights}
    origin = origins.pop() if len(origins) == 1 else None
    replace(program, node, add_weight(program, f"constant.{node.name}", result, node, origin))


def _value(program: Program, node: fx.Node, values: dict[fx.Node, Any]) -> Tensor:
    if (stored := weight(program, node)) is not None:
        return stored.detach()
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: values.get(n))
    if node.target in LIKE:
        # only the type of the first argument counts, and its value is not known here
        args = (
            torch.empty(node.meta["val"].shape, dtype=node.all_input_nodes[0].meta["val"].dtype),
            *args[1:],
        )
    elif node.target in NEW:
        args = (torch.empty(0, dtype=node.all_input_nodes[0].meta["val"].dtype), *args[1:])
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result
