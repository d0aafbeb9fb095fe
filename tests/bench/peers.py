"""Latency against accuracy beside Torch-Pruning: three networks at shares of their own measured time, healed alike.

    python -m tests.bench.peers plan [--work DIR] [--networks fashion,depthwise,vit] [--shares 0.5,0.25] [--seed 0]
    python -m tests.bench.peers train [--work DIR] [--device cuda] [--jobs 4]
    python -m tests.bench.peers finish [--work DIR]
    python -m tests.bench.peers table

Torch-Pruning is no part of the setup: `pip install --no-deps torch-pruning==1.6.1`.

Three sides: `ours` (`fit`, which may use integers), `peer` and `peer-int8` (Torch-Pruning, global, isomorphic, aligned
by Taylor importance, bisected to the share as floats or behind our `quantize`). All are then trained by the same
`distill` from the same teacher for as many steps. `train` needs neither the runtimes nor this machine, so that it may
run where a GPU is. A cell that is done is not done again. Results are kept in peers.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from edgecompile import program_file
from edgecompile.pass_manager import Context, Pass
from edgecompile.program import Program

RESULTS = Path(__file__).with_name("peers.json")
SIDES = ("ours", "peer", "peer-int8")
_AIM = 0.97
_BISECTED = 12


@dataclass(frozen=True)
class Cell:
    """One network, side, share and seed."""

    network: str
    side: str
    share: float
    seed: int

    @property
    def key(self) -> str:
        """Its name, of its folder too."""
        return f"{self.network}-{self.side}-{self.share:g}-{self.seed}"

    @staticmethod
    def of(key: str) -> Cell:
        """The cell of a name."""
        network, rest = key.split("-", 1)
        side, share, seed = rest.rsplit("-", 2)
        return Cell(network, side, float(share), int(seed))


@dataclass(frozen=True)
class Store(Pass):
    """Where training comes in: the program is written down, and goes on as it is."""

    name: ClassVar[str] = "store"
    heals: ClassVar[bool] = True
    folder: str = ""

    def run(self, program: Program, ctx: Context) -> Program:
        """Save."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        program_file.save(program.retraced(), folder)
        return program


@dataclass(frozen=True)
class Stored(Pass):
    """The program that was written down."""

    name: ClassVar[str] = "stored"
    shapes: ClassVar[bool] = True
    folder: str = ""

    def run(self, program: Program, ctx: Context) -> Program:
        """Load."""
        return program_file.load(Path(self.folder))


@dataclass(frozen=True)
class TorchPruning(Pass):
    """Torch-Pruning on the module that the teacher was captured from, its ratio bisected to the latency."""

    name: ClassVar[str] = "torch_pruning"
    shapes: ClassVar[bool] = True
    network: str = ""
    share: float = 0.5
    integer: bool = False

    def run(self, program: Program, ctx: Context) -> Program:
        """The largest that is measured within the share."""
        assert ctx.share is not None
        low, high = 0.0, 0.98
        kept = None
        for _ in range(_BISECTED):
            ratio = (low + high) / 2
            try:
                made = self._pruned(ratio, ctx)
                took = ctx.share(_exact(made, self.integer, ctx), program)
            except (RuntimeError, ValueError) as error:
                ctx.note(f"ratio {ratio:.3f}: {error}")
                took, made = 0.0, None
            if took <= self.share and made is not None:
                kept, high = (made, took, ratio), ratio
                if took >= 0.95 * self.share:
                    break
            else:
                low = ratio
        if kept is None:
            raise RuntimeError("out of the peer's reach")
        ctx.note(f"ratio {kept[2]:.3f} takes {kept[1]:.3f}")
        return kept[0]

    def _pruned(self, ratio: float, ctx: Context) -> Program:
        import torch_pruning as tp
        from torch.nn import functional as F

        from tests.bench.teachers import Layer, module

        model = module(self.network)
        example = torch.zeros(2, 1, 28, 28)
        heads = {m.qkv: m.heads for m in model.modules() if isinstance(m, Layer)}
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupTaylorImportance(),
            global_pruning=True,
            isomorphic=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            round_to=8,
            ignored_layers=[model.head],
            num_heads=heads,
        )
        assert ctx.train is not None
        with torch.enable_grad():
            for batch in ctx.train.take(512):
                assert batch.targets is not None
                F.cross_entropy(model(*batch.inputs), batch.targets).backward()
            pruner.step()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        return Program.capture(model.eval(), {"x": example})


def _exact(program: Program, integer: bool, ctx: Context) -> Program:
    from edgecompile.pass_manager import PassManager, parse
    from edgecompile.passes import EXACT, PASSES
    from edgecompile.passes.quantize import Quantize

    plain = Context(program, ctx.device, ctx.target, calib=ctx.calib and ctx.calib.take(48))
    made, _ = PassManager(parse(", ".join(EXACT), PASSES)).run(program, plain)
    return Quantize().run(made.clone(), replace(plain, teacher=made)).retraced() if integer else made


def plan(cell: Cell, folder: Path) -> None:
    """Choose and write down what is to be trained."""
    from edgecompile.building.run import build
    from edgecompile.passes.fit import Fit
    from edgecompile.passes.quantize import Quantize
    from tests.bench.teachers import teacher

    began = time.perf_counter()
    place = str(folder / "planned")
    share = _AIM * cell.share
    passes: list[Pass] = [Fit(latency=share, unreachable="fastest"), Store(folder=place), Quantize()]
    if cell.side != "ours":
        passes = [TorchPruning(network=cell.network, share=share, integer="int8" in cell.side), Store(folder=place)]
    whole = teacher(cell.network)
    assert whole.evaluate is not None
    few = replace(whole, evaluate=whole.evaluate.take(256))
    report = build(few, passes=passes, target="onnx@host", seed=cell.seed, out=str(folder / "untrained"))
    notes = [n for s in report.steps for n in s.notes]
    said = {"notes": notes, "seconds": round(time.perf_counter() - began)}
    (folder / "planned.json").write_text(json.dumps(said, indent=1))
    print(cell.key, said, flush=True)


def train(cell: Cell, folder: Path, given: argparse.Namespace) -> None:
    """Heal what was planned, by the product's own pass."""
    from edgecompile.models import fashion
    from edgecompile.passes.distill import Distill
    from tests.bench.teachers import module

    data = fashion.splits(given.data)
    program = program_file.load(folder / "planned")
    whole = Program.capture(module(cell.network), {"x": torch.zeros(2, 1, 28, 28)})
    ctx = Context(whole, train=data["train"], seed=cell.seed)
    began = time.perf_counter()
    done = Distill(steps=given.steps, augment=given.augment, device=given.device).run(program, ctx).retraced()
    (folder / "trained").mkdir(exist_ok=True)
    program_file.save(done, folder / "trained")
    said = {"steps": given.steps, "augment": given.augment, "seconds": round(time.perf_counter() - began), **ctx.stats}
    (folder / "trained.json").write_text(json.dumps(said))
    print(cell.key, said, flush=True)


def finish(cell: Cell, folder: Path) -> dict[str, Any]:
    """Build, measure and score what was trained."""
    from edgecompile.building.run import build
    from edgecompile.measure import machine
    from edgecompile.pass_manager import parse
    from edgecompile.passes import EXACT, PASSES
    from edgecompile.passes.quantize import Quantize
    from tests.bench.teachers import teacher

    passes = [Stored(folder=str(folder / "trained")), *parse(", ".join(EXACT), PASSES)]
    if cell.side != "peer":
        passes.append(Quantize(keep="always" if cell.side == "peer-int8" else "if_it_pays"))
    out = str(folder / "finished")
    report = build(teacher(cell.network), passes=passes, target="onnx@host", seed=cell.seed, out=out)
    ratio, score = report.latency_ratio, report.score
    assert ratio is not None
    assert score is not None
    planned = json.loads((folder / "planned.json").read_text())
    return {
        "latency": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "top1": score.artifact,
        "teacher": score.teacher,
        "plan_s": planned["seconds"],
        "planned": planned["notes"],
        "training": json.loads((folder / "trained.json").read_text()),
        "cpu": machine()["cpu"],
    }


def table() -> None:
    """Print what is known: mean over seeds."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    cells: dict[tuple[str, float], dict[str, list[dict[str, Any]]]] = {}
    for key, value in known.items():
        cell = Cell.of(key)
        cells.setdefault((cell.network, cell.share), {}).setdefault(cell.side, []).append(value)
    print("network    share   " + "".join(f"{side:>28s}" for side in SIDES))
    for (network, share), sides in sorted(cells.items(), key=lambda c: (c[0][0], -c[0][1])):
        shown = ""
        for side in SIDES:
            found = sides.get(side, [])
            if not found:
                shown += f"{'-':>28s}"
                continue
            took = sum(f["latency"] for f in found) / len(found)
            top1 = sum(f["top1"] for f in found) / len(found)
            lost = sum(f["teacher"] - f["top1"] for f in found) / len(found)
            shown += f"{took:10.3f} {top1:7.2f} ({-lost:+5.2f})"[:28].rjust(28)
        print(f"{network:10s} {share:5.2f}  {shown}")


def main() -> None:
    """Run one stage over all of its cells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=("plan", "train", "finish", "table"))
    parser.add_argument("--work", type=Path, default=Path("out/peers"))
    parser.add_argument("--networks", default="fashion,depthwise,vit")
    parser.add_argument("--shares", default="0.7,0.5,0.35,0.25")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1395, help="three epochs of 128")
    parser.add_argument("--augment", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cell", help="this one only")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.stage == "table":
        return table()
    if given.stage == "train":
        return _train(given)
    torch.set_num_threads(1)
    if given.stage == "plan":
        for network in given.networks.split(","):
            for share in map(float, given.shares.split(",")):
                for side in given.sides.split(","):
                    cell = Cell(network, side, share, given.seed)
                    folder = given.work / cell.key
                    if not (folder / "planned.json").exists():
                        try:
                            plan(cell, folder)
                        except Exception as error:
                            print(f"{cell.key}: {type(error).__name__}: {error}", flush=True)
        return None
    for folder in sorted(given.work.glob("*/trained.json")):
        cell = Cell.of(folder.parent.name)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        if cell.key not in known:
            known[cell.key] = finish(cell, folder.parent)
            RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
            print(cell.key, known[cell.key], flush=True)
    return None


def _train(given: argparse.Namespace) -> None:
    """Every planned cell in a process of its own, some at a time."""
    if given.cell:
        return train(Cell.of(given.cell), given.work / given.cell, given)
    todo = [p.parent for p in sorted(given.work.glob("*/planned.json")) if not (p.parent / "trained.json").exists()]
    running: list[subprocess.Popen[bytes]] = []
    for folder in todo:
        while len([p for p in running if p.poll() is None]) >= given.jobs:
            time.sleep(0.2)
        running.append(
            subprocess.Popen([sys.executable, "-m", "tests.bench.peers", *sys.argv[1:], "--cell", folder.name])
        )
    for process in running:
        process.wait()
    return None


if __name__ == "__main__":
    main()
