"""YOLOv8, YOLOv10 and YOLO11, the nano ones: decoded boxes, best scores and classes, without suppression."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.networks.layers import Residual, conv

CLASSES, BINS, MASKS = 80, 16, 32
STRIDES = (8, 16, 32)


def silu(inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Module:
    return conv(inside, outside, kernel, stride, groups=groups, act=nn.SiLU if act else None)


def _maybe(body: nn.Module, add: bool) -> nn.Module:
    return Residual(body) if add else body


def bottleneck(channels: int, hidden: int, first: int = 3, add: bool = True) -> nn.Module:
    return _maybe(nn.Sequential(silu(channels, hidden, first), silu(hidden, channels, 3)), add)


class Grow(nn.Module):
    """The split of a 1x1 convolution and what every block makes of the part before it, joined by a 1x1 convolution."""

    def __init__(self, inside: int, hidden: int, outside: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.split, self.join = silu(inside, 2 * hidden), silu((2 + len(blocks)) * hidden, outside)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.join(torch.cat(parts, 1))


class Csp(nn.Module):
    """Blocks on one 1x1 convolution beside another one, joined by a third."""

    def __init__(self, inside: int, outside: int, *blocks: nn.Module) -> None:
        super().__init__()
        half = outside // 2
        self.long, self.short = nn.Sequential(silu(inside, half), *blocks), silu(inside, half)
        self.join = silu(2 * half, outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.long(x), self.short(x)], 1))


class Spp(nn.Module):
    """Three maximum pools in a row, all joined with their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow, self.join = silu(channels, channels // 2), silu(2 * channels, channels)
        self.pools = nn.ModuleList(nn.MaxPool2d(5, 1, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.narrow(x)]
        for pool in self.pools:
            parts.append(pool(parts[-1]))
        return self.join(torch.cat(parts, 1))


class SelfAttention(nn.Module):
    """Attention over all places, with keys half as wide as values and a depthwise convolution of the values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // 64
        self.sizes = [32, 32, 64]
        self.qkv = silu(channels, 2 * channels, act=False)
        self.place = silu(channels, channels, 3, groups=channels, act=False)
        self.project = silu(channels, channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = self.qkv(x).view(batch, self.heads, 128, height * width)
        query, key, value = parts.split(self.sizes, 2)
        weights = ((query.transpose(-2, -1) @ key) * 32**-0.5).softmax(-1)
        out = (value @ weights.transpose(-2, -1)).view(batch, channels, height, width)
        return self.project(out + self.place(value.reshape(batch, channels, height, width)))


class HalfAttention(nn.Module):
    """Attention and a feed-forward part on half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.split, self.join = silu(channels, channels), silu(channels, channels)
        feed_forward = nn.Sequential(silu(half, channels), silu(channels, half, act=False))
        self.blocks = nn.Sequential(Residual(SelfAttention(half)), Residual(feed_forward))

    def forward(self, x: Tensor) -> Tensor:
        kept, used = self.split(x).chunk(2, 1)
        return self.join(torch.cat([kept, self.blocks(used)], 1))


class LargeKernel(nn.Module):
    """Depthwise 7x7 and 3x3 convolutions, summed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.large = silu(channels, channels, 7, groups=channels, act=False)
        self.small = silu(channels, channels, 3, groups=channels, act=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.large(x) + self.small(x))


def c2f(inside: int, outside: int, depth: int = 1, add: bool = False) -> nn.Module:
    half = outside // 2
    return Grow(inside, half, outside, *(bottleneck(half, half, add=add) for _ in range(depth)))


def _c2f_large(inside: int, outside: int) -> nn.Module:
    half = outside // 2
    block = (
        silu(half, half, 3, groups=half),
        silu(half, outside),
        LargeKernel(outside),
        silu(outside, half),
        silu(half, half, 3, groups=half),
    )
    return Grow(inside, half, outside, Residual(nn.Sequential(*block)))


def _c3k2(inside: int, outside: int, nested: bool, share: int = 2) -> nn.Module:
    hidden = outside // share
    if not nested:
        return Grow(inside, hidden, outside, bottleneck(hidden, hidden // 2))
    return Grow(inside, hidden, outside, Csp(hidden, hidden, *(bottleneck(hidden // 2, hidden // 2) for _ in range(2))))


def _down(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(silu(inside, outside), silu(outside, outside, 3, 2, outside, act=False))


class Detect(nn.Module):
    """Boxes from distances in 16 bins and classes at three scales; `light`: depthwise class branches."""

    def __init__(self, widths: Sequence[int], size: int, light: bool) -> None:
        super().__init__()
        self.boxes, self.classes = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            box = (silu(width, 64, 3), silu(64, 64, 3), nn.Conv2d(64, 4 * BINS, 1))
            if light:
                first = nn.Sequential(silu(width, width, 3, groups=width), silu(width, CLASSES))
                second = nn.Sequential(silu(CLASSES, CLASSES, 3, groups=CLASSES), silu(CLASSES, CLASSES))
            else:
                first, second = silu(width, CLASSES, 3), silu(CLASSES, CLASSES, 3)
            self.boxes.append(nn.Sequential(*box))
            self.classes.append(nn.Sequential(first, second, nn.Conv2d(CLASSES, CLASSES, 1)))
        self.expected = nn.Conv2d(BINS, 1, 1, bias=False)
        sides = [size // stride for stride in STRIDES]
        places = [torch.arange(side * side) for side in sides]
        grids = [torch.stack([p % side, p // side]) + 0.5 for p, side in zip(places, sides, strict=True)]
        self.register_buffer("centres", torch.cat(grids, 1))
        strides = [torch.full((s * s,), 1.0 * t) for s, t in zip(sides, STRIDES, strict=True)]
        self.register_buffer("strides", torch.cat(strides))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        raw = torch.cat([layer(x).flatten(2) for layer, x in zip(self.boxes, maps, strict=True)], 2)
        classes = torch.cat([layer(x).flatten(2) for layer, x in zip(self.classes, maps, strict=True)], 2)
        batch, _, places = raw.shape
        bins = raw.view(batch, 4, BINS, places).transpose(1, 2).softmax(1)
        before, after = self.expected(bins).view(batch, 4, places).chunk(2, 1)
        corners = torch.cat([self.centres - before, self.centres + after], 1) * self.strides
        scores, best = classes.sigmoid().max(1)
        return corners.transpose(1, 2), scores, best


class Segment(Detect):
    """Detection, 32 mask coefficients a box, and 32 prototype masks at a quarter of the size."""

    def __init__(self, widths: Sequence[int], size: int, light: bool) -> None:
        super().__init__(widths, size, light)
        self.coefficients = nn.ModuleList(
            nn.Sequential(silu(w, MASKS, 3), silu(MASKS, MASKS, 3), nn.Conv2d(MASKS, MASKS, 1)) for w in widths
        )
        first = widths[0]
        up = nn.ConvTranspose2d(first, first, 2, 2)
        self.prototypes = nn.Sequential(silu(first, first, 3), up, silu(first, first, 3), silu(first, MASKS))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        masks = torch.cat([layer(x).flatten(2) for layer, x in zip(self.coefficients, maps, strict=True)], 2)
        return *super().forward(maps), masks.transpose(1, 2), self.prototypes(maps[0])


class Yolo(nn.Module):
    """A backbone of three maps, a path up and a path down, and a head: all blocks are given."""

    def __init__(
        self, backbone: Sequence[nn.Module], up: Sequence[nn.Module], down: Sequence[nn.Module], head: nn.Module
    ) -> None:
        super().__init__()
        self.backbone, self.up, self.down = nn.ModuleList(backbone), nn.ModuleList(up), nn.ModuleList(down)
        self.larger, self.head = nn.Upsample(scale_factor=2), head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        third = self.backbone[0](x)
        fourth = self.backbone[1](third)
        fifth = self.backbone[2](fourth)
        middle = self.up[0](torch.cat([self.larger(fifth), fourth], 1))
        small = self.up[1](torch.cat([self.larger(middle), third], 1))
        step, join, step_again, join_again = self.down
        medium = join(torch.cat([step(small), middle], 1))
        large = join_again(torch.cat([step_again(medium), fifth], 1))
        return self.head([small, medium, large])


def _head(size: int, light: bool, masks: bool) -> nn.Module:
    return (Segment if masks else Detect)((64, 128, 256), size, light)


def yolov8n(size: int = 640, masks: bool = False) -> nn.Module:
    start = nn.Sequential(silu(3, 16, 3, 2), silu(16, 32, 3, 2), c2f(32, 32, 1, True), silu(32, 64, 3, 2))
    backbone = (
        nn.Sequential(start, c2f(64, 64, 2, True)),
        nn.Sequential(silu(64, 128, 3, 2), c2f(128, 128, 2, True)),
        nn.Sequential(silu(128, 256, 3, 2), c2f(256, 256, 1, True), Spp(256)),
    )
    down = (silu(64, 64, 3, 2), c2f(192, 128), silu(128, 128, 3, 2), c2f(384, 256))
    return Yolo(backbone, (c2f(384, 128), c2f(192, 64)), down, _head(size, False, masks))


def yolov10n(size: int = 640) -> nn.Module:
    """One of the two heads: the deployed network has either the one that needs suppression or the other."""
    start = nn.Sequential(silu(3, 16, 3, 2), silu(16, 32, 3, 2), c2f(32, 32, 1, True), silu(32, 64, 3, 2))
    backbone = (
        nn.Sequential(start, c2f(64, 64, 2, True)),
        nn.Sequential(_down(64, 128), c2f(128, 128, 2, True)),
        nn.Sequential(_down(128, 256), c2f(256, 256, 1, True), Spp(256), HalfAttention(256)),
    )
    down = (silu(64, 64, 3, 2), c2f(192, 128), _down(128, 128), _c2f_large(384, 256))
    return Yolo(backbone, (c2f(384, 128), c2f(192, 64)), down, _head(size, True, False))


def yolo11n(size: int = 640, masks: bool = False) -> nn.Module:
    start = nn.Sequential(silu(3, 16, 3, 2), silu(16, 32, 3, 2), _c3k2(32, 64, False, 4), silu(64, 64, 3, 2))
    backbone = (
        nn.Sequential(start, _c3k2(64, 128, False, 4)),
        nn.Sequential(silu(128, 128, 3, 2), _c3k2(128, 128, True)),
        nn.Sequential(silu(128, 256, 3, 2), _c3k2(256, 256, True), Spp(256), HalfAttention(256)),
    )
    down = (silu(64, 64, 3, 2), _c3k2(192, 128, False), silu(128, 128, 3, 2), _c3k2(384, 256, True))
    return Yolo(backbone, (_c3k2(384, 128, False), _c3k2(256, 64, False)), down, _head(size, True, masks))
