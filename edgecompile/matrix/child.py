"""What runs in a model's child process: its cells one after the other, each outcome a line in a file.

Started by `run` as `python -m edgecompile.matrix.child ORDER`. What several cells need is made once.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecompile import __version__
from edgecompile.building.fixed import at_batch
from edgecompile.device import DeviceProfile
from edgecompile.errors import EdgeCompileError, PassError, TargetError, Unsupported
from edgecompile.matrix.cells import PIPELINE, known_models, read_target
from edgecompile.matrix.compare import distance
from edgecompile.pass_manager import Context, PassManager, Step, check_data, parse
from edgecompile.program import Program
from edgecompile.reference import load_function
from edgecompile.target import Target, loaded
from edgecompile.teacher import Teacher

_PR_SET_PDEATHSIG = 1
_SAMPLES = 4
_MOST_REASONS = 3


class Worker:
    """One model, with the programs that several of its cells share."""

    def __init__(self, name: str) -> None:
        self.teacher = _teacher(name)
        whole = self.teacher.program
        self.batch = whole.batch or 1
        self.inputs = _samples(self.teacher, self.batch)
        with torch.no_grad():
            self.wanted = [_arrays(whole(*x)) for x in self.inputs]
        self._begun: tuple[Program, Step] | None = None
        self._programs: dict[object, Program] = {}

    def cell(self, text: str, mode: str) -> dict[str, Any]:
        """One cell: what its row holds, less how it is judged."""
        target, name = read_target(text)
        program = at_batch(self._program(target, DeviceProfile.load(name), mode), self.batch)
        if reasons := target.refuse(program):
            raise Unsupported(target.name, reasons)
        with tempfile.TemporaryDirectory(prefix="edgecompile-matrix-") as place:
            folder = Path(place)
            artifact = target.emit(program, folder, self._metadata(mode))
            main = artifact.path
            files = [main] if main.is_file() else [f for f in main.rglob("*") if f.is_file()]
            found: dict[str, Any] = {
                "dtype": str(artifact.facts.get("dtype", "fp32")),
                "artifact_mb": sum(f.stat().st_size for f in files) / 1e6,
            }
            run, _ = loaded(target, artifact, 1, DeviceProfile.load(name).measured_here)
            if run is None:
                return found | {"why": str(artifact.facts.get("not_run_here", "there is nothing here to run it"))}
            apart = distance([_arrays(run(x)) for x in self.inputs], self.wanted)
            return found | {"error": apart.error, "cosine": apart.cosine, "norm": apart.norm}

    def _program(self, target: Target, device: DeviceProfile, mode: str) -> Program:
        """The program behind the passes; made once for targets between which no pass can tell."""
        from edgecompile.passes import EXACT, PASSES

        seen = repr(sorted(map(str, target.quantizable().items()))), target.activations, device.measured_here
        key = (mode, target.legalize, seen if PIPELINE[mode] or target.legalize else None)
        if key not in self._programs:
            exact = parse(", ".join(EXACT), PASSES)
            own = (*parse(PIPELINE[mode], PASSES), *parse(target.legalize, PASSES))
            check_data(own, self.teacher.calib)
            whole = self.teacher.program
            context = Context(whole, device, target, self.teacher.calib)
            manager = PassManager((*exact, *own))
            if self._begun is None:
                self._begun = PassManager(exact).begin(whole, context)
            self._programs[key], _ = manager.run(whole, context, None, self._begun)
        return self._programs[key]

    def _metadata(self, mode: str) -> dict[str, str]:
        return {"pipeline": PIPELINE[mode], "teacher": self.teacher.digest, "edgecompile": __version__}


def _teacher(name: str) -> Teacher:
    from edgecompile.models.loaders import load

    known = known_models()
    found: Teacher = load_function(known[name])() if name in known else load(name)
    return found


def _samples(teacher: Teacher, batch: int) -> list[tuple[Tensor, ...]]:
    """Inputs to compare outputs on, each of the batch that is emitted: evaluation data, else the examples."""
    found: list[tuple[Tensor, ...]] = []
    for chunk in teacher.evaluate.take(_SAMPLES * batch) if teacher.evaluate is not None else ():
        for start in range(0, chunk.size - batch + 1, batch):
            found.append(tuple(x[start : start + batch].clone() for x in chunk.inputs))
    return found[:_SAMPLES] or [teacher.program.specialised(batch).inputs]


def _arrays(outputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return tuple(t.detach().cpu().float().numpy() if t.is_floating_point() else t.cpu().numpy() for t in outputs)


def outcome(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns; an error as `refused` or `failed` with one line of why."""
    try:
        return work()
    except Unsupported as error:
        more = len(error.reasons) - _MOST_REASONS
        why = "; ".join(error.reasons[:_MOST_REASONS]) + (f"; and {more} more" if more > 0 else "")
        return {"status": "refused", "why": _line(why)}
    except PassError as error:
        return {"status": "refused", "why": _line(str(error).partition(" (in pass ")[0])}
    except (EdgeCompileError, MemoryError) as error:
        refused = isinstance(error, TargetError) and error.rule == "operator"
        return {"status": "refused" if refused else "failed", "why": _line(str(error) or "out of memory")}
    except Exception as error:  # of a library, or a bug of ours: one line, and where it came from
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "edgecompile" in f.filename.split("/")]
        last = ours[-1] if ours else frame
        why = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
        return {"status": "failed", "why": _line(why)}


def _line(text: str) -> str:
    from edgecompile.ingest.rules import text_safe

    return text_safe(" ".join(text.split()), 600)


def main(order: Path) -> None:
    """Work through an order; a line before each cell and one with its outcome, so that a crash has a place."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    asked = json.loads(order.read_text())
    if os.getppid() != asked["parent"]:
        return
    with (order.parent / "lines").open("a", buffering=1) as file:

        def say(**what: Any) -> None:
            file.write(json.dumps(what) + "\n")

        worker: Worker | None = None
        for index, cell in enumerate(asked["cells"]):
            say(begin=index)
            started = time.monotonic()

            def work(cell: dict[str, str] = cell) -> dict[str, Any]:
                nonlocal worker
                worker = worker or Worker(asked["model"])
                return worker.cell(cell["target"], cell["mode"])

            found = outcome(work)
            say(end=index, found=found, seconds=time.monotonic() - started)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
