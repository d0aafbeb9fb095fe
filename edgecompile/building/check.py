"""A bundle looked at again: are its files those that were built, does it still give its golden outputs, how fast?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgecompile import errors
from edgecompile.building.bundle import MANIFEST_SCHEMA
from edgecompile.errors import InputError, near
from edgecompile.store import file_hash
from edgecompile.target import Artifact, Run

if TYPE_CHECKING:
    from torch import Tensor

_MOST_BYTES = 10_000_000
State = Literal["ok", "FAIL", "not run"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it holds, in words, and the exit code where it does not."""

    what: str
    state: State
    said: str
    code: int = errors.OK


@dataclass(frozen=True)
class Checked:
    """Everything that `verify` found; `exit_code` is 0 when nothing failed."""

    folder: str
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """The code of the failed finding that comes first by the design."""
        return errors.first_code([f.code for f in self.findings if f.state == "FAIL"])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle; `InputError` for none, a broken one, and one of a newer edgecompile."""
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that `edgecompile build` left, such as out/host")
    if not path.is_file():
        inside = [p.parent.name for p in folder.glob("*/manifest.json")]
        raise InputError(
            f"{folder}: no manifest.json in it{near('', inside) if inside else ''}; give a bundle's folder"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes, more than {_MOST_BYTES}: not a manifest")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        schema = body["schema"]
        files, kind, main = body["files"], body["kind"], body["artifact"]
        good = isinstance(files, dict) and all(isinstance(f["sha256"], str) for f in files.values())
        good = good and isinstance(schema, int) and isinstance(kind, str) and isinstance(main, str)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, RecursionError):
        good, schema = False, 0
    if not good:
        raise InputError(f"{path}: not a manifest that `edgecompile build` wrote; build again")
    if schema > MANIFEST_SCHEMA:
        raise InputError(
            f"{path}: schema {schema}, this edgecompile knows {MANIFEST_SCHEMA}: install a newer edgecompile"
        )
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise InputError(f"{path}: file {name!r} is not below the folder; not a manifest that we wrote")
    found: dict[str, Any] = body
    return found


def check(folder: Path, threads: int | None = None, rounds: int = 20) -> Checked:
    """Hashes of all files, golden outputs and latency where a runtime for the artifact is here.

    Nothing is loaded unless every hash is the manifest's.
    """
    manifest = read_manifest(folder)
    findings = [_hashes(folder, manifest)]
    if findings[0].state == "FAIL":
        return Checked(str(folder), tuple(findings), manifest)
    run, stands_in = load(folder, manifest, threads or int(manifest.get("threads", 1)))
    if run is None:
        why = manifest.get("not_run_here") or f"there is no runtime for {manifest['kind']} on this machine"
        return Checked(str(folder), (*findings, Finding("outputs", "not run", why)), manifest)
    inputs, wanted = golden(folder, manifest)
    findings.append(_outputs(manifest, run(inputs), wanted))
    if stands_in:
        findings.append(Finding("latency", "not run", f"made for {manifest.get('device')}"))
    else:
        findings.append(_latency(manifest, run, inputs, rounds))
    return Checked(str(folder), tuple(findings), manifest)


def load(folder: Path, manifest: Mapping[str, Any], threads: int) -> tuple[Run | None, bool]:
    """The artifact in its runtime, None where there is none here, and whether it only stands in for the device.

    `InputError` for a kind that nobody knows.
    """
    from edgecompile.pass_manager import parse_one
    from edgecompile.spec import parse_calls
    from edgecompile.targets import TARGETS

    kind = str(manifest["kind"])
    emitter = str(manifest.get("emitter", kind))
    if emitter not in TARGETS:
        raise InputError(f"{folder}/manifest.json: artifact of unknown kind {emitter!r}{near(emitter, TARGETS)}")
    target = parse_one(parse_calls(emitter)[0], TARGETS, "manifest")
    facts = manifest.get("facts")
    artifact = Artifact(kind, folder, str(manifest["artifact"]), (), facts if isinstance(facts, dict) else {})
    if target.everywhere and manifest.get("device") != "host":
        return target.reference(artifact, threads), True
    return target.load(artifact, threads), False


def golden(folder: Path, manifest: Mapping[str, Any]) -> tuple[tuple[Tensor, ...], dict[str, np.ndarray[Any, Any]]]:
    """Golden inputs in order, and the outputs that they must give, by name."""
    import torch

    try:
        with np.load(folder / "golden.npz", allow_pickle=False) as stored:
            inputs = tuple(torch.from_numpy(stored[f"input:{i['name']}"]) for i in manifest["inputs"])
            outputs = {name: stored[f"output:{name}"] for name in manifest["outputs"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/golden.npz: not what `edgecompile build` wrote: {error}") from None
    return inputs, outputs


def _hashes(folder: Path, manifest: Mapping[str, Any]) -> Finding:
    wrong = []
    for name, fact in sorted(manifest["files"].items()):
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif file_hash(path) != fact["sha256"]:
            wrong.append(f"{name} is not the file that was built")
    if wrong:
        return Finding("hashes", "FAIL", "; ".join(wrong), errors.MISMATCH)
    return Finding("hashes", "ok", f"{len(manifest['files'])} files are those that were built")


def check_hashes(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise `Mismatch` (exit 9) where a file is not the one that was built."""
    found = _hashes(folder, manifest)
    if found.state == "FAIL":
        raise errors.Mismatch(f"{folder}: {found.said}; build it again, or fetch it again")


def _outputs(
    manifest: Mapping[str, Any], found: tuple[Tensor, ...], wanted: Mapping[str, np.ndarray[Any, Any]]
) -> Finding:
    limit = manifest["tolerance"]
    worst, over = 0.0, []
    for tensor, (name, target) in zip(found, wanted.items(), strict=True):
        value = tensor.detach().cpu().numpy().astype(np.float64)
        if value.shape != target.shape:
            return Finding("outputs", "FAIL", f"{name}: shape {value.shape}, not {target.shape}", errors.ACCURACY)
        scale = float(np.abs(target.astype(np.float64)).max(initial=0.0))
        error = float(np.abs(value - target).max(initial=0.0))
        worst = max(worst, error) if error == error else error
        if not error <= limit["atol"] + limit["rtol"] * scale:
            over.append(f"{name} differs by {error:.3g} of {scale:.3g}")
    if over:
        return Finding("outputs", "FAIL", f"{'; '.join(over)}, more than {limit['rtol']:g}", errors.ACCURACY)
    return Finding("outputs", "ok", f"golden outputs come out again, largest difference {worst:.3g}")


def _latency(manifest: Mapping[str, Any], run: Run, inputs: tuple[Tensor, ...], rounds: int) -> Finding:
    from edgecompile.building.options import BuildOptions
    from edgecompile.building.verdicts import latency_of
    from edgecompile.measure import interleave, median_ms, meets

    bound = getattr(run, "bound", None)
    call = bound(inputs) if bound is not None else lambda: run(inputs)
    samples = interleave({"artifact": call}, rounds=rounds)["artifact"]
    found = median_ms(samples)
    said = f"{found.value:.3g} ms ({found.low:.3g}-{found.high:.3g}) on this machine"
    asked = manifest.get("max_latency")
    limit = BuildOptions(max_latency=asked).budgets().latency if asked else None
    if limit is None or limit.ms is None or manifest.get("device") != "host":
        return Finding("latency", "ok", said)
    at = latency_of(samples, limit.quantile)
    answer = "inconclusive" if at is None else meets(at, limit.ms)
    if answer == "miss":
        return Finding("latency", "FAIL", f"{said}, over the budget of {asked}", errors.LATENCY)
    if answer == "inconclusive":
        return Finding("latency", "FAIL", f"{said}, too near the budget of {asked} to tell", errors.INCONCLUSIVE)
    return Finding("latency", "ok", f"{said}, within the budget of {asked}")
