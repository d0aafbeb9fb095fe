"""Building blocks that several families share; maps are [batch, channels, height, width]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module] | None
Pair = int | tuple[int, int]


def conv(
    inside: int,
    outside: int,
    kernel: Pair = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    act: Activation = nn.ReLU,
    bias: bool = False,
    norm: bool = True,
    padding: Pair | None = None,
) -> nn.Sequential:
    """Convolution, batch norm where `norm`, activation where `act`; it keeps the size unless `stride` or `padding`."""
    if padding is None:
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    layers: list[nn.Module] = [nn.Conv2d(inside, outside, kernel, stride, padding, groups=groups, bias=bias)]
    if norm:
        layers.append(nn.BatchNorm2d(outside))
    if act is not None:
        layers.append(act())
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """`after(body(x) + shortcut(x))`; without a shortcut the input itself, without `after` the sum itself."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.after = body, shortcut, after

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) + (x if self.shortcut is None else self.shortcut(x))
        return y if self.after is None else self.after(y)


class Branches(nn.Module):
    """Every branch of the same input, joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate that is computed from their means."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        act: Callable[[], nn.Module] = nn.ReLU,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(self.pool(x)))))


class LayerScale(nn.Module):
    """One learned factor a channel; `shape` is the factor's shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full(shape, 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def classifier(channels: int, classes: int = 1000) -> list[nn.Module]:
    """Global average, then a linear layer: [batch, channels, height, width] to [batch, classes]."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def divisible(value: float, by: int = 8) -> int:
    """The multiple of `by` nearest to `value`, but not below 90 % of it: MobileNet's rule for scaled widths."""
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded if rounded >= 0.9 * value else rounded + by
