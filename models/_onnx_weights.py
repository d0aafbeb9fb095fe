"""Where an imported module keeps its weights: under the names of the file, each value once."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from edgecompile.models._onnx_block import dotted
from edgecompile.models._onnx_values import outside


class Weights:
    """Parameters and buffers below `root` by ONNX name; a name may hold several values (a transpose)."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._kept: dict[tuple[str, bool], list[tuple[str, Tensor]]] = {}

    def get(self, name: str, value: Tensor, trainable: bool, register: bool) -> Tensor:
        """The parameter or buffer that holds `value`; registered when new, else a constant of the trace."""
        with outside():
            path = self._find(name, value, trainable)
            if path is None:
                if not register:
                    return value
                whole = value.contiguous()
                owned = nn.Parameter(whole) if trainable else whole
                path = place(self._root, dotted(name), owned)
                self._kept.setdefault((name, trainable), []).append((path, value))
        found: Any = self._root
        for part in path.split("."):
            found = getattr(found, part)
        return cast(Tensor, found)

    def _find(self, name: str, value: Tensor, trainable: bool) -> str | None:
        for path, kept in self._kept.get((name, trainable), ()):
            if kept is value:
                return path
            if kept.dtype == value.dtype and kept.shape == value.shape and torch.equal(kept, value):
                return path
        return None


def place(root: nn.Module, path: str, value: nn.Module | Tensor) -> str:
    """Put a module, parameter or buffer at a dotted path below `root`; returns the path, made unique."""
    owner = root
    *parents, leaf = path.split(".")
    done: list[str] = []
    for part in parents:
        while hasattr(owner, part) and part not in owner._modules:
            part += "_"
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = cast(nn.Module, owner._modules[part])
        done.append(part)
    base, count = leaf, 1
    while hasattr(owner, leaf):
        leaf, count = f"{base}_{count}", count + 1
    match value:
        case nn.Module():
            owner.add_module(leaf, value)
        case nn.Parameter():
            owner.register_parameter(leaf, value)
        case _:
            owner.register_buffer(leaf, value)
    return ".".join([*done, leaf])
