"""DenseNet, SqueezeNet, ShuffleNetV2 and DLA, each as the library has it whose weights were measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.networks.layers import Branches, classifier, conv


def _activated(inside: int, outside: int, kernel: int = 1) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False),
    ]


def densenet(depths: Sequence[int] = (6, 12, 24, 16), growth: int = 32) -> nn.Module:
    """DenseNet-121 by default: every layer adds `growth` channels to its input's."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        if stage:
            layers += [*_activated(channels, channels // 2), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            new = nn.Sequential(*_activated(channels, 4 * growth), *_activated(4 * growth, growth, 3))
            layers.append(Branches(nn.Identity(), new))
            channels += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), *classifier(channels))


def _fire(inside: int, squeezed: int, expanded: int) -> nn.Module:
    def plain(inside: int, outside: int, kernel: int = 1) -> nn.Module:
        return conv(inside, outside, kernel, bias=True, norm=False)

    return nn.Sequential(plain(inside, squeezed), Branches(plain(squeezed, expanded), plain(squeezed, expanded, 3)))


def squeezenet1_1() -> nn.Module:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *(conv(3, 64, 3, 2, bias=True, norm=False, padding=0), pool()),
        *(_fire(64, 16, 64), _fire(128, 16, 64), pool()),
        *(_fire(128, 32, 128), _fire(256, 32, 128), pool()),
        *(_fire(256, 48, 192), _fire(384, 48, 192), _fire(384, 64, 256), _fire(512, 64, 256)),
        *(conv(512, 1000, bias=True, norm=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


class Shuffled(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass (or, with a stride, all go both ways), then both are mixed."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        half = outside // 2
        self.left = None
        if stride > 1:
            depthwise = conv(inside, inside, 3, stride, groups=inside, act=None)
            self.left = nn.Sequential(depthwise, conv(inside, half))
        self.right = nn.Sequential(
            conv(inside if stride > 1 else half, half),
            conv(half, half, 3, stride, groups=half, act=None),
            conv(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.left is None:
            kept, used = x.chunk(2, 1)
            joined = torch.cat([kept, self.right(used)], 1)
        else:
            joined = torch.cat([self.left(x), self.right(x)], 1)
        batch, channels, height, width = joined.shape
        mixed = joined.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return mixed.reshape(batch, channels, height, width)


def shufflenet_v2(widths: Sequence[int] = (48, 96, 192), last: int = 1024) -> nn.Module:
    """The half-wide one by default."""
    layers: list[nn.Module] = [conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    inside = 24
    for width, depth in zip(widths, (4, 8, 4), strict=True):
        layers += [Shuffled(width if unit else inside, width, 1 if unit else 2) for unit in range(depth)]
        inside = width
    return nn.Sequential(*layers, conv(inside, last), *classifier(last))


class DlaBlock(nn.Module):
    """A grouped bottleneck whose sum takes a shortcut from outside."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(inside, outside), conv(outside, outside, 3, stride, groups=32), conv(outside, outside, act=None)
        )

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return torch.relu(self.body(x) + (x if shortcut is None else shortcut))


class DlaRoot(nn.Module):
    """1x1 convolution of all children, plus the first of them."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv = conv(inside, outside, act=None)

    def forward(self, children: list[Tensor]) -> Tensor:
        return torch.relu(self.conv(torch.cat(children, 1)) + children[0])


class DlaTree(nn.Module):
    """Two subtrees in a row, joined by a root; `top` also hands the root the pooled input."""

    def __init__(
        self, levels: int, inside: int, outside: int, stride: int = 1, top: bool = False, root: int = 0
    ) -> None:
        super().__init__()
        root = (root or 2 * outside) + (inside if top else 0)
        self.levels, self.top = levels, top
        self.pool = nn.MaxPool2d(stride, stride) if stride > 1 else nn.Identity()
        self.project: nn.Module = nn.Identity()
        if levels == 1:
            self.one: nn.Module = DlaBlock(inside, outside, stride)
            self.two: nn.Module = DlaBlock(outside, outside, 1)
            self.root = DlaRoot(root, outside)
            if inside != outside:
                self.project = conv(inside, outside, act=None)
        else:
            self.one = DlaTree(levels - 1, inside, outside, stride)
            self.two = DlaTree(levels - 1, outside, outside, root=root + outside)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, children: Sequence[Tensor] = ()) -> Tensor:
        bottom = self.pool(x)
        given = [*children, bottom] if self.top else list(children)
        if self.levels > 1:
            one = self.one(x)
            return self.two(one, None, [*given, one])
        one = self.one(x, self.project(bottom))
        return self.root([self.two(one), one, *given])


def dla102x() -> nn.Module:
    return nn.Sequential(
        conv(3, 16, 7),
        conv(16, 16, 3),
        conv(16, 32, 3, 2),
        DlaTree(1, 32, 128, 2),
        DlaTree(3, 128, 256, 2, top=True),
        DlaTree(4, 256, 512, 2, top=True),
        DlaTree(1, 512, 1024, 2, top=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(1024, 1000, 1),
        nn.Flatten(),
    )
