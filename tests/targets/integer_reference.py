"""A quantized program in integers: layers between Q/DQ as int64 sums, which are what a device's int32 sums are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, fx

from edgecompile.program import Program

aten = torch.ops.aten
Q = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class Whole:
    """Integers without their zero point, and what one of them is worth (a number, or one an output channel)."""

    value: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]

    def real(self) -> Tensor:
        """The numbers that they stand for, in float64."""
        column = self.scale.reshape(-1, *[1] * (self.value.ndim - 1)) if self.scale.size > 1 else self.scale
        return torch.from_numpy(self.value * column)


class Integers(fx.Interpreter):
    """Runs a program's graph; `sums` is the largest sum that a layer made, which must fit 32 bits."""

    sums = 0
    layers = 0

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One node: integers where both operands are, float64 elsewhere."""
        if target is Q.quantize_per_tensor.default:
            x, scale, zero, low, high = args[:5]
            steps = np.rint(_real(x).numpy() / np.float64(np.float32(scale))) + zero
            return Whole(np.clip(steps, low, high).astype(np.int64), np.float64(np.float32(scale)))
        if target is Q.dequantize_per_tensor.default:
            given, zero = args[0], args[2]
            return Whole(given.value - zero, np.asarray(np.float32(args[1]), np.float64))
        if target is Q.dequantize_per_channel.default:
            assert not bool(args[2].any())
            return Whole(args[0].numpy().astype(np.int64), args[1].detach().double().numpy())
        if target in (aten.conv2d.default, aten.linear.default) and isinstance(args[0], Whole):
            return self._layer(target, args)
        if target in (aten.relu.default, aten.flatten.using_ints) and isinstance(args[0], Whole):
            moved = target(torch.from_numpy(args[0].value), *args[1:], **kwargs)
            return Whole(moved.numpy(), args[0].scale)
        args = tuple(_real(a) for a in args)
        return target(*args, **kwargs)

    def _layer(self, target: Any, args: tuple[Any, ...]) -> Tensor:
        x, w = args[0], args[1]
        if target is aten.linear.default:
            sums = x.value @ w.value.T
        else:
            stride = args[3] if len(args) > 3 else [1, 1]
            pad = args[4] if len(args) > 4 else [0, 0]
            assert len(args) < 6, "neither dilation nor groups here"
            padded = np.pad(x.value, [(0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1])])
            windows = np.lib.stride_tricks.sliding_window_view(padded, w.value.shape[2:], (2, 3))
            sums = np.einsum("nchwij,ocij->nohw", windows[:, :, :: stride[0], :: stride[1]], w.value)
        self.sums, self.layers = max(self.sums, int(abs(sums).max())), self.layers + 1
        column = [1, -1, *[1] * (sums.ndim - 2)]
        real = sums * (x.scale * w.scale).reshape(column)
        bias = 0.0 if len(args) < 3 or args[2] is None else args[2].detach().double().numpy().reshape(column)
        return torch.from_numpy(real + bias)


def _real(value: Any) -> Any:
    if isinstance(value, Whole):
        return value.real()
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def integers_of(program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The outputs of a quantized program, its layers in integers; at least one is, and every sum fits 32 bits."""
    runner = Integers(program.graph)
    with torch.no_grad():
        found = runner.run(*inputs)
    assert runner.layers
    assert runner.sums < 2**31
    return tuple(_real(v).float() for v in found)
