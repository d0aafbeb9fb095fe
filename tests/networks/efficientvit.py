"""EfficientViT with multi-scale linear attention (the family with b1 to b3 and l2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.layers import Residual, conv

Act = Callable[[], nn.Module]


def _local(inside: int, outside: int, widen: int, stride: int, act: Act, few: bool) -> nn.Module:
    """Inverted bottleneck; `few`: biases instead of the first two norms."""
    wide = inside * widen
    return nn.Sequential(
        conv(inside, wide, bias=few, norm=not few, act=act),
        conv(wide, wide, 3, stride, groups=wide, bias=few, norm=not few, act=act),
        conv(wide, outside, act=None),
    )


def _separable(channels: int, act: Act) -> nn.Module:
    return nn.Sequential(conv(channels, channels, 3, groups=channels, act=act), conv(channels, channels, act=None))


def _fused(inside: int, outside: int, widen: int, stride: int, act: Act) -> nn.Module:
    return nn.Sequential(conv(inside, inside * widen, 3, stride, act=act), conv(inside * widen, outside, act=None))


def _double(channels: int, act: Act) -> nn.Module:
    return nn.Sequential(conv(channels, channels, 3, act=act), conv(channels, channels, 3, act=None))


class LinearAttention(nn.Module):
    """ReLU attention of two scales: keys times values first, so that the cost is linear in the places."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        heads = channels // dim
        self.dim = dim
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.wider = nn.Sequential(
            nn.Conv2d(3 * channels, 3 * channels, 5, padding=2, groups=3 * channels, bias=False),
            nn.Conv2d(3 * channels, 3 * channels, 1, groups=3 * heads, bias=False),
        )
        self.project = conv(2 * channels, channels, act=None)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        near = self.qkv(x)
        both = torch.cat([near, self.wider(near)], 1).reshape(batch, -1, 3 * self.dim, height * width)
        query, key, value = both.split(self.dim, 2)
        query, key = torch.relu(query), torch.relu(key)
        value = F.pad(value, (0, 0, 0, 1), value=1.0)  # the row of ones gives the sum of the weights
        out = torch.matmul(torch.matmul(value, key.transpose(-1, -2)), query)
        out = out[:, :, :-1] / (out[:, :, -1:] + 1e-15)
        return self.project(out.reshape(batch, -1, height, width))


def _attention_block(channels: int, dim: int, widen: int, act: Act) -> nn.Module:
    return nn.Sequential(
        Residual(LinearAttention(channels, dim)), Residual(_local(channels, channels, widen, 1, act, True))
    )


def _head(inside: int, wide: int, hidden: int, act: Act) -> list[nn.Module]:
    return [
        *(conv(inside, wide, act=act), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(wide, hidden, bias=False), nn.LayerNorm(hidden), act(), nn.Linear(hidden, 1000)),
    ]


def efficientvit_b(widths: Sequence[int], depths: Sequence[int], dim: int, head: tuple[int, int]) -> nn.Module:
    """Hard-swish everywhere; `dim`: channels of one attention head."""
    act = nn.Hardswish
    inside = widths[0]
    layers: list[nn.Module] = [conv(3, inside, 3, 2, act=act)]
    layers += [Residual(_separable(inside, act)) for _ in range(depths[0])]
    for stage in (1, 2):
        layers.append(_local(inside, widths[stage], 4, 2, act, False))
        inside = widths[stage]
        layers += [Residual(_local(inside, inside, 4, 1, act, False)) for _ in range(depths[stage] - 1)]
    for stage in (3, 4):
        layers.append(_local(inside, widths[stage], 4, 2, act, True))
        inside = widths[stage]
        layers += [_attention_block(inside, dim, 4, act) for _ in range(depths[stage])]
    return nn.Sequential(*layers, *_head(inside, *head, act))


def efficientvit_l(widths: Sequence[int], depths: Sequence[int], head: tuple[int, int]) -> nn.Module:
    """GELU everywhere; full convolutions in the first stages, attention in the last one only."""
    act = nn.GELU
    inside = widths[0]
    layers: list[nn.Module] = [conv(3, inside, 3, 2, act=act)]
    layers += [Residual(_double(inside, act)) for _ in range(depths[0])]
    for stage in (1, 2):
        layers.append(_fused(inside, widths[stage], 16, 2, act))
        inside = widths[stage]
        layers += [Residual(_fused(inside, inside, 4, 1, act)) for _ in range(depths[stage])]
    layers.append(_local(inside, widths[3], 16, 2, act, True))
    layers += [Residual(_local(widths[3], widths[3], 4, 1, act, True)) for _ in range(depths[3])]
    layers.append(_local(widths[3], widths[4], 24, 2, act, True))
    layers += [_attention_block(widths[4], 32, 6, act) for _ in range(depths[4])]
    return nn.Sequential(*layers, *_head(widths[4], *head, act))
