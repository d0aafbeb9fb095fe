"""The bundle: the artifact's files, golden inputs and outputs, and a manifest with the hash of each, manifest last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from edgecompile.data import Dataset
from edgecompile.program import Program
from edgecompile.store import file_hash
from edgecompile.target import Artifact, Run

MANIFEST_SCHEMA = 2
TOLERANCE = {"rtol": 1e-3, "atol": 1e-5}
"""Of golden outputs, relative to each output's largest value, where a target says nothing."""


def golden_inputs(fixed: Program, data: Dataset | None, kind: str, seed: int) -> tuple[tuple[Tensor, ...], str]:
    """One batch for the emitted shapes, and which it is: the first samples of the evaluation data, or random numbers.

    Random (`synthetic`) too where there is no data of these shapes. Integers are drawn between the smallest and the
    largest of the example inputs.
    """
    found = batches(fixed, data, 1) if kind == "data" else []
    if found:
        return found[0], "data"
    generator = torch.Generator().manual_seed(seed)
    return tuple(_random(t, generator) for t in fixed.inputs), "synthetic"


def batches(fixed: Program, data: Dataset | None, count: int) -> list[tuple[Tensor, ...]]:
    """Up to `count` batches for the emitted shapes from the first chunk of the data; none where its shapes differ."""
    if data is None:
        return []
    size = int(fixed.inputs[0].shape[0]) if fixed.inputs[0].dim() else 1
    chunk = next(iter(data)).inputs
    samples = int(chunk[0].shape[0]) if chunk[0].dim() else 1
    found = []
    for start in range(0, min(samples, count * size), size):
        index = torch.arange(start, start + size) % samples
        batch = tuple(t.index_select(0, index) if t.dim() else t for t in chunk)
        if all(a.shape == b.shape for a, b in zip(batch, fixed.inputs, strict=True)):
            found.append(batch)
    return found


def _random(example: Tensor, generator: torch.Generator) -> Tensor:
    if example.is_floating_point():
        return torch.randn(example.shape, generator=generator).to(example.dtype)
    if example.dtype == torch.bool:
        return torch.rand(example.shape, generator=generator) < 0.5
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, high + 1, example.shape, generator=generator).to(example.dtype)


_DEVICE_STEPS = (
    ("build.sh", "", "sh build.sh", "builds what is not built yet: its first lines say where"),
    ("check.sh", "selftest.sh", "sh selftest.sh", "hashes, golden outputs, latency without Python; writes result.json"),
    ("run.py", "selftest.py", "python selftest.py", "hashes, golden outputs, latency; writes result.json"),
)
"""What the device's owner can do: the artifact's file that it needs, the script that it adds, command, meaning."""


def _for_the_device(folder: Path, artifact: Artifact, facts: Mapping[str, Any]) -> dict[str, Path]:
    """The self-tests for whose `run.py` or `check.sh` there is, and a page for the person who holds the device."""
    made: dict[str, Path] = {}
    steps = []
    for needed, script, command, what in _DEVICE_STEPS:
        if not (folder / needed).is_file():
            continue
        steps.append(f"{command:<20} # {what}")
        if script:
            source = resources.files("edgecompile.building.device") / script
            (folder / script).write_bytes(source.read_bytes())
            made["selftest" if script.endswith(".py") else f"{artifact.kind}:{script}"] = folder / script
    lines = [
        f"# {facts.get('target', artifact.kind)}",
        "",
        f"`{artifact.main}` for {facts.get('device', 'a device')}, by edgecompile {facts.get('edgecompile', '')}.",
        "",
        "```",
        *steps,
        "python run.py inputs.npz outputs.npz",
        "```",
        "",
        "`golden.npz` has inputs (`input:NAME`) and the outputs that they must give (`output:NAME`); `manifest.json`",
        "says how this was made, from which model, and the SHA-256 of every file.",
    ]
    if told := artifact.facts.get("on_device"):
        lines += ["", *cast("list[str]", told)]
    if reason := artifact.facts.get("not_run_here"):
        lines += ["", f"Not run on the machine that built it: {reason}"]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made | {"readme": folder / "README.md"}


def _sums(folder: Path, files: Mapping[str, Path]) -> str:
    """Hashes of a bundle's files as sha256sum reads them."""
    rows = sorted((path.relative_to(folder).as_posix(), file_hash(path)) for path in files.values())
    return "".join(f"{digest}  {name}\n" for name, digest in rows)


def fill(
    folder: Path,
    artifact: Artifact,
    run: Run | None,
    fixed: Program,
    golden: tuple[Tensor, ...],
    facts: Mapping[str, Any],
) -> dict[str, Path]:
    """Copy the artifact, write `golden.npz` and last `manifest.json`; the files by kind, the main file first.

    Golden outputs come from the artifact's own runtime, from the program where there is none here (`golden_from`).
    """
    files: dict[str, Path] = {}
    for path in sorted(artifact.folder.rglob("*")):
        if path.is_file() and path.name != "emit.json":
            target = folder / path.relative_to(artifact.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)  # with its mode: a runner stays executable
            inside = path.relative_to(artifact.folder).as_posix()
            files[artifact.kind if path == artifact.path else f"{artifact.kind}:{inside}"] = target
    with torch.no_grad():
        outputs = run(golden) if run is not None else fixed(*golden)
    arrays = {f"input:{n}": t.numpy() for n, t in zip(fixed.input_names, golden, strict=True)}
    arrays |= {f"output:{n}": t.detach().numpy() for n, t in zip(fixed.output_names, outputs, strict=True)}
    np.savez(folder / "golden.npz", **arrays)  # type: ignore[arg-type]
    files["golden"] = folder / "golden.npz"
    files |= _for_the_device(folder, artifact, facts)
    if (folder / "selftest.sh").is_file():
        (folder / "SHA256SUMS").write_text(_sums(folder, files), encoding="utf-8")
        files[f"{artifact.kind}:SHA256SUMS"] = folder / "SHA256SUMS"
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "tolerance": artifact.facts.get("tolerance", TOLERANCE),
        "not_run_here": artifact.facts.get("not_run_here", ""),
        "artifact": artifact.main,
        "facts": {k: v for k, v in artifact.facts.items() if k not in ("tolerance", "not_run_here")},
        "kind": artifact.kind,
        "golden_from": "artifact" if run is not None else "program",
        "inputs": [
            {"name": n, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
            for n, t in zip(fixed.input_names, fixed.inputs, strict=True)
        ],
        "outputs": list(fixed.output_names),
        "files": {
            p.relative_to(folder).as_posix(): {"sha256": file_hash(p), "bytes": p.stat().st_size}
            for p in files.values()
        },
        **facts,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    files["manifest"] = folder / "manifest.json"
    return files
