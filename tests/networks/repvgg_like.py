"""MobileOne and RepViT after reparameterization: every block of branches is one convolution with a bias."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tests.networks.layers import Activation, Residual, SqueezeExcite, classifier, conv, divisible


def _plain(
    inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: Activation = None
) -> nn.Module:
    return conv(inside, outside, kernel, stride, groups=groups, bias=True, norm=False, act=act)


def _mobileone_block(inside: int, outside: int, kernel: int, stride: int, groups: int, gated: bool) -> nn.Module:
    body = _plain(inside, outside, kernel, stride, groups)
    return (
        nn.Sequential(body, SqueezeExcite(outside, outside // 16), nn.ReLU())
        if gated
        else nn.Sequential(body, nn.ReLU())
    )


def mobileone(factors: Sequence[float], gated: bool = False) -> nn.Module:
    """`factors` scale the widths 64, 128, 256, 512; `gated`: the second half of stage 3 and stage 4 have gates."""
    inside = min(64, int(64 * factors[0]))
    layers: list[nn.Module] = [_mobileone_block(3, inside, 3, 2, 1, False)]
    gates = (0, 0, 5, 1) if gated else (0, 0, 0, 0)
    for factor, width, depth, gate in zip(factors, (64, 128, 256, 512), (2, 8, 10, 1), gates, strict=True):
        outside = int(width * factor)
        for block in range(depth):
            gated_block = block >= depth - gate
            layers.append(_mobileone_block(inside, inside, 3, 1 if block else 2, inside, gated_block))
            layers.append(_mobileone_block(inside, outside, 1, 1, 1, gated_block))
            inside = outside
    return nn.Sequential(*layers, *classifier(inside))


def _feed_forward(channels: int) -> nn.Module:
    return Residual(nn.Sequential(_plain(channels, 2 * channels, act=nn.GELU), _plain(2 * channels, channels)))


def _repvit_block(channels: int, gated: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [_plain(channels, channels, 3, groups=channels)]
    if gated:
        layers.append(SqueezeExcite(channels, divisible(channels / 4)))
    return [*layers, _feed_forward(channels)]


def repvit(widths: Sequence[int], depths: Sequence[int]) -> nn.Module:
    """Every other block has a gate; the two heads, of which one is for distillation, are one linear layer."""
    inside = widths[0]
    layers: list[nn.Module] = [_plain(3, inside // 2, 3, 2, act=nn.GELU), _plain(inside // 2, inside, 3, 2)]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            layers += _repvit_block(inside, False)
            layers += [_plain(inside, inside, 3, 2, inside), _plain(inside, width), _feed_forward(width)]
        for block in range(depth):
            layers += _repvit_block(width, block % 2 == 0)
        inside = width
    return nn.Sequential(*layers, *classifier(inside))
