"""ResNet and its wider and grouped forms, and the two that Keras has: the original one and the pre-activated one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.networks.layers import Residual, classifier, conv

WIDTHS = (64, 128, 256, 512)


def _stem(bias: bool = False, norm: bool = True) -> list[nn.Module]:
    act = nn.ReLU if norm else None
    return [conv(3, 64, 7, 2, bias=bias, norm=norm, act=act), nn.MaxPool2d(3, 2, 1)]


def _basic(inside: int, width: int, stride: int) -> nn.Module:
    body = nn.Sequential(conv(inside, width, 3, stride), conv(width, width, 3, act=None))
    same = stride == 1 and inside == width
    return Residual(body, None if same else conv(inside, width, 1, stride, act=None), nn.ReLU())


def _bottleneck(inside: int, width: int, stride: int, groups: int, group_width: int, early: bool) -> nn.Module:
    """`early`: the first convolution has the stride, and all have a bias, as in the original and in Keras."""
    middle, outside = width * group_width // 64 * groups, 4 * width
    first, second = (stride, 1) if early else (1, stride)
    body = nn.Sequential(
        conv(inside, middle, 1, first, bias=early),
        conv(middle, middle, 3, second, groups=groups, bias=early),
        conv(middle, outside, 1, bias=early, act=None),
    )
    same = stride == 1 and inside == outside
    return Residual(body, None if same else conv(inside, outside, 1, stride, bias=early, act=None), nn.ReLU())


def resnet18() -> nn.Module:
    layers, inside = _stem(), 64
    for stage, width in enumerate(WIDTHS):
        layers += [_basic(inside, width, 2 if stage else 1), _basic(width, width, 1)]
        inside = width
    return nn.Sequential(*layers, *classifier(512))


def resnet(depths: Sequence[int], groups: int = 1, group_width: int = 64, early: bool = False) -> nn.Module:
    """With bottlenecks: the stride stands in the 3x3 convolution ("v1.5") unless `early`."""
    layers, inside = _stem(bias=early), 64
    for stage, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            layers.append(_bottleneck(inside, width, stride, groups, group_width, early))
            inside = 4 * width
    return nn.Sequential(*layers, *classifier(2048))


class PreActivated(nn.Module):
    """Keras' ResNetV2 block: the projection reads the activated input, a strided block without one pools it."""

    def __init__(self, inside: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inside), nn.ReLU())
        self.project = nn.Conv2d(inside, 4 * width, 1, stride) if project else None
        self.pool = nn.MaxPool2d(1, stride) if stride > 1 and not project else nn.Identity()
        self.body = nn.Sequential(
            conv(inside, width), conv(width, width, 3, stride), conv(width, 4 * width, bias=True, norm=False, act=None)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        shortcut = self.pool(x) if self.project is None else self.project(y)
        return torch.add(shortcut, self.body(y))


def resnet_v2(depths: Sequence[int]) -> nn.Module:
    """Keras' ResNetV2: every stage but the last ends with the stride."""
    layers, inside = _stem(bias=True, norm=False), 64
    for stage, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
        for block in range(depth):
            stride = 2 if stage < 3 and block == depth - 1 else 1
            layers.append(PreActivated(inside, width, stride, project=not block))
            inside = 4 * width
    return nn.Sequential(*layers, nn.BatchNorm2d(2048), nn.ReLU(), *classifier(2048))
