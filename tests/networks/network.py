"""What an entry of the list of reference networks is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Network:
    """A public network with random weights, and what is published of it.

    `build` gives the module in eval mode and example inputs of two samples; nothing is made or loaded before.
    `params_m`: millions of parameters; `gmacs`: thousand millions of multiply-accumulates a sample; both None where
    nothing is published. `input`: as tables of measured latencies write it, "3x224x224" or "seq 128" (one sample).
    `stands_for`: the names that the network has in these tables, with that input.
    """

    name: str
    build: Callable[[], Built]
    params_m: float | None
    gmacs: float | None
    input: str
    family: str
    stands_for: tuple[str, ...]


def _seeded(make: Callable[[], Built]) -> Callable[[], Built]:
    def build() -> Built:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()

    return build


def text(
    name: str,
    make: Callable[[int], Built],
    params_m: float | None,
    gmacs: float | None,
    *stands_for: str,
    length: int = 384,
) -> Network:
    """A network of token ids; `make` takes their number."""
    return Network(name, _seeded(lambda: make(length)), params_m, gmacs, f"seq {length}", "bert", stands_for)


def image(
    name: str,
    make: Callable[[], nn.Module],
    params_m: float | None,
    gmacs: float | None,
    family: str,
    *stands_for: str,
    size: int = 224,
    written: int | None = None,
) -> Network:
    """A network of one square RGB image; `written`: the size that the tables say where it is not the real one."""

    def build() -> Built:
        return make().eval(), (torch.randn(2, 3, size, size),)

    side = written or size
    return Network(name, _seeded(build), params_m, gmacs, f"3x{side}x{side}", family, stands_for)
