"""A folder of photographs: found in a fixed order, decoded with limits, prepared as an `Image` says."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgecompile.data.preprocess import INTERPOLATIONS, Image
from edgecompile.data.types import BATCH_SIZE, Batch, Dataset
from edgecompile.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no EPS: Pillow starts Ghostscript for it
_MAX_PIXELS = 89_478_485  # Pillow's own warning level
_MAX_FILE_BYTES = 256 << 20
_MAX_DEPTH = 32


@dataclass(frozen=True, eq=False)
class Images(Dataset):
    """Photographs read from `files` at each pass, in their order; `labels` is None or one integer a file."""

    name: str
    files: tuple[Path, ...]
    image: Image
    labels: tuple[int, ...] | None = None
    batch_size: int = BATCH_SIZE
    independent: str = ""
    notes: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32

    @property
    def samples(self) -> int:
        return len(self.files)

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    @cached_property
    def digest(self) -> str:
        head = json.dumps([self.image.as_dict(), self.labels, self.batch_size, str(self.dtype)])
        digest = hashlib.sha256(head.encode())
        for file in self.files:
            data = _bytes_of(file)
            digest.update(f"{file.name} {len(data)} ".encode("utf-8", "surrogateescape"))
            digest.update(data)
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.files), self.batch_size):
            files = self.files[start : start + self.batch_size]
            x = torch.stack([read_image(file, self.image, self.dtype) for file in files])
            labels = None if self.labels is None else torch.tensor(self.labels[start : start + len(files)])
            yield Batch((x,), labels)


def read_image(path: Path, image: Image, dtype: torch.dtype = torch.float32) -> Tensor:
    """One prepared picture, [channels, height, width] or as `image.layout` says; raises `InputError`."""
    return to_tensor(fit(open_picture(path, image.channels), image, str(path)), image, dtype)


def open_picture(path: Path, channels: int = 3) -> Picture:
    """Decode a picture upright as RGB (or grey for 1 channel), without transparency, 16-bit grey scaled to 8.

    Raises `InputError` for what is no picture, truncated, empty, or larger than Pillow's limit for bombs.
    """
    from PIL import Image as pillow
    from PIL import ImageOps

    if (size := path.stat().st_size if path.is_file() else -1) > _MAX_FILE_BYTES:
        raise InputError(f"{path}: {size} bytes, more than {_MAX_FILE_BYTES}: too large for a photograph; leave it out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path, formats=_FORMATS) as picture:
                width, height = picture.size
                if not 0 < width * height <= _MAX_PIXELS:
                    raise InputError(f"{path}: {width}x{height} pixels; 1 to {_MAX_PIXELS} are taken: leave it out")
                warnings.simplefilter("ignore")  # odd EXIF is no reason to refuse a picture
                picture.load()
                upright = ImageOps.exif_transpose(picture)
                return _colours(upright, channels, path)
    except InputError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise InputError(f"{path}: more than {_MAX_PIXELS} pixels (a decompression bomb?): leave it out") from error
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged input
        raise InputError(f"{path}: not a picture that can be decoded ({error}): leave it out or replace it") from error


def _colours(picture: Picture, channels: int, path: Path) -> Picture:
    from PIL import Image as pillow

    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture).astype(np.uint32)
        picture = pillow.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise InputError(f"{path}: {picture.mode} pixels of 32 bits have no known range: convert it to 8 or 16 bits")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("L" if channels == 1 else "RGB")


def fit(picture: Picture, image: Image, where: str) -> Picture:
    """Resize and crop to `image.size`; raises `InputError` when an unresized picture is smaller than that."""
    from PIL import Image as pillow

    height, width = image.size
    way = pillow.Resampling(INTERPOLATIONS.index(image.interpolation))
    if image.resize == "squash":
        return picture if picture.size == (width, height) else picture.resize((width, height), way)
    if image.resize != "none":
        w, h = picture.size
        # the shorter side exactly, the longer one rounded down, as torchvision and transformers do
        if image.resize:
            shorter = image.resize
            new = (shorter, shorter * h // w) if w <= h else (shorter * w // h, shorter)
        else:
            ratio = max(width / w, height / h)
            new = (max(width, int(w * ratio)), max(height, int(h * ratio)))
        picture = picture if new == picture.size else picture.resize(new, way)
    w, h = picture.size
    if w < width or h < height:
        raise InputError(f"{where}: {w}x{h} pixels, less than the {width}x{height} to be cropped: leave it out")
    left, top = (w - width) // 2, (h - height) // 2  # as transformers does; torchvision rounds
    return picture.crop((left, top, left + width, top + height))


def to_tensor(picture: Picture, image: Image, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale and normalise the bytes of a picture that has its final size."""
    array = np.array(picture)
    x = torch.from_numpy(array).reshape(array.shape[0], array.shape[1], -1)
    if image.order == "bgr":
        x = x.flip(2)
    if dtype != torch.uint8:
        x = x.float().mul(image.scale).sub(torch.tensor(image.mean)).div(torch.tensor(image.std)).to(dtype)
    return x.permute(2, 0, 1).contiguous() if image.layout == "nchw" else x.contiguous()


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures below a folder, sorted by path, and what is none; hidden files are passed over.

    Raises `InputError` for a link that leads back to a folder above it and for folders nested too deeply.
    """
    pictures: list[Path] = []
    others: list[Path] = []

    def walk(place: Path, above: tuple[tuple[int, int], ...]) -> None:
        try:
            status = place.stat()
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{place}: cannot be read: {error.strerror}") from error
        here = (status.st_dev, status.st_ino)
        if here in above or len(above) >= _MAX_DEPTH:
            raise InputError(
                f"{place}: a link that leads back to a folder above it, or {_MAX_DEPTH} folders deep: remove it"
            )
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = place / entry.name
            if entry.is_dir():
                walk(path, (*above, here))
            elif path.suffix.lower() in SUFFIXES:
                pictures.append(path)
            else:
                others.append(path)

    walk(folder, ())
    return pictures, others


def open_images(
    folder: Path,
    image: Image,
    labels: Path | None,
    classes: int | None,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> Images:
    """A folder of pictures; labelled by a file, or by one folder a class where the model has class logits.

    Folders that are all numbers are the labels themselves, others are numbered in sorted order.
    """
    files, others = find_images(folder)
    others = [file for file in others if labels is None or file.resolve() != labels.resolve()]
    if not files:
        raise InputError(f"{folder}: no pictures found (looked for {', '.join(sorted(SUFFIXES))})")
    notes = (
        (f"{folder}: {len(others)} files are no pictures and were left out, e.g. {others[0].name}",) if others else ()
    )
    numbers: tuple[int, ...] | None = None
    if labels is not None:
        from edgecompile.data.labels import label_files

        numbers = label_files(labels, folder, files, classes)
    elif classes is not None:
        from edgecompile.data.labels import label_folders

        numbers = label_folders(folder, files, classes)
    return Images(str(folder), tuple(files), image, numbers, batch_size, notes=notes, dtype=dtype)


def image_of(preprocessing: Mapping[str, object], where: str) -> Image:
    """The `Image` of a teacher's preprocessing; raises `InputError` naming the ways to give one."""
    from edgecompile.data.preprocess import WAYS, image_from_dict

    match preprocessing.get("image"):
        case Image() as image:
            return image
        case Mapping() as options:
            return image_from_dict(options)
    raise InputError(
        f"{where}: nobody said how pictures are resized and normalised, which decides the accuracy: {WAYS}"
    )


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
