"""Training in several processes, on this machine or on several: a job in a folder, run under `torch.distributed.run`.

JOB/student, JOB/teacher      the programs, as `program_file` writes them
JOB/samples.safetensors       inputs and targets, read by every worker
JOB/job.json                  what is asked for
JOB/checkpoint.pt             what a worker that was killed goes on from, with all the others
JOB/result.pt                 the trained weights
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from edgecompile import program_file
from edgecompile.errors import PassError
from edgecompile.passes import _checkpoint
from edgecompile.passes._checkpoint import State
from edgecompile.passes._samples import Samples
from edgecompile.passes._training import Tell, Training

RESTARTS = 6
"""How often all workers are started again after one of them was lost."""
TOLD = "edgecompile: "
"""Before a line in which the first worker says how far it is."""
_MODULE = "edgecompile.passes._worker"
_LOCAL = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
"""Workers of one machine need no other way to each other, whatever its name resolves to."""


@dataclass(frozen=True)
class Crew:
    """How many workers, on how many machines, and where those meet (`host:port` of the first; none for this one)."""

    workers: int
    machines: int = 1
    meet: str = ""

    @property
    def ranks(self) -> int:
        """All workers together."""
        return self.workers * self.machines

    def command(self, folder: Path) -> list[str]:
        """What is run on every machine, with the folder in reach of all of them."""
        where = [f"--nnodes={self.machines}", "--rdzv-backend=c10d", f"--rdzv-endpoint={self.meet}"]
        return [
            *("-m", "torch.distributed.run", *(where if self.meet else ["--standalone"])),
            *(f"--nproc-per-node={self.workers}", f"--max-restarts={RESTARTS}", "--monitor-interval=0.2"),
            *("-m", _MODULE, str(folder)),
        ]


def train(training: Training, crew: Crew, augment: str, folder: Path, tell: Tell) -> State:
    """What `training.run` does, by a crew; raises `PassError` with the last words of one that gave up."""
    _write(training, augment, folder)
    command = [sys.executable, *crew.command(folder)]
    if crew.machines > 1:
        others = shlex.join(["python", *crew.command(folder)])
        tell(f"waiting for the other {crew.machines - 1} machines to run: {others}", 0, 1)
    _watched(command, {} if crew.machines > 1 else _LOCAL, folder, tell)
    held = torch.load(folder / "result.pt", weights_only=True)
    with torch.no_grad():
        for name, value in training.all().items():
            value.data.copy_(held["values"][name])
    return State(**held["state"])


def _write(training: Training, augment: str, folder: Path) -> None:
    names = [f"teacher{i}" for i in range(len(training.sources))]
    for name, program in zip(["student", *names], [training.student, *training.sources], strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        program_file.save(program.retraced(), folder / name)
    tensors: dict[str, torch.Tensor] = {}
    for name, samples in (("learned", training.samples), ("held", training.held)):
        tensors |= _tensors(name, samples)
    save_file(tensors, folder / "samples.safetensors")
    said = {
        "setting": asdict(replace(training.setting, augment=None)),
        "augment": augment,
        "teachers": names,
        "losses": training.terms.text,
        "labelled": training.terms.labelled,
        "keep_s": _checkpoint.KEEP_S,
    }
    (folder / "job.json").write_text(json.dumps(said))
    for name in ("result.pt", "error.txt", "last.txt"):
        (folder / name).unlink(missing_ok=True)


def _tensors(name: str, samples: Samples) -> dict[str, torch.Tensor]:
    found = {f"{name}.input{i}": t.contiguous() for i, t in enumerate(samples.inputs)}
    if samples.targets is not None:
        found[f"{name}.targets"] = samples.targets.contiguous()
    return {key: value.clone() if value.storage_offset() else value for key, value in found.items()}


def _watched(command: Sequence[str], variables: Mapping[str, str], folder: Path, tell: Tell) -> None:
    """Run it to its end, telling how far it is; nothing of it is left where this is interrupted."""
    with (
        (folder / "log.txt").open("wb") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, start_new_session=True, env={**variables, **os.environ}
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(TOLD.encode()):
                    what, done, total = json.loads(line[len(TOLD) :])
                    tell(str(what), int(done), int(total))
                else:  # what a loss of the user's own prints
                    sys.stderr.buffer.write(line)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    code = process.returncode
    if code or not (folder / "result.pt").exists():
        said = folder / "error.txt"
        if said.exists():
            raise PassError(said.read_text())
        lost = folder / "last.txt"
        last = lost.read_text() if lost.exists() else f"exit code {code}"
        raise PassError(f"distill: the workers gave up after {RESTARTS} restarts: {last}")
