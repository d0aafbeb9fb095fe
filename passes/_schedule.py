"""The learning rate of a step, and what is random in it."""

from __future__ import annotations

import math

import torch


def schedule(step: int, steps: int, warmup: float) -> float:
    """A linear rise, then a half cosine to 0: in parts of the highest rate."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def seeded(*parts: int) -> torch.Generator:
    """A generator of its own for each epoch and step: nothing random has to be remembered."""
    value = 0
    for part in parts:
        value = (value * 6364136223846793005 + part + 1442695040888963407) % (1 << 63)
    return torch.Generator().manual_seed(value)
