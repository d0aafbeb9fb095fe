"""Small networks for the Core ML tests, and a conversion in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgecompile.errors import Unsupported
from edgecompile.program import Program
from edgecompile.program_file import save
from edgecompile.targets import _coreml_convert

IMAGE, TOKENS = (4, 8, 8), (6, 8)


class Small(nn.Module):
    """A forward function over layers."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, one in layers.items():
            self.add_module(name, one)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def captured(function: Callable[..., Any], *shape: int, **layers: nn.Module) -> Program:
    torch.manual_seed(0)
    for one in layers.values():
        for value in one.parameters():
            nn.init.uniform_(value, -0.5, 0.5)
    return Program.capture(Small(function, **layers).eval(), (noise(2, *shape),))


def packaged(program: Program, folder: Path, dtype: str = "fp16", ios: str = "18", **more: Any) -> Path:
    """What `emit` does in its child, here in this process: an import of coremltools takes seconds."""
    folder.mkdir(exist_ok=True)
    (folder / "program").mkdir()
    save(program if program.batch is not None else program.specialised(1), folder / "program")
    request = {"ios": ios, "dtype": dtype, "metadata": {"pipeline": "none"}, **more}
    (folder / "request.json").write_text(json.dumps(request))
    assert _coreml_convert.main(folder) == 0
    status = json.loads((folder / "status.json").read_text())
    if "operations" not in status:
        raise Unsupported("coreml", status.get("reasons") or [status["failed"]])
    return folder / "model.mlpackage"
