"""YOLOv7-tiny and YOLOX-s: decoded boxes, best scores and classes, without suppression."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.networks.layers import conv
from tests.networks.yolo import CLASSES, STRIDES, Csp, Yolo, bottleneck, silu


def _leaky(inside: int, outside: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    return conv(inside, outside, kernel, stride, act=lambda: nn.LeakyReLU(0.1))


class Elan(nn.Module):
    """Two 1x1 convolutions, two 3x3 ones behind the second, and a 1x1 one of all four."""

    def __init__(self, inside: int, hidden: int, outside: int) -> None:
        super().__init__()
        self.side, self.first = _leaky(inside, hidden), _leaky(inside, hidden)
        self.second, self.third = _leaky(hidden, hidden, 3), _leaky(hidden, hidden, 3)
        self.join = _leaky(4 * hidden, outside)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        return self.join(torch.cat([self.third(second), second, first, self.side(x)], 1))


class SidePools(nn.Module):
    """Maximum pools of three sizes beside a 1x1 convolution."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.side, self.first = _leaky(inside, outside), _leaky(inside, outside)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (13, 9, 5))
        self.second, self.join = _leaky(4 * outside, outside), _leaky(2 * outside, outside)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        pooled = self.second(torch.cat([*(pool(first) for pool in self.pools), first], 1))
        return self.join(torch.cat([pooled, self.side(x)], 1))


def _grid(side: int) -> Tensor:
    """x and y of every place: [side * side, 2]."""
    places = torch.arange(side * side)
    return torch.stack([places % side, places // side], 1).float()


class Anchored(nn.Module):
    """Three anchors a place, each with a box, an objectness and classes."""

    def __init__(self, widths: Sequence[int], size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, 3 * (CLASSES + 5), 1) for width in widths)
        for index, stride in enumerate(STRIDES):
            self.register_buffer(f"grid{index}", _grid(size // stride))
            self.register_buffer(f"anchors{index}", torch.ones(3, 1, 2) * 4 * stride)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores = [], []
        for index, (layer, x) in enumerate(zip(self.layers, maps, strict=True)):
            y = layer(x).sigmoid().unflatten(1, (3, -1)).flatten(3).transpose(2, 3)
            centre = (y[..., :2] * 2 - 0.5 + self.get_buffer(f"grid{index}")) * STRIDES[index]
            sides = (y[..., 2:4] * 2) ** 2 * self.get_buffer(f"anchors{index}")
            boxes.append(torch.cat([centre - sides / 2, centre + sides / 2], -1).flatten(1, 2))
            scores.append((y[..., 4:5] * y[..., 5:]).flatten(1, 2))
        best, classes = torch.cat(scores, 1).max(-1)
        return torch.cat(boxes, 1), best, classes


class YoloV7Tiny(nn.Module):
    """Unlike the newer ones its lateral maps pass through 1x1 convolutions."""

    def __init__(self, size: int = 640) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.third = nn.Sequential(
            *(_leaky(3, 32, 3, 2), _leaky(32, 64, 3, 2), Elan(64, 32, 64), pool, Elan(64, 64, 128))
        )
        self.fourth = nn.Sequential(pool, Elan(128, 128, 256))
        self.fifth = nn.Sequential(pool, Elan(256, 256, 512), SidePools(512, 256))
        self.larger = nn.Upsample(scale_factor=2)
        self.narrow = nn.ModuleList([_leaky(256, 128), _leaky(128, 64)])
        self.lateral = nn.ModuleList([_leaky(256, 128), _leaky(128, 64)])
        self.up = nn.ModuleList([Elan(256, 64, 128), Elan(128, 32, 64)])
        self.step = nn.ModuleList([_leaky(64, 128, 3, 2), _leaky(128, 256, 3, 2)])
        self.down = nn.ModuleList([Elan(256, 64, 128), Elan(512, 128, 256)])
        self.last = nn.ModuleList([_leaky(64, 128, 3), _leaky(128, 256, 3), _leaky(256, 512, 3)])
        self.head = Anchored((128, 256, 512), size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        third = self.third(x)
        fourth = self.fourth(third)
        fifth = self.fifth(fourth)
        middle = self.up[0](torch.cat([self.lateral[0](fourth), self.larger(self.narrow[0](fifth))], 1))
        small = self.up[1](torch.cat([self.lateral[1](third), self.larger(self.narrow[1](middle))], 1))
        medium = self.down[0](torch.cat([self.step[0](small), middle], 1))
        large = self.down[1](torch.cat([self.step[1](medium), fifth], 1))
        return self.head([layer(y) for layer, y in zip(self.last, (small, medium, large), strict=True)])


class Focus(nn.Module):
    """Every other place of every other row as four times the channels."""

    def __init__(self, outside: int) -> None:
        super().__init__()
        self.conv = silu(12, outside, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return self.conv(torch.cat(corners, 1))


class ParallelPools(nn.Module):
    """Maximum pools of three sizes of the same map, joined with it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow, self.join = silu(channels, channels // 2), silu(2 * channels, channels)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        return self.join(torch.cat([x, *(pool(x) for pool in self.pools)], 1))


class Decoupled(nn.Module):
    """One box, one objectness and classes a place, from two branches behind a common 1x1 convolution."""

    def __init__(self, widths: Sequence[int], hidden: int, size: int) -> None:
        super().__init__()
        self.stems = nn.ModuleList(silu(width, hidden) for width in widths)
        self.classes, self.boxes = (
            nn.ModuleList(nn.Sequential(silu(hidden, hidden, 3), silu(hidden, hidden, 3)) for _ in widths)
            for _ in range(2)
        )
        self.to_class, self.to_box, self.to_object = (
            nn.ModuleList(nn.Conv2d(hidden, outputs, 1) for _ in widths) for outputs in (CLASSES, 4, 1)
        )
        sides = [size // stride for stride in STRIDES]
        self.register_buffer("grid", torch.cat([_grid(side) for side in sides]))
        strides = [torch.full((s * s, 1), 1.0 * t) for s, t in zip(sides, STRIDES, strict=True)]
        self.register_buffer("strides", torch.cat(strides))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        levels = []
        for index, x in enumerate(maps):
            x = self.stems[index](x)
            classes, box = self.classes[index](x), self.boxes[index](x)
            parts = (
                self.to_box[index](box),
                self.to_object[index](box).sigmoid(),
                self.to_class[index](classes).sigmoid(),
            )
            levels.append(torch.cat(parts, 1).flatten(2))
        y = torch.cat(levels, 2).transpose(1, 2)
        centre, sides = (y[..., :2] + self.grid) * self.strides, y[..., 2:4].exp() * self.strides
        best, classes = (y[..., 4:5] * y[..., 5:]).max(-1)
        return torch.cat([centre - sides / 2, centre + sides / 2], -1), best, classes


def _csp(inside: int, outside: int, depth: int = 1, add: bool = False) -> nn.Module:
    return Csp(inside, outside, *(bottleneck(outside // 2, outside // 2, 1, add) for _ in range(depth)))


class YoloX(Yolo):
    """The paths of the newer ones, with 1x1 convolutions before the path up."""

    def __init__(self, size: int = 640) -> None:
        start = nn.Sequential(Focus(32), silu(32, 64, 3, 2), _csp(64, 64, 1, True), silu(64, 128, 3, 2))
        backbone = (
            nn.Sequential(start, _csp(128, 128, 3, True)),
            nn.Sequential(silu(128, 256, 3, 2), _csp(256, 256, 3, True)),
            nn.Sequential(silu(256, 512, 3, 2), ParallelPools(512), _csp(512, 512), silu(512, 256)),
        )
        up = (nn.Sequential(_csp(512, 256), silu(256, 128)), _csp(256, 128))
        down = (silu(128, 128, 3, 2), _csp(256, 256), silu(256, 256, 3, 2), _csp(512, 512))
        super().__init__(backbone, up, down, Decoupled((128, 256, 512), 128, size))
