"""Arrays from .npz and .npy files: vetted, never unpickled, never larger than the free memory."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from edgecompile.data.interface import Interface, as_tensor
from edgecompile.data.types import Arrays
from edgecompile.errors import InputError
from edgecompile.ingest import vet


def open_arrays(path: Path, interface: Interface, batch_size: int) -> Arrays:
    """`.npz` (`x` or one array an input, `y` for labels) or `.npy` (the only input), checked whole."""
    if not interface.batched:
        raise InputError(
            f"{path}: the model's inputs share no batch axis: give the data with module:function, one run an item"
        )
    arrays = read_arrays(path)
    labels = arrays.pop("y", None) if "y" not in interface.names else None
    inputs = interface.select(arrays, str(path))
    tensors = tuple(as_tensor(a, f"{path}: {name}") for name, a in zip(interface.names, inputs, strict=True))
    interface.check(tensors, str(path))
    targets = None
    if labels is not None:
        place = f"{path}: y"
        targets = interface.check_labels(as_tensor(labels, place), len(tensors[0]), place)
    return Arrays(str(path), tensors, targets, batch_size)


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a .npz file by name, or of a .npy file as `x`.

    Raises `InputError` for what is damaged, empty, or too large for the memory, `Refused` for pickles and
    bombs.
    """
    import psutil

    vetted = vet(path)
    if vetted.kind not in ("npz", "npy"):
        raise InputError(f"{path}: holds {vetted.kind}, not arrays: write them with np.savez or np.save")
    free = psutil.virtual_memory().available
    if vetted.declared_bytes * 2 > free:
        size, left = vetted.declared_bytes >> 20, free >> 20
        raise InputError(f"{path}: {size} MB of arrays, {left} MB of memory are free: give a part of it")
    try:
        loaded = np.load(path, allow_pickle=False)
        if vetted.kind == "npy":
            return {"x": loaded}
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged: {error}: write it again with np.savez") from error
    if not arrays:
        raise InputError(f"{path}: holds no array: give x (or one array an input), and y for labels")
    return arrays
