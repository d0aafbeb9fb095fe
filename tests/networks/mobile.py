"""MobileNet v1 to v3, MNASNet and EfficientNet: depthwise convolutions, widened and narrowed again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from tests.networks.layers import Activation, Residual, SqueezeExcite, classifier, conv, divisible


class Gate(NamedTuple):
    """A squeeze-and-excite of `hidden` channels."""

    hidden: int
    act: Callable[[], nn.Module] = nn.ReLU
    gate: Callable[[], nn.Module] = nn.Sigmoid


def inverted(
    inside: int,
    wide: int,
    outside: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    act: Activation = nn.ReLU,
    gate: Gate | None = None,
    fused: bool = False,
) -> nn.Module:
    """1x1 to `wide`, depthwise, gate, 1x1 to `outside`, with a shortcut where the shapes allow one.

    The first convolution is left out where it would not widen; `fused` makes one full convolution of the first two.
    """
    layers: list[nn.Module] = []
    if fused:
        layers.append(conv(inside, wide, kernel, stride, act=act))
    else:
        if wide != inside:
            layers.append(conv(inside, wide, act=act))
        layers.append(conv(wide, wide, kernel, stride, groups=wide, act=act))
    if gate is not None:
        layers.append(SqueezeExcite(wide, gate.hidden, gate.act, gate.gate))
    if not (fused and wide == inside):
        layers.append(conv(wide, outside, act=None))
    body = nn.Sequential(*layers)
    return Residual(body) if stride == 1 and inside == outside else body


class _PadStrided(nn.Sequential):
    """One row and column of zeros below and to the right, as Keras pads before a stride."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(nn.ZeroPad2d((0, 1, 0, 1)), layer)


def mobilenet_v1() -> nn.Module:
    """Keras' MobileNet: ReLU6, and a 1x1 convolution as classifier."""
    layers: list[nn.Module] = [_PadStrided(conv(3, 32, 3, 2, act=nn.ReLU6, padding=0))]
    inside = 32
    for outside, stride in (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ):
        if stride == 2:
            layers.append(_PadStrided(conv(inside, inside, 3, 2, groups=inside, act=nn.ReLU6, padding=0)))
        else:
            layers.append(conv(inside, inside, 3, groups=inside, act=nn.ReLU6))
        layers.append(conv(inside, outside, act=nn.ReLU6))
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(1024, 1000, 1), nn.Flatten())


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.ReLU6)]
    inside = 32
    for widen, outside, depth, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(depth):
            layers.append(inverted(inside, inside * widen, outside, 3, 1 if block else first, act=nn.ReLU6))
            inside = outside
    return nn.Sequential(*layers, conv(320, 1280, act=nn.ReLU6), *classifier(1280))


# kernel, wide, outside, gated, hard-swish (else ReLU), stride
V3_LARGE = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)  # fmt: skip
V3_SMALL = (
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1),
    (5, 576, 96, 1, 1, 1),
)  # fmt: skip


def mobilenet_v3(blocks: Sequence[tuple[int, ...]], last: int) -> nn.Module:
    """`last`: channels of the hidden linear layer, 1280 in the large one and 1024 in the small one."""
    layers: list[nn.Module] = [conv(3, 16, 3, 2, act=nn.Hardswish)]
    inside = 16
    for kernel, wide, outside, gated, swish, stride in blocks:
        act = nn.Hardswish if swish else nn.ReLU
        gate = Gate(divisible(wide // 4), nn.ReLU, nn.Hardsigmoid) if gated else None
        layers.append(inverted(inside, wide, outside, kernel, stride, act=act, gate=gate))
        inside = outside
    wide = 6 * inside
    layers += [conv(inside, wide, act=nn.Hardswish), *classifier(wide, last), nn.Hardswish(), nn.Linear(last, 1000)]
    return nn.Sequential(*layers)


def mnasnet(factor: float) -> nn.Module:
    """torchvision's MNASNet: no gates, ReLU everywhere; `factor` scales every width but the last."""
    first, second, *widths = (divisible(factor * w) for w in (32, 16, 24, 40, 80, 96, 192, 320))
    layers: list[nn.Module] = [
        *(conv(3, first, 3, 2), conv(first, first, 3, groups=first), conv(first, second, act=None))
    ]
    inside = second
    rest = ((3, 2, 3, 3), (5, 2, 3, 3), (5, 2, 6, 3), (3, 1, 6, 2), (5, 2, 6, 4), (3, 1, 6, 1))
    for outside, (kernel, stride, widen, depth) in zip(widths, rest, strict=True):
        for block in range(depth):
            layers.append(inverted(inside, inside * widen, outside, kernel, 1 if block else stride))
            inside = outside
    return nn.Sequential(*layers, conv(inside, 1280), *classifier(1280))


# widen, kernel, stride, outside, depth, fused
B0 = (
    (1, 3, 1, 16, 1, 0), (6, 3, 2, 24, 2, 0), (6, 5, 2, 40, 2, 0), (6, 3, 2, 80, 3, 0), (6, 5, 1, 112, 3, 0),
    (6, 5, 2, 192, 4, 0), (6, 3, 1, 320, 1, 0),
)  # fmt: skip
V2_S = (
    (1, 3, 1, 24, 2, 1), (4, 3, 2, 48, 4, 1), (4, 3, 2, 64, 4, 1), (4, 3, 2, 128, 6, 0), (6, 3, 1, 160, 9, 0),
    (6, 3, 2, 256, 15, 0),
)  # fmt: skip


def efficientnet(
    stages: Sequence[tuple[int, ...]], stem: int, last: int, width: float = 1.0, depth: float = 1.0
) -> nn.Module:
    """The gate's hidden channels are a quarter of the block's input, not of the widened map; SiLU everywhere."""
    inside = divisible(stem * width)
    layers: list[nn.Module] = [conv(3, inside, 3, 2, act=nn.SiLU)]
    for widen, kernel, stride, outside, repeats, fused in stages:
        outside = divisible(outside * width)
        for block in range(math.ceil(repeats * depth)):
            gate = None if fused else Gate(max(1, inside // 4), nn.SiLU)
            step = 1 if block else stride
            layers.append(
                inverted(inside, inside * widen, outside, kernel, step, act=nn.SiLU, gate=gate, fused=bool(fused))
            )
            inside = outside
    last = divisible(last * width)
    return nn.Sequential(*layers, conv(inside, last, act=nn.SiLU), *classifier(last))
