"""Values of the MIL interpreter: torch tensors, and the arguments of one operation with MIL's optional ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgecompile.errors import TargetError

_WRAPPED = {"INT8": "i1", "UINT8": "u1", "INT16": "<i2", "UINT16": "<u2", "UINT32": "<u4"}


@dataclass(frozen=True)
class Args:
    """The arguments of one operation, by MIL name; `dtype` is what its first result is stored as."""

    values: Mapping[str, Any]
    dtype: str = ""

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.values:
            raise TargetError(f"has no argument {key}")
        value = self.values[key]
        if not isinstance(value, Tensor):
            raise TargetError(f"argument {key} is no tensor")
        return value

    def get(self, key: str) -> Tensor | None:
        """A tensor or None where it is absent."""
        return self[key] if key in self.values else None

    def many(self, key: str) -> tuple[Tensor, ...]:
        """A variadic argument."""
        value = self.values[key]
        return value if isinstance(value, tuple) else (value,)

    def ints(self, key: str, default: Any = None) -> Any:
        """A vector of integers as a list; a number counts as a vector of one."""
        return [int(i) for i in self[key].reshape(-1).tolist()] if key in self.values else default

    def bools(self, key: str, count: int) -> list[bool]:
        """A vector of booleans, all false where it is absent."""
        return [bool(i) for i in self[key].reshape(-1).tolist()] if key in self.values else [False] * count

    def integer(self, key: str, default: Any = None) -> Any:
        """One integer."""
        return int(self[key].item()) if key in self.values else default

    def number(self, key: str, default: Any = None) -> Any:
        """One float."""
        return float(self[key].item()) if key in self.values else default

    def flag(self, key: str, default: bool = False) -> bool:
        """One boolean."""
        return bool(self[key].item()) if key in self.values else default

    def text(self, key: str, default: str = "") -> str:
        """One string."""
        return str(self.values.get(key, default))


Handler = Callable[[Args], "Tensor | tuple[Tensor, ...]"]


def stored(value: Tensor, dtype: str) -> Tensor:
    """The value as MIL keeps it: FLOAT16 rounded to half precision and held in float32, integers held in int32."""
    match dtype:
        case "FLOAT16":
            return value.half().float()
        case "FLOAT32":
            return value.float()
        case "BOOL":
            return value.bool()
        case "INT32" | "INT64":
            return value.to(torch.int32)
        case _ if dtype in _WRAPPED:
            whole = value.to(torch.int64).numpy().astype(_WRAPPED[dtype])
            return torch.from_numpy(np.asarray(whole.astype(np.int32)))
        case _:
            raise TargetError(f"holds {dtype}, which is not interpreted here")


def tensor(value: np.ndarray[Any, Any]) -> Tensor:
    """A constant as the interpreter holds it: half precision in float32, integers in int32."""
    kind = value.dtype.kind
    if kind == "f":
        return torch.from_numpy(np.array(value, dtype=np.float32))
    return torch.from_numpy(np.array(value, dtype=bool if kind == "b" else np.int32))
