"""Two more teachers on Fashion-MNIST for the figures: a depthwise net (as MobileNetV2) and a small vision transformer.

    python -m tests.bench.teachers [depthwise|vit] [--device cuda] [--epochs 30]

trains one and writes its weights beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.data import digest_of
from edgecompile.models import fashion
from edgecompile.models.training import accuracy, load_weights, save_weights, train
from edgecompile.program import Program
from edgecompile.teacher import Teacher

NAMES = ("depthwise", "vit")


class Inverted(nn.Module):
    """Expansion by a 1x1 convolution, a 3x3 depthwise one, projection; a shortcut where shapes allow (MobileNetV2)."""

    def __init__(self, width_in: int, width: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = width_in * expand
        self.body = nn.Sequential(
            *_conv(width_in, inner, 1, 1, 1),
            nn.ReLU6(),
            *_conv(inner, inner, 3, stride, inner),
            nn.ReLU6(),
            *_conv(inner, width, 1, 1, 1),
        )
        self.short = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        """[n, width_in, h, w] to [n, width, h / stride, w / stride]."""
        y: Tensor = self.body(x)
        return x + y if self.short else y


def _conv(width_in: int, width: int, kernel: int, stride: int, groups: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(width)


class Depthwise(nn.Module):
    """[n, 1, 28, 28] to logits [n, 10]: eight inverted residual blocks of 24, 40 and 80 channels, 0.26 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        before = 24
        for width, stride in ((24, 1), (24, 1), (40, 2), (40, 1), (40, 1), (80, 2), (80, 1), (80, 1)):
            blocks.append(Inverted(before, width, stride, 4))
            before = width
        self.stem = nn.Sequential(*_conv(1, 24, 3, 1, 1), nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 28, 28] to [n, 10]."""
        logits: Tensor = self.head(self.pool(self.blocks(self.stem(x))).flatten(1))
        return logits


class Layer(nn.Module):
    """Attention and a perceptron, each behind its layer norm (ViT)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, width] to the same."""
        n, t, _ = x.shape
        q, k, v = (y.reshape(n, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class Vit(nn.Module):
    """[n, 1, 28, 28] to logits [n, 10]: 49 patches of 4x4, six layers of 96 with four heads, 0.57 M weights."""

    def __init__(self, width: int = 96, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 49, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 28, 28] to [n, 10]."""
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.layers(tokens)).mean(1))
        return logits


def network(name: str) -> nn.Module:
    """The untrained network."""
    return Depthwise() if name == "depthwise" else Vit()


def module(name: str) -> nn.Module:
    """The trained network; `fashion` is the product's own."""
    if name == "fashion":
        return load_weights(fashion.network(), fashion.WEIGHTS)
    return load_weights(network(name), Path(__file__).with_name(f"{name}.safetensors"))


def teacher(name: str) -> Teacher:
    """The trained network with its data."""
    data = fashion.splits()
    program = Program.capture(module(name), {"x": torch.zeros(2, 1, 28, 28)})
    return Teacher(
        name=name,
        program=program,
        digest=digest_of(program),
        calib=data["calib"],
        evaluate=data["eval"],
        train=data["train"],
        preprocessing=fashion.PREPROCESSING,
        classes=True,
    )


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--data", type=Path, default=fashion.FOLDER)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    data = fashion.splits(given.data)
    for name in given.names:
        torch.manual_seed(0)
        model = network(name)
        plain = name == "vit"
        train(
            model,
            data["train"],
            given.epochs,
            0,
            fashion.augment,
            batch_size=128,
            rate=1e-3 if plain else 0.1,
            device=given.device,
            bfloat16=True,
            adam=plain,
        )
        print(f"{name}: test accuracy {accuracy(model, data['eval']):.2f} %")
        save_weights(model, given.out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
