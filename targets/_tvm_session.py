"""A TVM library in its virtual machine on this CPU: tensors in and out without a copy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecompile.errors import TargetError

_ALIGNED = 64
"""Bytes: TVM's code loads whole vectors and takes every buffer to start at a multiple of this."""


class Session:
    """A library; callable with tensors, and `bound` gives the call that is timed."""

    def __init__(self, path: Path) -> None:
        # otherwise tvm compiles an extension against torch when it is imported
        os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
        import tvm
        from tvm import relax

        try:
            library = tvm.runtime.load_module(str(path))
            self._run: Any = relax.VirtualMachine(library, tvm.cpu())["main"]
        except Exception as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
            raise TargetError(f"{path.name}: TVM {tvm.__version__} does not load it: {text}") from error

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # the result's memory goes back to TVM's pool with the last reference, hence the copy
        return tuple(torch.from_numpy(v.numpy().copy()) for v in self._run(*map(_held, inputs)))

    def bound(self, inputs: tuple[Tensor, ...]) -> Any:
        """A call without arguments that runs on these inputs and copies nothing: what a latency is measured of."""
        held, run = [_held(t) for t in inputs], self._run
        kept = list(inputs)

        def call(_kept: list[Any] = kept) -> None:
            run(*held)

        return call


def _held(value: Tensor) -> Any:
    import tvm

    value = value.detach().contiguous()
    if value.data_ptr() % _ALIGNED or value.dtype == torch.bool:
        return tvm.runtime.tensor(value.numpy())
    return tvm.runtime.from_dlpack(value)
