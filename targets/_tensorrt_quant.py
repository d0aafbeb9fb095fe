"""Q/DQ as TensorRT takes it: signed integers with a zero point of 0."""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, fx

from edgecompile.errors import TargetError
from edgecompile.program import Program
from edgecompile.rewrite import infer, layer, nodes, set_weight, weight, weight_readers

Q = torch.ops.quantized_decomposed
_LIMIT = 127


def symmetric(program: Program) -> tuple[Program, int]:
    """The program with symmetric int8 Q/DQ only, and how many scales that changed; itself when none.

    A range with a zero point, `[0, 6]` or `[-0.3, 6]`, becomes `[-6, 6]`: the same numbers can be written, in coarser
    steps. Weights with zero points are rounded again.
    """
    if not any(_lopsided(program, n) for n in _all(program)):
        return program, 0
    own = program.clone()
    lopsided = [n for n in _all(own) if _lopsided(own, n)]
    readers = weight_readers(own)
    for node in lopsided:
        if node.target is Q.quantize_per_tensor.default:
            _check_readers(node)
            _widen(node)
        elif weight(own, node.args[0]) is not None:
            _requantize(own, node, len(readers[str(node.args[0].target)]))  # type: ignore[union-attr]
        else:
            _widen(node)
    own.graph.recompile()
    return own, sum(n.target is not Q.dequantize_per_tensor.default for n in lopsided)


def quantized(program: Program) -> bool:
    """Whether anything of the program is in integers."""
    return bool(_all(program))


def _all(program: Program) -> list[fx.Node]:
    return list(
        nodes(program, Q.quantize_per_tensor.default, Q.dequantize_per_tensor.default, Q.dequantize_per_channel.default)
    )


def _lopsided(program: Program, node: fx.Node) -> bool:
    zero = node.args[2]
    if isinstance(zero, fx.Node):
        stored = weight(program, zero)
        return node.args[-1] is torch.uint8 or stored is None or bool(stored.any())
    return bool(zero != 0) or node.args[5] is torch.uint8


def _check_readers(node: fx.Node) -> None:
    for user in node.users:
        if user.target is not Q.dequantize_per_tensor.default or user.args[1:6] != node.args[1:6]:
            raise TargetError(
                f"tensorrt: {layer(node)}: {user.name} reads the integers of {node.name} otherwise than they were "
                "written; quantize with one scale for both"
            )


def _widen(node: fx.Node) -> None:
    """One scale that covers the range on both sides of zero."""
    value, scale, zero, low, high = node.args[:5]
    reach = max(abs(int(low) - int(zero)), abs(int(high) - int(zero)))  # type: ignore[arg-type]
    node.args = (value, float(scale) * reach / _LIMIT, 0, -_LIMIT - 1, _LIMIT, torch.int8)  # type: ignore[arg-type]
    infer(node)


def _requantize(program: Program, node: fx.Node, readers: int) -> None:
    """A stored weight rounded again without zero points."""
    stored, scale = weight(program, node.args[0]), node.args[1]
    assert stored is not None
    if readers > 1:
        raise TargetError(f"tensorrt: {layer(node)}: a quantized weight with zero points has {readers} readers")
    per_channel = node.target is Q.dequantize_per_channel.default
    axis = int(node.args[3]) if per_channel else 0  # type: ignore[arg-type]
    shape = [-1 if d == axis else 1 for d in range(stored.dim())] if per_channel else [1] * stored.dim()

    def column(value: Any) -> Tensor:
        found = weight(program, value)
        return (found.detach() if found is not None else torch.tensor(float(value))).double().reshape(shape)

    real = (stored.double() - column(node.args[2])) * column(scale)
    others = [d for d in range(stored.dim()) if not per_channel or d != axis]
    new = real.abs().amax(others, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _LIMIT
    set_weight(program, node.args[0], (real / new).round().to(torch.int8))  # type: ignore[arg-type]
    if per_channel:
        set_weight(program, scale, new.flatten().float())  # type: ignore[arg-type]
        zeros = weight(program, node.args[2])
        assert zeros is not None
        set_weight(program, node.args[2], torch.zeros_like(zeros, dtype=torch.int8))  # type: ignore[arg-type]
        node.args = (*node.args[:4], -_LIMIT, _LIMIT, torch.int8)
    else:
        node.args = (node.args[0], float(new), 0, -_LIMIT, _LIMIT, torch.int8)
