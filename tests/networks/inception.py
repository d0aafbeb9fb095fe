"""GoogLeNet and Inception v3 as torchvision and Keras have them: batch norm everywhere, no auxiliary heads."""

from __future__ import annotations

from torch import nn

from tests.networks.layers import Branches, Pair, classifier, conv


def _chain(inside: int, *layers: tuple[int, Pair], stride: int = 1) -> nn.Sequential:
    """Convolutions (channels, kernel) in a row; the last one has the stride, and then no padding."""
    modules = []
    for index, (outside, kernel) in enumerate(layers):
        last = index == len(layers) - 1 and stride > 1
        modules.append(conv(inside, outside, kernel, stride if last else 1, padding=0 if last else None))
        inside = outside
    return nn.Sequential(*modules)


def _googlenet_block(inside: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> nn.Module:
    # the branch that is 5x5 in the paper is 3x3 in torchvision and in its weights
    return Branches(
        conv(inside, one),
        _chain(inside, (three[0], 1), (three[1], 3)),
        _chain(inside, (five[0], 1), (five[1], 3)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv(inside, pooled)),
    )


def googlenet() -> nn.Module:
    return nn.Sequential(
        conv(3, 64, 7, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        conv(64, 64),
        conv(64, 192, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _googlenet_block(192, 64, (96, 128), (16, 32), 32),
        _googlenet_block(256, 128, (128, 192), (32, 96), 64),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _googlenet_block(480, 192, (96, 208), (16, 48), 64),
        _googlenet_block(512, 160, (112, 224), (24, 64), 64),
        _googlenet_block(512, 128, (128, 256), (24, 64), 64),
        _googlenet_block(512, 112, (144, 288), (32, 64), 64),
        _googlenet_block(528, 256, (160, 320), (32, 128), 128),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        _googlenet_block(832, 256, (160, 320), (32, 128), 128),
        _googlenet_block(832, 384, (192, 384), (48, 128), 128),
        *classifier(1024),
    )


def _pooled(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inside, outside))


def _a(inside: int, pooled: int) -> nn.Module:
    return Branches(
        conv(inside, 64),
        _chain(inside, (48, 1), (64, 5)),
        _chain(inside, (64, 1), (96, 3), (96, 3)),
        _pooled(inside, pooled),
    )


def _b(inside: int) -> nn.Module:
    return Branches(
        _chain(inside, (384, 3), stride=2),
        _chain(inside, (64, 1), (96, 3), (96, 3), stride=2),
        nn.MaxPool2d(3, 2),
    )


def _c(inside: int, width: int) -> nn.Module:
    row, column = (1, 7), (7, 1)
    return Branches(
        conv(inside, 192),
        _chain(inside, (width, 1), (width, row), (192, column)),
        _chain(inside, (width, 1), (width, column), (width, row), (width, column), (192, row)),
        _pooled(inside, 192),
    )


def _d(inside: int) -> nn.Module:
    return Branches(
        _chain(inside, (192, 1), (320, 3), stride=2),
        _chain(inside, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), stride=2),
        nn.MaxPool2d(3, 2),
    )


def _split() -> nn.Module:
    return Branches(conv(384, 384, (1, 3)), conv(384, 384, (3, 1)))


def _e(inside: int) -> nn.Module:
    return Branches(
        conv(inside, 320),
        nn.Sequential(conv(inside, 384), _split()),
        nn.Sequential(_chain(inside, (448, 1), (384, 3)), _split()),
        _pooled(inside, 192),
    )


def inception_v3() -> nn.Module:
    return nn.Sequential(
        conv(3, 32, 3, 2, padding=0),
        conv(32, 32, 3, padding=0),
        conv(32, 64, 3),
        nn.MaxPool2d(3, 2),
        conv(64, 80),
        conv(80, 192, 3, padding=0),
        nn.MaxPool2d(3, 2),
        _a(192, 32),
        _a(256, 64),
        _a(288, 64),
        _b(288),
        _c(768, 128),
        _c(768, 160),
        _c(768, 160),
        _c(768, 192),
        _d(768),
        _e(1280),
        _e(2048),
        *classifier(2048),
    )
