"""A TVM library in its virtual machine: on a CPU tensors go in and out without a copy, on a GPU they are copied."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from edgecompile.errors import TargetError

_ALIGNED = 64
"""Bytes: TVM's code loads whole vectors and takes every buffer to start at a multiple of this."""


class Session:
    """A library; callable with tensors, and `bound` gives the call that is timed."""

    def __init__(self, path: Path, device: Literal["cpu", "cuda"] = "cpu") -> None:
        # otherwise tvm compiles an extension against torch when it is imported
        os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
        import tvm
        from tvm import relax

        try:
            library = tvm.runtime.load_module(str(path))
            self._device: Any = tvm.device(device)
            self._run: Any = relax.VirtualMachine(library, self._device)["main"]
        except Exception as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
            raise TargetError(f"{path.name}: TVM {tvm.__version__} does not load it: {text}") from error

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # the result's memory goes back to TVM's pool with the last reference, hence the copy
        return tuple(torch.from_numpy(v.numpy().copy()) for v in self._run(*self._held(inputs)))

    def bound(self, inputs: tuple[Tensor, ...]) -> Any:
        """A call without arguments that runs on these inputs and copies nothing: what a latency is measured of."""
        held, run, sync = self._held(inputs), self._run, self._device.sync
        kept = list(inputs)

        def call(_kept: list[Any] = kept) -> None:
            run(*held)
            sync()

        return call

    def _held(self, inputs: tuple[Tensor, ...]) -> list[Any]:
        import tvm

        found = []
        for value in inputs:
            value = value.detach().contiguous()
            copied = self._device.dlpack_device_type() != tvm.cpu().dlpack_device_type()
            if copied or value.data_ptr() % _ALIGNED or value.dtype == torch.bool:
                found.append(tvm.runtime.tensor(value.numpy(), self._device))
            else:
                found.append(tvm.runtime.from_dlpack(value))
        return found
