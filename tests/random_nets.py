"""Random small networks out of the parts that exact passes rewrite, and a hypothesis strategy for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 4
SIZE = 6


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Weights and statistics that no fold gets right by luck: negative gammas, tiny variances, odd means."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float = -0.5, high: float = 0.5) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point():
                value.copy_(draw(value, 0.3, 1.5) if name.endswith("running_var") else draw(value))
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                if module.running_var is not None:
                    module.running_var[0] = 1e-3
                if module.weight is not None:
                    module.weight.copy_(draw(module.weight, 0.2, 1.2) * torch.where(draw(module.weight) < 0, -1, 1))
                    module.weight[0] *= 0.1
    return model.eval()


class ConvBn(nn.Module):
    def __init__(self, kernel: int, groups: int, dilation: int, bias: bool, inplace: bool) -> None:
        super().__init__()
        pad = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=pad, groups=groups, dilation=dilation, bias=bias)
        self.bn = nn.BatchNorm2d(CHANNELS, affine=groups != 2)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class BnConv(nn.Module):
    """A batch norm before a convolution, which pads or not."""

    def __init__(self, padded: bool, groups: int, shift: bool, again: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(CHANNELS)
        self.shift = shift
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3 if padded else 1, padding=int(padded), groups=groups, bias=again)
        self.other = nn.Conv2d(CHANNELS, CHANNELS, 1) if again else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(torch.relu(x))
        z = self.conv(y)
        return z if self.other is None else z * torch.sigmoid(self.other(y))


class Up(nn.Module):
    """A transposed convolution with batch norm, and a strided convolution back."""

    def __init__(self, groups: int, scaled: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, stride=2, groups=groups, bias=scaled)
        self.bn = nn.BatchNorm2d(CHANNELS)
        self.down = nn.Conv2d(CHANNELS, CHANNELS, 2, stride=2)
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.up(x))
        return self.down(F.gelu(y) / 2 if self.scaled else torch.tanh(y))


class RepVgg(nn.Module):
    """3x3 + 1x1 + identity, each with or without batch norm."""

    def __init__(self, groups: int, norms: bool, identity: int, branches: int) -> None:
        super().__init__()
        kernels = [3, 1, 3, 1][:branches]
        self.convs = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS, k, padding=k // 2, groups=groups, bias=not norms) for k in kernels
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) if norms else nn.Identity() for _ in kernels)
        self.identity = nn.BatchNorm2d(CHANNELS) if identity == 2 else nn.Identity() if identity else None

    def forward(self, x: Tensor) -> Tensor:
        total = sum(norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True))
        return torch.relu(total if self.identity is None else self.identity(x) + total)  # type: ignore[operator]


class Pointwise(nn.Module):
    """Convolutions in a row with nothing between."""

    def __init__(self, first: int, width: int, bias: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(CHANNELS, width, first, padding=first // 2, bias=bias)
        self.b = nn.Conv2d(width, CHANNELS, 1, bias=not bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Lora(nn.Module):
    """A layer with a low-rank adapter, a linear one in the layout with channels last or a convolution."""

    def __init__(self, conv: bool, scale: float, swapped: bool) -> None:
        super().__init__()
        if conv:
            self.base: nn.Module = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
            self.a: nn.Module = nn.Conv2d(CHANNELS, 1, 3, padding=1, bias=swapped)
            self.b: nn.Module = nn.Conv2d(1, CHANNELS, 1, bias=False)
        else:
            self.base = nn.Linear(CHANNELS, CHANNELS)
            self.a, self.b = nn.Linear(CHANNELS, 1, bias=False), nn.Linear(1, CHANNELS, bias=swapped)
        self.conv, self.scale, self.swapped = conv, scale, swapped
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.conv else x.permute(0, 2, 3, 1)
        base, delta = self.base(x), self.b(self.a(self.drop(x))) * self.scale
        y = delta + base if self.swapped else base + delta
        return y if self.conv else y.permute(0, 3, 1, 2).contiguous()


class Scale(nn.Module):
    """Constants around a convolution: one number or one a channel."""

    def __init__(self, kind: int, before: bool, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2, bias=bool(kind % 2))
        self.register_buffer("factor", torch.zeros(CHANNELS, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, CHANNELS, 1, 1))
        self.kind, self.before = kind, before

    def scaled(self, x: Tensor) -> Tensor:
        match self.kind:
            case 0:
                return x * self.factor
            case 1:
                return self.gamma * x + 0.5
            case 2:
                return (x - self.factor) / 0.7
            case 3:
                return 1.5 - x
            case _:
                return torch.sub(-x, self.gamma, alpha=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.scaled(torch.relu(x))) if self.before else torch.relu(self.scaled(self.conv(x)))


class Pad(nn.Module):
    def __init__(self, sides: Sequence[int], kind: int) -> None:
        super().__init__()
        self.sides, self.kind = list(sides), kind
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=int(kind == 1), bias=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(x, self.sides)
        if self.kind == 2:
            y = F.avg_pool2d(y, 3, stride=1)
        elif self.kind == 3:
            y = F.max_pool2d(y, 3, stride=1)
        else:
            y = self.conv(y)
        return F.adaptive_avg_pool2d(y, x.shape[-1])


class Layout(nn.Module):
    """Transposes and reshapes that cancel, with an elementwise operator or a linear layer between."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind, self.linear, self.norm = kind, nn.Linear(CHANNELS, CHANNELS), nn.LayerNorm(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        match self.kind:
            case 0:
                return torch.tanh(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            case 1:
                return self.linear(x.flatten(2).transpose(1, 2)).transpose(2, 1).reshape(b, c, h, w)
            case 2:
                y = F.gelu(x.reshape(b, c, -1)).view(b, 2, -1, h, w).reshape(b, c, h * w)
                return y.unsqueeze(1).view(b, c, h, w)
            case 3:
                return self.linear(self.norm(x.permute(0, 2, 3, 1))).movedim(-1, 1)
            case 4:
                return x.transpose(2, 3).transpose(1, 3).permute(0, 3, 2, 1)
            case _:
                y = x.permute(0, 2, 3, 1)
                return torch.relu(y).permute(0, 3, 1, 2) + y.mean(-1).unsqueeze(1)


class Twice(nn.Module):
    """The same layer read twice, the same value computed twice."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind, self.conv, self.bn = kind, nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS)
        self.other = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)
        if kind == 2:
            self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case 0:
                return self.bn(self.conv(x)) * 2 + self.bn(self.conv(torch.relu(x)))
            case 1:
                y = self.conv(x)
                return self.bn(y) + torch.relu(y) + torch.sigmoid(x) * torch.sigmoid(x)
            case 2:
                return self.other(self.conv(x)) + self.bn(self.conv(x))
            case _:
                return torch.cat([torch.relu(x), x[:, :0], torch.relu(x)], 1)[:, :CHANNELS] + x * x.new_ones(1)


class Nothing(nn.Module):
    """What changes nothing, constants that are made while running, and operators in place."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind, self.drop = kind, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(x.shape[-1]) < self.kind + 3
        match self.kind:
            case 0:
                return self.drop(x.contiguous().clone()).to(x.dtype) + 0
            case 1:
                return torch.where(mask, x, torch.full((1,), 0.5)) * torch.ones_like(x)
            case 2:
                return x[:].expand(x.shape[0], -1, -1, -1).relu().relu() + torch.zeros_like(x)
            case 3:
                return torch.where(mask, x, x + 1).masked_fill(~mask, 3.0)
            case _:
                y = x.clone()
                y[:, 1] = 2.0
                y += torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
                return F.relu(y, inplace=True)


KINDS = {
    "conv_bn": lambda a: ConvBn([1, 3, 5][a % 3], [1, 2, 4][a // 3 % 3], 1 + a // 9 % 2, a % 2 == 0, a % 4 == 0),
    "bn_conv": lambda a: BnConv(a % 2 == 0, [1, 2][a // 2 % 2], a % 5 == 0, a % 3 == 0),
    "up": lambda a: Up([1, 2][a % 2], a % 3 == 0),
    "repvgg": lambda a: RepVgg([1, 2, 4][a % 3], a % 2 == 0, a // 2 % 3, 1 + a // 3 % 4),
    "pointwise": lambda a: Pointwise([1, 3][a % 2], [2, 4, 9, 40][a // 2 % 4], a % 3 == 0),
    "lora": lambda a: Lora(a % 2 == 0, [0.5, 1.0, 2][a % 3], a // 2 % 2 == 0),
    "scale": lambda a: Scale(a % 5, a // 5 % 2 == 0, [1, 3][a // 10 % 2]),
    "pad": lambda a: Pad([(1, 1, 1, 1), (0, 1, 0, 1), (2, 2, 1, 1), (1, 1)][a % 4], a // 4 % 4),
    "layout": lambda a: Layout(a % 6),
    "twice": lambda a: Twice(a % 4),
    "nothing": lambda a: Nothing(a % 5),
}


@dataclass(frozen=True)
class Recipe:
    """What a network is made of: kinds with a variant each, which blocks get a residual sum, and a seed."""

    blocks: tuple[tuple[str, int], ...]
    residual: int
    seed: int


class Net(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(KINDS[kind](variant) for kind, variant in recipe.blocks)
        self.residual = [bool(recipe.residual >> i & 1) for i in range(len(recipe.blocks))]
        self.norm = nn.BatchNorm1d(CHANNELS)
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block, residual in zip(self.blocks, self.residual, strict=True):
            x = x + block(x) if residual else block(x)
        return x, self.head(self.norm(x.mean((2, 3))))


def build(recipe: Recipe) -> nn.Module:
    return randomise(Net(recipe), recipe.seed)


def example(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def recipes(max_blocks: int = 4) -> st.SearchStrategy[Recipe]:
    block = st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 35))
    blocks = st.lists(block, min_size=1, max_size=max_blocks).map(tuple)
    return st.builds(Recipe, blocks, st.integers(0, 2**max_blocks - 1), st.integers(0, 9))
