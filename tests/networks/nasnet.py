"""NASNet-A large: cells of separable convolutions that read the last two cells' outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.layers import classifier, conv


def _squeeze(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), conv(inside, outside, act=None))


def _separable(inside: int, outside: int, kernel: int, stride: int = 1, widen_first: bool = False) -> nn.Module:
    """Two depthwise-separable convolutions, each behind a ReLU; the first has the stride."""
    middle = outside if widen_first else inside
    layers: list[nn.Module] = []
    for here, there, step in ((inside, middle, stride), (middle, outside, 1)):
        depthwise = conv(here, here, kernel, step, groups=here, norm=False, act=None)
        layers += [nn.ReLU(), depthwise, conv(here, there, act=None)]
    return nn.Sequential(*layers)


def _average(stride: int = 1) -> nn.Module:
    return nn.AvgPool2d(3, stride, 1, count_include_pad=False)


class Halve(nn.Module):
    """Two 1x1 convolutions of every other place, one of them shifted by a place, joined: half the size."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(inside, outside // 2, 1, bias=False)
        self.odd = nn.Conv2d(inside, outside // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        even = self.even(F.avg_pool2d(x, 1, 2))
        odd = self.odd(F.avg_pool2d(F.pad(x, (-1, 1, -1, 1)), 1, 2))
        return self.norm(torch.cat([even, odd], 1))


class Normal(nn.Module):
    """The normal cell: six parts of `width` channels; `halve`: the older input is twice as large."""

    def __init__(self, older: int, old: int, width: int, halve: bool = False) -> None:
        super().__init__()
        self.left = Halve(older, width) if halve else _squeeze(older, width)
        self.right = _squeeze(old, width)
        self.five = nn.ModuleList(_separable(width, width, 5) for _ in range(2))
        self.three = nn.ModuleList(_separable(width, width, 3) for _ in range(3))
        self.pool = nn.ModuleList(_average() for _ in range(3))

    def forward(self, old: Tensor, older: Tensor) -> Tensor:
        left, right = self.left(older), self.right(old)
        parts = [
            left,
            self.five[0](right) + self.three[0](left),
            self.five[1](left) + self.three[1](left),
            self.pool[0](right) + left,
            self.pool[1](left) + self.pool[2](left),
            self.three[2](right) + right,
        ]
        return torch.cat(parts, 1)


class Reduction(nn.Module):
    """The reduction cell on two inputs of `width` channels, or on a first one of `raw` channels in the first stem."""

    def __init__(self, width: int, raw: int | None = None) -> None:
        super().__init__()
        inside, stem = raw or width, raw is not None
        self.five = _separable(width, width, 5, 2)
        self.seven = nn.ModuleList(_separable(inside, width, 7, 2, stem) for _ in range(2))
        self.five_left = _separable(inside, width, 5, 2, stem)
        self.three = _separable(width, width, 3)
        self.largest = nn.ModuleList(nn.MaxPool2d(3, 2, 1) for _ in range(2))
        self.average, self.same = _average(2), _average()

    def forward(self, right: Tensor, left: Tensor) -> Tensor:
        first = self.five(right) + self.seven[0](left)
        second = self.largest[0](right) + self.seven[1](left)
        third = self.average(right) + self.five_left(left)
        return torch.cat(
            [second, third, self.same(first) + second, self.three(first) + self.largest[1](right)],
            1,
        )


class Shrink(nn.Module):
    """A reduction cell in the middle of the network."""

    def __init__(self, inside: int, older: int, width: int) -> None:
        super().__init__()
        self.left, self.right, self.cell = _squeeze(older, width), _squeeze(inside, width), Reduction(width)

    def forward(self, old: Tensor, older: Tensor) -> Tensor:
        return self.cell(self.right(old), self.left(older))


class Stem(nn.Module):
    """The first convolution and two reduction cells: [batch, 3, 8n, 8n] to n, and twice n for the older output."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = conv(3, channels, 3, 2, act=None, padding=0)
        self.squeeze, self.first = _squeeze(channels, width // 4), Reduction(width // 4, channels)
        self.again, self.halve = _squeeze(width, width // 2), Halve(channels, width // 2)
        self.second = Reduction(width // 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        first = self.first(self.squeeze(x), x)
        return self.second(self.again(first), self.halve(x)), first


class NasNet(nn.Module):
    """[batch, 3, size, size] to [batch, 1000]; `width`: channels of one part of the first cells."""

    def __init__(self, width: int = 168, stem: int = 96, cells: int = 6) -> None:
        super().__init__()
        self.stem = Stem(stem, width)
        self.cells = nn.ModuleList()
        older, old = width, 2 * width
        for stage in range(3):
            if stage:
                width *= 2
                self.cells.append(Shrink(old, older, width))
                old = 4 * width
            for cell in range(cells):
                self.cells.append(Normal(older, old, width, halve=not cell))
                older, old = old, 6 * width
        self.head = nn.Sequential(nn.ReLU(), *classifier(old))

    def forward(self, x: Tensor) -> Tensor:
        old, older = self.stem(x)
        for cell in self.cells:
            new = cell(old, older)
            # the cell behind a reduction reads the same older output as the reduction itself
            old, older = new, older if isinstance(cell, Shrink) else old
        return self.head(old)
