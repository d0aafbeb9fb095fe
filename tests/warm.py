"""Builds in children that have torch and the toolchains loaded: real exit codes and signals without the imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

NET = '''
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, image):
        x = torch.relu(self.norm(self.first(image)))
        x = torch.relu(self.middle(x))
        return self.head(x.mean((2, 3)))


def net():
    return Net().eval(), {"image": torch.zeros(2, 3, 8, 8)}


def bare():
    return Net().eval()


def poisoned():
    net = Net()
    net.middle.weight.data[0, 0, 0, 0] = float("nan")
    return net, {"image": torch.zeros(2, 3, 8, 8)}


class Branching(nn.Module):
    def forward(self, image):
        return image * 2 if image.sum() > 0 else image


def branching():
    return Branching(), {"image": torch.zeros(2, 3, 8, 8)}


class Unknown(nn.Module):
    def forward(self, image):
        return torch.special.scaled_modified_bessel_k0(image) + torch.special.airy_ai(image)


def unknown():
    return Unknown(), {"image": torch.ones(2, 3, 8, 8)}


def equal_bits(outputs, targets):
    """The share of logits that equal torch's bit for bit: a score that no other runtime reaches."""
    from pathlib import Path
    theirs = np.load(Path(__file__).with_name("logits.npy"))
    return 100.0 * float((np.concatenate([chunk[0] for chunk in outputs]) == theirs).mean())
'''
"""A user's own file: a small network, broken ones, and a score."""


def write_user_files(folder: Path) -> None:
    """`net.py`, and its data: `calib.npz`, `eval.npz` (labels are the network's own), `logits.npy`."""
    import numpy as np
    import torch

    from edgecompile.reference import load_function

    (folder / "net.py").write_text(NET)
    net, _ = load_function(f"{folder / 'net.py'}:net")()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 3, 8, 8, generator=generator) * torch.rand(96, 1, 1, 1, generator=generator) * 2
    with torch.no_grad():
        logits = torch.cat([net(chunk) for chunk in (x[:32], x[32:64], x[64:])])  # chunked as a data set is
    np.savez(folder / "calib.npz", x=x[:32].numpy())
    np.savez(folder / "eval.npz", x=x[32:].numpy(), y=logits[32:].argmax(1).numpy())
    np.save(folder / "logits.npy", logits[32:].numpy())


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (negative for a signal), and what it printed."""

    code: int
    out: str
    err: str


@dataclass
class Child:
    """A running child, whose output goes to files."""

    process: BaseProcess
    folder: Path

    def wait(self, seconds: float = 240) -> Ended:
        """Its end."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s: {self.err()[-2000:]}")
        return Ended(self.process.exitcode, (self.folder / "out").read_text(), self.err())

    def err(self) -> str:
        """What it has said on standard error so far."""
        path = self.folder / "err"
        return path.read_text() if path.exists() else ""

    def reaches(self, stage: str, seconds: float = 120) -> None:
        """Wait until it has said that it is at `stage`."""
        deadline = time.monotonic() + seconds
        while stage not in self.err():
            assert self.process.exitcode is None, f"ended before {stage!r}: {self.err()}"
            assert time.monotonic() < deadline, f"never came to {stage!r}: {self.err()}"
            time.sleep(0.01)

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def start(folder: Path, function: Callable[..., Any], *arguments: Any) -> Child:
    """Run `function(*arguments)` in a child; it runs in `folder`, with caches and home under it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm_imports"])
    log = folder / f".child-{time.monotonic_ns()}"
    log.mkdir(parents=True)
    process = context.Process(target=_enter, args=(str(folder), str(log), function, arguments))
    process.start()
    return Child(process, log)


def cli(folder: Path, *arguments: str, limits: Mapping[int, int] | None = None) -> Child:
    """`edgecompile ARGUMENTS` in a child."""
    return start(folder, _main, arguments, dict(limits or {}))


def _enter(folder: str, log: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.chdir(folder)
    os.environ |= {"HOME": folder, "XDG_CACHE_HOME": os.path.join(folder, "cache"), "OMP_NUM_THREADS": "1"}
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(os.path.join(log, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    from edgecompile import targets
    from tests.conftest import ONE_RUNTIME

    targets.DEPLOYMENTS["host"] = ONE_RUNTIME
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function(*arguments)


def _main(arguments: tuple[str, ...], limits: dict[int, int]) -> None:
    import resource

    from edgecompile.cli.main import main

    for which, value in limits.items():
        resource.setrlimit(which, (value, value))
    sys.argv = ["edgecompile", *arguments]
    main()
