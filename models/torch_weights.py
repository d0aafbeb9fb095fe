"""Weights in a `.pt`, `.pth` or `.bin` file of torch.save, read in a child process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgecompile.errors import InputError, Refused
from edgecompile.ingest import text_safe

WEIGHTS, NAMES = "weights.safetensors", "names.json"

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "weights")
_MB = 1 << 20
_RESAVE = "save model.state_dict() with torch.save"


def parse(path: str, out: Path, trust: bool = False) -> dict[str, Any]:
    """Write the tensors of a vetted state dict to `out`: for `parse_in_child("torch_weights", ...)`.

    A file of 1 kB can hold a view of 2^40 elements, so sizes are added up before any tensor is made
    contiguous. Names stay in a JSON map, since a name is never to be used as a path. Returns what was
    skipped, as notes.
    """
    import torch
    from safetensors.torch import save_file

    loaded = torch.load(path, map_location="cpu", weights_only=not trust, mmap=False)
    found, notes = _unwrapped(loaded, path)
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if skipped := sorted(str(name) for name in found if name not in tensors):
        shown = ", ".join(text_safe(name) for name in skipped[:5])
        notes.append(f"{len(skipped)} entries are no tensors and were left out: {shown}")
    if not tensors:
        raise InputError(f"{path}: no tensors in it; {_RESAVE}")
    _check_sizes(path, {name: value.numel() * value.element_size() for name, value in tensors.items()})
    names = {f"{index:06d}": name for index, name in enumerate(tensors)}
    # clone: safetensors refuses tensors that share memory, and tied weights do
    save_file({key: tensors[name].detach().contiguous().clone() for key, name in names.items()}, out / WEIGHTS)
    (out / NAMES).write_text(json.dumps(names), encoding="utf-8")
    return {"notes": notes}


def read(folder: Path) -> dict[str, Any]:
    """The tensors that `parse` wrote, by their own names, in the file's order."""
    from safetensors.torch import load_file

    names: dict[str, str] = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS)
    return {name: tensors[key] for key, name in names.items()}


def _unwrapped(loaded: object, path: str) -> tuple[dict[str, Any], list[str]]:
    """The state dict, taken out of a checkpoint when it lies in one under a usual name."""
    notes: list[str] = []
    if not isinstance(loaded, Mapping):
        state = getattr(loaded, "state_dict", None)
        if not callable(state):
            raise InputError(f"{path}: a {type(loaded).__name__}, not a state dict; {_RESAVE}")
        loaded = state()
        notes.append("the state dict of a pickled module")
    found: dict[str, Any] = dict(_flat(loaded))
    for wrapper in _WRAPPERS:
        inner = found.get(wrapper)
        if isinstance(inner, Mapping) and inner:
            notes.append(f"the state dict under '{wrapper}'")
            return dict(_flat(inner)), notes
    return found, notes


def _flat(mapping: Any) -> Iterator[tuple[str, Any]]:
    return ((str(name), value) for name, value in mapping.items())


def _check_sizes(path: str, sizes: Mapping[str, int]) -> None:
    """Refuse views that are far larger than what the file stores."""
    allowed = 16 * Path(path).stat().st_size + 64 * _MB
    total = sum(sizes.values())
    if total > allowed:
        largest = max(sizes, key=lambda name: sizes[name])
        raise Refused(
            "EC-IN-007",
            f"{text_safe(path, 400)} (tensor '{text_safe(largest)}')",
            f"at most {allowed:,} bytes for a file of its size",
            f"{total:,} declared bytes",
            "save contiguous tensors: {k: v.contiguous().clone() for k, v in state.items()}",
        )
