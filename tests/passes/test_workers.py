"""Distillation by several workers: as one that accumulates, killed and gone on with, on two machines, interrupted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from edgecompile.errors import PassError, SpecError
from edgecompile.passes import _checkpoint
from edgecompile.passes._workers import Crew
from edgecompile.passes.distill import Distill
from edgecompile.program import Program
from tests.passes import test_distill
from tests.passes.test_distill import context, exact, pruned

slow = pytest.mark.slow
teacher = test_distill.teacher


def workers(folder: Path) -> list[psutil.Process]:
    """The processes that train this job."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(folder) in (p.info["cmdline"] or [])]


def same(one: Program, two: Program) -> bool:
    others = two.weights()
    return all(torch.equal(w, others[name]) for name, w in one.weights().items())


def test_two_workers_are_one_that_accumulates(teacher: Program) -> None:
    two, one = (
        Distill(steps=40, batch=16, **kind).run(pruned(teacher), context(teacher))  # type: ignore[arg-type]
        for kind in ({"workers": 2}, {"accumulate": 2})
    )
    before = pruned(teacher).weights()
    for name, value in two.weights().items():
        torch.testing.assert_close(value, one.weights()[name], rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(v, before[n]) for n, v in two.weights().items() if n in before)


@slow
def test_a_worker_that_is_killed_changes_nothing(
    teacher: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_checkpoint, "KEEP_S", 0.0)
    one = Distill(steps=90, batch=16, workers=2, augment="flip,shift=2")
    whole = one.run(pruned(teacher), context(teacher))
    killed: list[int] = []
    seen: list[int] = []

    def tell(what: str, done: int, total: int) -> None:
        seen.append(done)
        if done == 61 and not killed:
            ranks = [p for p in workers(tmp_path) if "torch.distributed.run" not in p.info["cmdline"]]
            assert len(ranks) == 2
            killed.append(ranks[1].pid)
            os.kill(ranks[1].pid, signal.SIGKILL)

    again = one.run(pruned(teacher), context(teacher, work=tmp_path, tell=tell))
    assert killed
    assert seen.count(51) == 2  # from the checkpoint of step 50
    assert seen.count(41) == 1
    assert same(again, whole)


@slow
def test_two_machines_meet(teacher: Program, tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    others: list[subprocess.Popen[bytes]] = []
    one = Distill(steps=40, batch=16, machines=2, meet=f"127.0.0.1:{port}")

    def tell(what: str, done: int, total: int) -> None:
        if "waiting for the other 1 machines to run: python -m torch.distributed.run" in what:
            command = [sys.executable, *Crew(1, 2, one.meet).command(tmp_path)]
            others.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    apart = one.run(pruned(teacher), context(teacher, work=tmp_path, tell=tell))
    assert others[0].wait(60) == 0
    together = Distill(steps=40, batch=16, workers=2).run(pruned(teacher), context(teacher))
    assert same(apart, together)


def table(student: Any, taught: Any, targets: Any) -> Tensor:
    """No scalar."""
    value: Tensor = student[0]
    return value


def gone(student: Any, taught: Any, targets: Any) -> Tensor:
    """Goes wrong on every try."""
    raise RuntimeError("the disk is on fire")


@slow
@pytest.mark.parametrize(
    ("loss", "message"), [("table", "must return a scalar tensor"), ("gone", "gave up after 6 restarts: .*on fire")]
)
def test_what_goes_wrong_in_a_worker_is_one_line(teacher: Program, loss: str, message: str) -> None:
    one = Distill(steps=5, batch=16, workers=2, losses=f"{__file__}:{loss}")
    with pytest.raises(PassError, match=message) as caught:
        one.run(exact(teacher), context(teacher))
    assert "\n" not in str(caught.value)


@slow
def test_an_interrupted_crew_leaves_nothing_running(teacher: Program, tmp_path: Path) -> None:
    def tell(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Distill(steps=5000, batch=16, workers=2).run(exact(teacher), context(teacher, work=tmp_path, tell=tell))
    left = workers(tmp_path)
    psutil.wait_procs(left, 10)
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(SpecError, match="batch=16: workers and accumulate share it: give a multiple of 3"):
        Distill(batch=16, workers=3)
    with pytest.raises(SpecError, match="meet=HOST:PORT"):
        Distill(machines=2)
    with pytest.raises(SpecError, match="1 or more"):
        Distill(accumulate=0)
