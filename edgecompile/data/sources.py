"""open_dataset: what a user writes after --train, --calib, --eval as a dataset that fits the program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgecompile.data.arrays import open_arrays
from edgecompile.data.functions import Function
from edgecompile.data.images import image_of, open_images
from edgecompile.data.interface import Interface
from edgecompile.data.preprocess import Image
from edgecompile.data.texts import open_texts
from edgecompile.data.types import BATCH_SIZE, Dataset
from edgecompile.errors import InputError
from edgecompile.program import Program
from edgecompile.reference import is_function, load_function

FORMS = ".npz, .npy, a folder of pictures, .txt (one text a line), pkg.module:function or path/file.py:function"


def open_dataset(
    ref: str,
    program: Program,
    preprocessing: Mapping[str, object] | None = None,
    labels: Path | None = None,
    batch_size: int = BATCH_SIZE,
) -> Dataset:
    """The dataset called `ref`, checked against the program's inputs; raises `InputError` in one line.

    `preprocessing` is the teacher's: `image` (an `Image` or its mapping) for pictures, `text` (`tokenizer`,
    `length`) for texts. `labels` is a file for pictures and texts. Arrays are checked whole, pictures and
    functions as they are read.
    """
    interface = Interface.of(program)
    prepared = preprocessing or {}
    path = Path(ref)
    if is_function(ref) and not path.exists():
        _no_labels(labels, ref)
        data = Function(ref, load_function(ref), interface, batch_size)
        next(iter(data))  # so that a wrong shape is told before any work is done
        return data
    if path.is_dir():
        return open_images(
            path,
            _image_for(interface, prepared, ref),
            labels,
            interface.classes,
            batch_size,
            interface.dtypes[0],
        )
    if not path.is_file():
        raise InputError(f"{ref}: does not exist; data can be {FORMS}")
    match path.suffix.lower():
        case ".npz" | ".npy":
            _no_labels(labels, ref)
            return open_arrays(path, interface, batch_size)
        case ".txt":
            text = prepared.get("text")
            return open_texts(path, interface, text if isinstance(text, Mapping) else None, labels, batch_size)
    raise InputError(f"{ref}: data of this kind is not read; it can be {FORMS}")


def _image_for(interface: Interface, preprocessing: Mapping[str, object], ref: str) -> Image:
    """The `Image`, whose result must be the model's only input."""
    image = image_of(preprocessing, ref)
    if len(interface.names) != 1:
        raise InputError(
            f"{ref}: a folder of pictures for a model with the inputs {', '.join(interface.names)}: give a .npz"
        )
    made = (image.channels, *image.size) if image.layout == "nchw" else (*image.size, image.channels)
    wanted = interface.shapes[0][1:]
    if len(wanted) != 3 or not all(w is None or w == m for w, m in zip(wanted, made, strict=True)):
        raise InputError(
            f"{ref}: pictures are prepared as {list(made)}, the model takes {interface.show(0)}:"
            " correct size, channels or layout in --image"
        )
    return image


def _no_labels(labels: Path | None, ref: str) -> None:
    if labels is not None:
        raise InputError(f"{labels}: labels of {ref} come with it (y, or the targets of the function): drop --labels")
