"""What a teacher answers to every training sample, asked once and kept: where nothing is done to the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgecompile.passes._samples import Samples
from edgecompile.store import writing

_FILE = "answers.safetensors"
_MOST = 2e9
"""Bytes of answers that are kept."""
_OFTEN = 1.5
"""How often every sample must be seen for asking once to pay."""

Ask = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def pays(seen: int, samples: Samples) -> bool:
    """Whether so many samples are so many more than there are that each is better asked about once."""
    return seen > _OFTEN * len(samples)


def answers(
    ask: Ask, samples: Samples, size: int, folder: Path | None, tell: Callable[[str, int, int], None]
) -> list[Tensor] | None:
    """All outputs for all samples, in batches of `size` in order, on the CPU; None where they are no rows or too many.

    They are written into the folder, and read from there by a run that goes on.
    """
    path = folder / _FILE if folder is not None else None
    if path is not None and path.is_file():
        with suppress(Exception):  # damaged: asked again
            held = load_file(path)
            if all(len(t) == len(samples) for t in held.values()):
                return [held[f"{i:03d}"] for i in range(len(held))]
    found: list[Tensor] = []
    count = len(samples)
    with torch.no_grad():
        for start in range(0, count, size):
            # a batch is whole even at the end, as a program that takes one size alone wants it
            first = max(0, min(start, count - size))
            inputs, _ = samples.at(torch.arange(first, min(first + size, count)))
            outputs = [t.cpu() for t in ask(inputs)]
            if not found:
                if any(t.dim() == 0 or len(t) != len(inputs[0]) for t in outputs):
                    return None
                if sum(t[0].numel() * t.element_size() for t in outputs) * count > _MOST:
                    return None
                found = [torch.empty((count, *t.shape[1:]), dtype=t.dtype) for t in outputs]
            for kept, output in zip(found, outputs, strict=True):
                kept[first : first + len(output)] = output
            tell("asking the teacher", min(start + size, count), count)
    if path is not None:
        with writing(path):
            save_file({f"{i:03d}": t for i, t in enumerate(found)}, path)
    return found
