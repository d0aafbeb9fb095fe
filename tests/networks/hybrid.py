"""Vision transformers and mixers that are written here: ViT, EfficientFormer and Sequencer2D."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.layers import LayerScale, Residual, conv


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, places, channels] to [batch, heads, places, channels / heads]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _feed_forward(channels: int, widen: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, widen * channels), nn.GELU(), nn.Linear(widen * channels, channels))


class Attention(nn.Module):
    """Softmax attention whose queries, keys and values come from one linear layer, as in torchvision's ViT."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (_split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        return self.project(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class VisionTransformer(nn.Module):
    """ViT-B/16 by default: [batch, 3, size, size] to [batch, 1000] from the class token."""

    def __init__(self, size: int = 224, patch: int = 16, channels: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, channels))
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, channels))
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks.append(Residual(nn.Sequential(nn.LayerNorm(channels), Attention(channels, heads))))
            blocks.append(Residual(nn.Sequential(nn.LayerNorm(channels), _feed_forward(channels, 4))))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class BiasedAttention(nn.Module):
    """EfficientFormer's: wide values, and a learned bias by the distance between two places."""

    def __init__(self, channels: int, heads: int = 8, key: int = 32, widen: int = 4, side: int = 7) -> None:
        super().__init__()
        self.heads, self.sizes, self.scale = heads, [key, key, widen * key], key**-0.5
        self.qkv = nn.Linear(channels, heads * sum(self.sizes))
        self.project = nn.Linear(heads * widen * key, channels)
        self.biases = nn.Parameter(torch.zeros(heads, side * side))
        row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
        index = (row[:, None] - row).abs() * side + (column[:, None] - column).abs()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = _split_heads(self.qkv(x), self.heads).split(self.sizes, -1)
        weights = query @ key.transpose(-2, -1) * self.scale + self.biases[:, self.index]
        return self.project((weights.softmax(-1) @ value).transpose(1, 2).flatten(2))


class PoolMixer(nn.Module):
    """The mean of the neighbourhood, less the place itself."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


class Tokens(nn.Module):
    """[batch, channels, height, width] to [batch, places, channels]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class TwoHeads(nn.Module):
    """The mean of the places into two classifiers, whose mean is the answer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.one, self.two = nn.Linear(channels, 1000), nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).mean(1)
        return (self.one(x) + self.two(x)) / 2


def efficientformer(widths: Sequence[int] = (48, 96, 224, 448), depths: Sequence[int] = (3, 2, 6, 4)) -> nn.Module:
    """L1 by default: pooling on maps, and one block of attention at the end."""
    layers: list[nn.Module] = [
        conv(3, widths[0] // 2, 3, 2, bias=True),
        conv(widths[0] // 2, widths[0], 3, 2, bias=True),
    ]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            layers.append(conv(widths[stage - 1], width, 3, 2, bias=True, act=None))
        for _ in range(depth - (stage == 3)):
            mlp = (conv(width, 4 * width, bias=True, act=nn.GELU), conv(4 * width, width, bias=True, act=None))
            layers.append(Residual(nn.Sequential(PoolMixer(), LayerScale(width, 1, 1))))
            layers.append(Residual(nn.Sequential(*mlp, LayerScale(width, 1, 1))))
    width = widths[-1]
    for body in (BiasedAttention(width), _feed_forward(width, 4)):
        layers += [Tokens()] if isinstance(body, BiasedAttention) else []
        layers.append(Residual(nn.Sequential(nn.LayerNorm(width), body, LayerScale(width))))
    return nn.Sequential(*layers, TwoHeads(width))


class TwoWayLstm(nn.Module):
    """Bidirectional LSTMs down the columns and along the rows of [batch, height, width, channels], then mixed."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.LSTM(channels, hidden, batch_first=True, bidirectional=True)
        self.along = nn.LSTM(channels, hidden, batch_first=True, bidirectional=True)
        self.mix = nn.Linear(4 * hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        down, _ = self.down(x.transpose(1, 2).reshape(batch * width, height, channels))
        along, _ = self.along(x.reshape(batch * height, width, channels))
        columns = down.reshape(batch, width, height, -1).transpose(1, 2)
        return self.mix(torch.cat([columns, along.reshape(batch, height, width, -1)], -1))


class Patches(nn.Module):
    """A convolution of patches on channels last, or of an image where `first`; the output has channels last."""

    def __init__(self, inside: int, outside: int, patch: int, first: bool = False) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(inside, outside, patch, patch), first

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.first else x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MeanHead(nn.Module):
    """[batch, height, width, channels] to [batch, 1000]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean((1, 2)))


def sequencer2d(depths: Sequence[int] = (4, 3, 8, 3)) -> nn.Module:
    """The small one by default: patches of 7, then of 2, then two 1x1 convolutions."""
    widths, patches = (192, 384, 384, 384), (7, 2, 1, 1)
    layers: list[nn.Module] = []
    for stage, (width, patch, depth) in enumerate(zip(widths, patches, depths, strict=True)):
        layers.append(Patches(widths[stage - 1] if stage else 3, width, patch, first=not stage))
        for _ in range(depth):
            layers.append(Residual(nn.Sequential(nn.LayerNorm(width), TwoWayLstm(width, width // 4))))
            layers.append(Residual(nn.Sequential(nn.LayerNorm(width), _feed_forward(width, 3))))
    return nn.Sequential(*layers, MeanHead(widths[-1]))
