"""`edgecompile profile`: measure on a device, here or over a wire."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecompile import errors

if TYPE_CHECKING:
    from edgecompile.device import DeviceProfile
    from edgecompile.remote import Measured


def profile(
    artifact: Annotated[
        str | None, typer.Argument(help="A folder that `build` left, an .onnx file, or a .so for TVM.")
    ] = None,
    device: Annotated[
        str,
        typer.Option("--device", help="host, ssh://user@board, tvm://127.0.0.1:9190/key, adb://..., mac://user@host."),
    ] = "host",
    as_: Annotated[
        str | None, typer.Option("--as", help="The device profile whose predictions learn from this, such as orin:30W.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads on a CPU.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples at once.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of timing.")] = 30,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until the device counts as lost.")] = 600,
    seconds: Annotated[
        float, typer.Option("--seconds", help="How long the CPU here is measured, without ARTIFACT.")
    ] = 240,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Measure ARTIFACT on a device; without ARTIFACT, measure what operators cost on this machine's CPU.

    Exit 6 when the device cannot be reached or is lost (what was measured until then is kept and labelled), 7 when it
    was too unsteady to certify.
    """
    if artifact is None:
        if device != "host":
            raise errors.SpecError(f"--device {device}: say which artifact to measure there")
        return _host(threads, seconds, json_)
    import datetime

    from edgecompile.building.profiled import plain, record, teach
    from edgecompile.cli.progress import progress
    from edgecompile.remote import profile as measure

    known = _known(as_)
    path, today = Path(artifact), datetime.date.today().isoformat()
    try:
        with progress() as tell:
            found = measure(
                path, device, threads=threads, batch=batch, rounds=rounds, timeout_s=timeout, progress=tell, date=today
            )
    except errors.DeviceLost as lost:
        if lost.partial is not None:
            kept = record(lost.partial, path)  # type: ignore[arg-type]
            raise errors.DeviceLost(f"{lost}; what was measured until then is in {kept}", lost.partial) from None
        raise
    kept = record(found, path)
    notes = [*found.notes]
    if known is not None and (why := teach(found, path, known, batch)):
        notes.append(why)
    if json_:
        sys.stdout.write(json.dumps({**plain(found), "notes": notes}, indent=2) + "\n")
    else:
        _show(found, notes, kept)
    return errors.OK if found.certified else errors.INCONCLUSIVE


def _known(name: str | None) -> DeviceProfile | None:
    from edgecompile.device import DeviceProfile
    from edgecompile.targets import device_of

    return DeviceProfile.load(device_of(name)) if name else None


def _host(threads: int, seconds: float, json_: bool) -> int:
    from edgecompile import hostcost
    from edgecompile.cli.progress import progress

    with progress() as tell:
        path = hostcost.profile(
            threads=threads, seconds=seconds, progress=lambda done, total: tell("measuring this CPU", done, total)
        )
    if json_:
        sys.stdout.write(json.dumps({"device": "host", "threads": threads, "table": str(path)}, indent=2) + "\n")
    else:
        print(f"host, {threads} thread{'s' * (threads > 1)}: {path}")
    return errors.OK


def _show(found: Measured, notes: list[str], kept: Path) -> None:
    from edgecompile.cli.progress import table

    middle = found.interval
    said = f"{middle.value:.4g} ms ({middle.low:.4g}-{middle.high:.4g}, 99 % interval)" if middle else "no latency"
    state = "" if found.certified else f"  NOT CERTIFIED: {found.why_partial or found.why_noisy}"
    print(f"{found.device}: {said}, {sum(map(len, found.samples_ms))} samples{state}")
    for p, value in found.percentiles.items():
        if value is not None:
            print(f"  {p} %: {value.value:.4g} ms ({value.low:.4g}-{value.high:.4g})")
    for key, fact in found.environment.items():
        print(f"  {key}: {fact}")
    for note in notes:
        print(f"note: {note}")
    if found.rows:
        table([(r.name, f"{r.us:.1f}", r.unit) for r in found.rows], ("operator", "us", "unit"))
    print(f"kept in {kept}")
