"""Arrays from files as the inputs of an artifact, checked against its names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompile.errors import InputError, near

if TYPE_CHECKING:
    from torch import Tensor


def feed(texts: Sequence[str], wanted: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    """`x.npy`, `NAME=x.npy` or an `.npz` for the inputs that a manifest lists, in its order.

    A first axis that is missing is added where the artifact's batch is 1. Raises `InputError` for all else that does
    not fit: nothing is cast silently but between floats, and integers to wider ones.
    """
    import torch

    given: dict[str, np.ndarray[Any, Any]] = {}
    names = [str(i["name"]) for i in wanted]
    for text in texts:
        name, equals, file = text.rpartition("=")
        for key, value in _arrays(Path(file)).items():
            own = name if equals else (key or (names[len(given)] if len(given) < len(names) else key))
            if own not in names:
                raise InputError(f"--input {text}: the artifact has no input {own!r}{near(own, names)}")
            given[own] = value
    missing = [n for n in names if n not in given]
    if missing:
        raise InputError(f"--input: nothing for {', '.join(missing)}; the artifact takes {', '.join(names)}")
    return tuple(torch.from_numpy(_fitted(given[str(i["name"])], i)) for i in wanted)


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return {"": stored}
        with stored:
            inputs = {n.removeprefix("input:"): stored[n] for n in stored.files if n.startswith("input:")}
            return inputs or {n: stored[n] for n in stored.files}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--input {path}: cannot be read as .npy or .npz: {error}") from None


def _fitted(value: np.ndarray[Any, Any], wanted: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    name, shape, dtype = wanted["name"], tuple(wanted["shape"]), np.dtype(wanted["dtype"])
    if value.shape != shape and (1, *value.shape) == shape:
        value = value[None]
    if value.shape != shape:
        raise InputError(
            f"--input {name}: shape {'x'.join(map(str, value.shape))}, the artifact takes {'x'.join(map(str, shape))}"
        )
    if value.dtype != dtype and not (np.can_cast(value.dtype, dtype, "same_kind") and value.dtype.kind == dtype.kind):
        raise InputError(f"--input {name}: {value.dtype}, the artifact takes {dtype}")
    return np.ascontiguousarray(value, dtype=dtype)
