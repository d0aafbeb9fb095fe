"""fashion: a residual network on Fashion-MNIST; trained by `python -m edgecompile.models.fashion`."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgecompile.data.digest import digest_of
from edgecompile.data.types import Arrays
from edgecompile.errors import InputError
from edgecompile.models.residual import ResidualNet
from edgecompile.models.training import accuracy, load_weights, save_weights, train
from edgecompile.program import Program
from edgecompile.teacher import Teacher

WEIGHTS = Path(__file__).with_name("fashion.safetensors")
FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.2860, 0.3530
PREPROCESSING = {
    "image": {"size": [28, 28], "resize": "squash", "channels": 1, "mean": [MEAN], "std": [STD]},
}
_CALIB = 500


def network() -> ResidualNet:
    """The untrained network: [n, 1, 28, 28] to logits [n, 10], 0.31 M parameters."""
    return ResidualNet(1, (32, 64, 128), (1, 1, 1), 10)


def read_idx(path: Path, rank: int) -> Tensor:
    """The bytes of a gzipped IDX file (LeCun's format) of `rank` axes; raises `InputError` when it is none.

    The file is: two zero bytes, the type 8, the rank, one big-endian 32-bit size an axis, the values.
    """
    try:
        with gzip.open(path) as file:
            head = file.read(4 + 4 * rank)
            sizes = [int.from_bytes(head[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(rank)]
            count = 1
            for size in sizes:
                count *= size
            if head[:4] != bytes((0, 0, 8, rank)) or not 0 < count <= 1 << 28:
                raise InputError(f"{path}: not an IDX file of bytes with {rank} axes (begins with {head[:4].hex()})")
            values = file.read(count + 1)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist, or put its"
            " four .gz files"
            f" into one folder and name it in --data of python -m edgecompile.models.fashion"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged: {error}; reinstall the package dataset-fashion-mnist") from error
    if len(values) != count:
        raise InputError(f"{path}: holds {len(values)} values where its head promises {count}")
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).reshape(sizes)


def splits(folder: Path = FOLDER) -> dict[str, Arrays]:
    """`train`, `calib` and `eval` (59,500, 500 and the official test set's 10,000), always the same."""
    data: dict[str, Arrays] = {}
    for name, stem in (("train", "train"), ("eval", "t10k")):
        pictures = read_idx(folder / f"{stem}-images-idx3-ubyte.gz", 3)
        labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz", 1).long()
        if len(pictures) != len(labels) or pictures.shape[1:] != (28, 28) or int(labels.max()) > 9:
            raise InputError(f"{folder}: {stem} holds {tuple(pictures.shape)} pictures, {len(labels)} labels")
        x = ((pictures.float() / 255 - MEAN) / STD).unsqueeze(1)
        data[name] = Arrays(f"fashion ({name})", (x,), labels)
    whole = data["train"]
    assert whole.targets is not None
    x, labels = whole.inputs[0], whole.targets
    data["calib"] = Arrays("fashion (calib)", (x[-_CALIB:],), labels[-_CALIB:])
    data["train"] = Arrays("fashion (train)", (x[:-_CALIB],), labels[:-_CALIB])
    return data


def teacher() -> Teacher:
    """The trained network with its data; raises `InputError` where the data is not installed."""
    data = splits()
    program = Program.capture(load_weights(network(), WEIGHTS), {"x": torch.zeros(2, 1, 28, 28)})
    return Teacher(
        name="fashion",
        program=program,
        digest=digest_of(program),
        calib=data["calib"],
        evaluate=data["eval"],
        train=data["train"],
        preprocessing=PREPROCESSING,
        classes=True,
    )


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the pictures, then shift the whole batch by up to 2 pixels either way."""
    flip = torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5
    pictures = torch.where(flip, pictures.flip(3), pictures)
    down, right = (int(i) for i in torch.randint(0, 5, (2,), generator=generator))
    padded = torch.nn.functional.pad(pictures, (2, 2, 2, 2), value=-MEAN / STD)
    return padded[:, :, down : down + 28, right : right + 28]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the seed and write the weights: about 20 minutes on one core that computes in bfloat16."""
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    data = splits(options.data)
    torch.manual_seed(options.seed)
    model = network()
    train(
        model,
        data["train"],
        options.epochs,
        options.seed,
        augment,
        batch_size=128,
        rate=0.1,
        device=options.device,
        bfloat16=True,
    )
    print(f"test accuracy {accuracy(model, data['eval']):.2f} % of {data['eval'].samples}")
    save_weights(model, options.out)


if __name__ == "__main__":
    main()
