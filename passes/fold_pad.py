"""fold_pad: padding with zeros is left to the layer that can do it itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._affine import affine, title
from edgecompile.program import Program
from edgecompile.rewrite import argument, call, nodes, replace, shape

aten = torch.ops.aten

AVERAGE = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
MAXIMUM = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)


@dataclass(frozen=True)
class FoldPad(Pass):
    """Fold padding with zeros into the convolutions or average pools that read it.

    before:
        %pad = pad(%x, [1, 1, 1, 1]) : float32[batch, 3, 10, 10]
        %conv2d = conv2d(%pad, c.weight, c.bias) : float32[batch, 8, 8, 8]
    after:
        %conv2d = conv2d(%x, c.weight, c.bias, [1, 1], [1, 1], [1, 1], 1) : float32[batch, 8, 8, 8]

    Kept, with a note: sides that differ, other values than zero, padded channels or batch, a max pool (it
    pads with minus infinity), an average pool with more padding than half its kernel or with padding it does
    not count, a reader of any other kind.
    """

    name: ClassVar[str] = "fold_pad"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        for node in nodes(program, aten.pad.default, aten.constant_pad_nd.default):
            if reason := _fold(program, node):
                ctx.note(f"{title(node)} kept: {reason}")
            else:
                ctx.count("folded")
        return program


def _fold(program: Program, node: fx.Node) -> str | None:
    constant = node.target is aten.constant_pad_nd.default or argument(node, "mode") == "constant"
    if not constant or argument(node, "value") not in (None, 0):
        return "it does not pad with zeros"
    pads, rank = list(argument(node, "pad")), len(shape(node) or ())
    if any(not isinstance(p, int) or p < 0 for p in pads):
        return "its sizes are negative or not fixed"
    if pads[::2] != pads[1::2]:
        return f"its sides differ ({pads}), which no convolution's own padding does"
    by_axis = (pads[::2] + [0] * (rank - len(pads) // 2))[::-1]
    if rank < 3 or by_axis[0] or by_axis[1]:
        return "it pads the batch or the channels"
    found = [_padded(program, user, node, by_axis[2:]) for user in node.users]
    if reason := next((f for f in found if isinstance(f, str)), None):
        return reason
    for user, arguments in zip(list(node.users), found, strict=True):
        assert isinstance(arguments, tuple)
        new = call(program, user.target, (node.args[0], *arguments), user)  # type: ignore[arg-type]
        replace(program, user, new)
    return None


def _padded(program: Program, user: fx.Node, pad: fx.Node, added: Sequence[int]) -> tuple[object, ...] | str:
    """The arguments after the input with which a reader pads by itself; a text when it cannot."""
    if user.target in MAXIMUM:
        return f"{user.name} is a max pool, which pads with minus infinity"
    if user.target in AVERAGE:
        return _average(user, added)
    found = affine(program, user)
    if found is None or found.source is not pad or found.transposed or not found.spatial:
        return f"{user.name} cannot pad by itself"
    padding = [own + more for own, more in zip(found.padding, added, strict=True)]
    stride, dilation = list(found.ints("stride")), list(found.ints("dilation"))
    return found.weight, found.bias, stride, padding, dilation, found.groups


def _average(user: fx.Node, added: Sequence[int]) -> tuple[object, ...] | str:
    spatial = AVERAGE[user.target]  # type: ignore[index]

    def ints(name: str) -> list[int]:
        values = [int(v) for v in argument(user, name)] if isinstance(argument(user, name), (list, tuple)) else []
        values = values or ([int(argument(user, name))] if isinstance(argument(user, name), int) else [])
        return values * spatial if len(values) == 1 else values

    kernel, stride, own = ints("kernel_size"), ints("stride"), ints("padding")
    if argument(user, "ceil_mode"):
        return f"{user.name} rounds its size up"
    if any(own) and not argument(user, "count_include_pad"):
        return f"{user.name} does not count its padding"
    padding = [a + b for a, b in zip(own, added, strict=True)]
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        return f"{user.name} may pad at most half its kernel"
    arguments = (kernel, stride or kernel, padding, False, True)
    return arguments if spatial == 1 else (*arguments, argument(user, "divisor_override"))
