"""Weights from a file into a module, strictly: every missing, unexpected, misshapen tensor named at once."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from edgecompile.errors import InputError
from edgecompile.ingest import parse_in_child, read_status, text_safe, vet
from edgecompile.program import Program

_SHOWN = 6


def read_weights(path: Path, trust: bool = False) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a `.safetensors` file or of a state dict of torch.save by name, and notes.

    Raises `InputError` for other files, `Refused` for what could run code; torch's files are read in a child
    process.
    """
    vetted = vet(path, trust=trust)
    if vetted.kind == "safetensors":
        from safetensors.torch import load_file

        return load_file(path), vetted.notes
    if vetted.kind != "torch_weights":
        raise InputError(
            f"--weights {path}: holds {vetted.kind}, not weights: give a .safetensors, .pt or .pth state dict"
        )
    from edgecompile.models.torch_weights import read

    with tempfile.TemporaryDirectory(prefix="edgecompile-") as folder:
        out = parse_in_child("torch_weights", {"path": str(path), "trust": trust}, Path(folder) / "weights")
        result = read_status(out).result or {}
        return read(out), (*vetted.notes, *result.get("notes", ()))


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load `state` into `module`; raises one `InputError` that names all that misfits, with near spellings.

    A prefix `module.` on every name (data parallel training) is dropped; batch counters may be missing.
    """
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    wanted = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {list(state[name].shape)}, the model has {list(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    faults: list[str] = []
    if missing:
        faults.append(_listed(f"{len(missing)} missing", [_hinted(name, unexpected) for name in missing]))
    if unexpected:
        faults.append(_listed(f"{len(unexpected)} unexpected", [text_safe(name) for name in unexpected]))
    if shapes:
        faults.append(_listed(f"{len(shapes)} of another shape", shapes))
    if faults:
        raise InputError(f"--weights {path}: do not fit the model: {'; '.join(faults)}")
    module.load_state_dict(dict(state), strict=False)


def check_finite(program: Program, where: str) -> None:
    """Raise `InputError` naming weights with NaN or infinite values; infinite constants (masks) are fine."""
    bad: list[str] = []
    for name, value in program.weights().items():
        if not value.is_floating_point():
            continue
        learned = isinstance(value, nn.Parameter) or name.endswith(("running_mean", "running_var"))
        fine = torch.isfinite(value).all() if learned else ~torch.isnan(value).any()
        if not bool(fine):
            bad.append(f"{name} ({int((~torch.isfinite(value)).sum())} of {value.numel()})")
    if bad:
        raise InputError(
            f"{where}: {_listed(f'NaN or infinite values in {len(bad)} weights', bad)}: train or export it again"
        )


def _hinted(name: str, unexpected: list[str]) -> str:
    close = difflib.get_close_matches(name, unexpected, n=1, cutoff=0.8)
    return f"{name} (the file has {text_safe(close[0])})" if close else name


def _listed(what: str, names: list[str]) -> str:
    more = f", ... {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}"
