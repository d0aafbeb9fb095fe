"""One worker of a training job: run by `torch.distributed.run` with the job's folder, once a process."""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgecompile import program_file
from edgecompile.errors import EdgeCompileError
from edgecompile.passes import _checkpoint
from edgecompile.passes._samples import Samples, augmentation
from edgecompile.passes._setting import Setting
from edgecompile.passes._terms import Terms
from edgecompile.passes._training import Training
from edgecompile.passes._workers import TOLD

_MEETING_S = 30


def main(folder: Path) -> None:
    """Train with the others; the first worker writes what came of it."""
    said = json.loads((folder / "job.json").read_text())
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    _checkpoint.KEEP_S = said["keep_s"]
    device = said["setting"]["device"]
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    _meet("nccl" if device.startswith("cuda") else "gloo", ranks)
    setting = replace(
        Setting(**said["setting"]), rank=rank, ranks=ranks, device=device, augment=augmentation(said["augment"])
    )
    student, *teachers = (program_file.load(folder / name) for name in ("student", *said["teachers"]))
    terms = Terms.of(student, teachers[0], said["losses"], said["labelled"])
    learned, held = _samples(folder)
    training = Training(student, teachers, terms, learned, held, setting)

    def tell(what: str, done: int, total: int) -> None:
        if not rank:
            print(TOLD + json.dumps([what, done, total]), flush=True)

    try:
        state = training.run(folder, tell)
    except BrokenPipeError:  # nobody waits for this any more
        os._exit(0)
    if not rank:
        training.finish()
        values = {name: value.detach() for name, value in training.all().items()}
        torch.save({"values": values, "state": vars(state) | {"best": {}, "average": {}}}, folder / "result.partial")
        os.replace(folder / "result.partial", folder / "result.pt")
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # tidying up can wait for ever for a worker that has already left


def _meet(backend: str, ranks: int) -> None:
    """All workers reach each other, or all are soon started again.

    Two that connect to each other at the same moment can wait for ever, so that this has little time; what follows has
    much, since the first worker scores alone.
    """
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=_MEETING_S + ranks))
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(hours=1))


def _samples(folder: Path) -> tuple[Samples, Samples]:
    tensors: dict[str, Tensor] = load_file(folder / "samples.safetensors")

    def part(name: str) -> Samples:
        inputs = sorted(k for k in tensors if k.startswith(f"{name}.input"))
        return Samples(tuple(tensors[k] for k in inputs), tensors.get(f"{name}.targets"))

    return part("learned"), part("held")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    place = Path(sys.argv[1])
    refused = place / "error.txt"
    try:
        if not refused.exists():  # else another worker has said why there is nothing to start again
            main(place)
    except EdgeCompileError as error:
        refused.write_text(str(error))
        os._exit(0)
    except Exception as error:
        if "gloo" not in str(error):  # else it is another worker that was lost
            (place / "last.txt").write_text(" ".join(f"{type(error).__name__}: {error}".split()))
        raise
