"""digits: a residual network on scikit-learn's digits; trained by `python -m edgecompile.models.digits`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgecompile.data.digest import digest_of
from edgecompile.data.types import Arrays
from edgecompile.errors import InputError
from edgecompile.models.residual import ResidualNet
from edgecompile.models.training import accuracy, load_weights, save_weights, train
from edgecompile.program import Program
from edgecompile.teacher import Teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

WEIGHTS = Path(__file__).with_name("digits.safetensors")
PREPROCESSING = {"image": {"size": [32, 32], "resize": "squash", "interpolation": "nearest", "channels": 1}}
_SPLIT_SEED = 20
_TEST, _CALIB = 450, 200


def network() -> ResidualNet:
    """The untrained network: [n, 1, 32, 32] to logits [n, 10], 0.14 M parameters."""
    return ResidualNet(1, (32, 64, 64), (1, 1, 1), 10)


def splits() -> dict[str, Arrays]:
    """`train`, `calib` and `eval` (1147, 200 and 450 pictures), disjoint and always the same.

    The 8x8 pictures are enlarged to 32x32 by repeating pixels and scaled to 0..1. Raises `InputError` without
    scikit-learn, which brings the data.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "digits: scikit-learn, which brings the data, is not installed: pip install 'edgecompile[models]'"
        ) from error
    data = load_digits()
    pictures = torch.from_numpy(data.images).float().div_(16).unsqueeze(1)
    pictures = pictures.repeat_interleave(4, 2).repeat_interleave(4, 3)
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    parts = {
        "eval": order[:_TEST],
        "calib": order[_TEST : _TEST + _CALIB],
        "train": order[_TEST + _CALIB :],
    }
    return {
        name: Arrays(f"digits ({name})", (pictures[index].contiguous(),), labels[index])
        for name, index in parts.items()
    }


def teacher() -> Teacher:
    """The trained network with its data."""
    data = splits()
    model = load_weights(network(), WEIGHTS)
    program = Program.capture(model, {"x": torch.zeros(2, 1, 32, 32)})
    return Teacher(
        name="digits",
        program=program,
        digest=digest_of(program),
        calib=data["calib"],
        evaluate=data["eval"],
        train=data["train"],
        preprocessing=PREPROCESSING,
        classes=True,
    )


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Turn by up to 12 degrees, scale by up to 12 % and shift by up to 3 pixels, each picture on its own."""
    count = len(pictures)
    draw = torch.rand(count, 4, generator=generator) * 2 - 1
    angle, scale, shift = draw[:, 0] * 0.21, 1 + draw[:, 1] * 0.12, draw[:, 2:] * 0.19
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    first = torch.stack((cos, -sin, shift[:, 0]), 1)
    second = torch.stack((sin, cos, shift[:, 1]), 1)
    grid = torch.nn.functional.affine_grid(torch.stack((first, second), 1), list(pictures.shape), align_corners=False)
    return torch.nn.functional.grid_sample(pictures, grid, align_corners=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the seed and write the weights: about a minute on one core."""
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    data = splits()
    torch.manual_seed(options.seed)
    model = network()
    train(model, data["train"], options.epochs, options.seed, augment, batch_size=64, rate=0.02)
    print(f"test accuracy {accuracy(model, data['eval']):.2f} % of {data['eval'].samples}")
    save_weights(model, options.out)


if __name__ == "__main__":
    main()
