"""`edgecompile estimate`: what a model would take on a device, operator by operator."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgecompile import errors

if TYPE_CHECKING:
    from edgecompile.cost.result import Estimate


def estimate(
    model: Annotated[
        str, typer.Argument(help="A name from `edgecompile list`, module:function, .pt2, .onnx or a folder.")
    ],
    device: Annotated[str, typer.Option("--device", help="A device, device:mode, a deployment, or a .toml profile.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Price it as if wholly compiled so: float, fp16, int8, ...")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples at once.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads, on host.")] = None,
    unit: Annotated[str, typer.Option("--unit", help="Another unit of the device, such as DLA.")] = "",
    sparse: Annotated[bool, typer.Option("--sparse", help="As if all weights were 2:4 sparse.")] = False,
    fallback: Annotated[
        bool, typer.Option("--fallback/--no-fallback", help="Whether other units may take what the main one cannot.")
    ] = True,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Price the model without the exact passes of a build.")
    ] = False,
    weights: Annotated[str | None, typer.Option("--weights", help="Weights for a module:function model.")] = None,
    input: Annotated[
        list[str] | None, typer.Option("--input", help="An input's shape, NAME=1x3x224x224:float32.")
    ] = None,
    fix: Annotated[list[str] | None, typer.Option("--fix", help="Make an input of an ONNX file a constant.")] = None,
    trust_model: Annotated[bool, typer.Option("--trust-model", help="Let a model file run its own code.")] = False,
    html: Annotated[str | None, typer.Option("--html", help="Write a page with a roofline here.")] = None,
    trace: Annotated[str | None, typer.Option("--trace", help="Write a trace for Perfetto here.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Predict MODEL's latency on a device, with intervals and where they come from.

    Exit 5 with --no-fallback where the device's main unit cannot run an operator.
    """
    from pathlib import Path

    from edgecompile.cost.estimate import estimate as priced
    from edgecompile.cost.result import as_json
    from edgecompile.device import DeviceProfile
    from edgecompile.models.loaders import load
    from edgecompile.pass_manager import Context, PassManager, parse
    from edgecompile.passes import EXACT, PASSES
    from edgecompile.targets import device_of

    profile = DeviceProfile.load(device_of(device))
    teacher = load(
        model,
        weights=Path(weights) if weights else None,
        inputs=tuple(input or ()),
        image=None,
        fix=tuple(fix or ()),
        trust=trust_model,
    )
    program = teacher.program
    if not as_is:
        program, _ = PassManager(parse(", ".join(EXACT), PASSES)).begin(program, Context(program, profile))
    if profile.measured_here:
        from edgecompile.building.host_estimate import host_estimate
        from edgecompile.targets.onnx import Onnx

        if sparse or unit:
            raise errors.SpecError(f"--device {device}: --sparse and --unit are for devices with such units")
        found = host_estimate(program, Onnx(), batch, threads or profile.threads, dtype)
    else:
        found = priced(program, profile, dtype, batch, sparse, fallback, unit)
    if html:
        from edgecompile.report.roofline import page
        from edgecompile.store import write_atomic

        write_atomic(Path(html), page(teacher.name, found, profile).encode())
    if trace:
        from edgecompile.cost.trace import events
        from edgecompile.store import write_atomic

        write_atomic(Path(trace), json.dumps(events(teacher.name, found)).encode())
    if json_:
        sys.stdout.write(json.dumps({"model": teacher.name, **as_json(found)}, indent=2) + "\n")
    else:
        _show(teacher.name, found, profile.title)
    return errors.OK


def _show(model: str, found: Estimate, title: str) -> None:
    from edgecompile.cli.progress import table

    latency = found.latency_ms
    said = f"{latency.kind}, 90 % interval" if latency.kind == "predicted" else latency.kind
    print(
        f"{model} on {found.device} in {found.dtype}, batch {found.batch}: {latency.value:.3g} ms "
        f"({latency.low:.3g}-{latency.high:.3g} ms {said}), {found.memory_mb:.0f} MB"
    )
    print(f"{title}; {found.evidence}")
    if found.validated is not True:
        print(f"unvalidated: {found.validated}")
    for note in found.notes:
        print(f"note: {note}")
    rows = [
        (
            r.name,
            r.op,
            r.dtype,
            f"{r.us:.1f}",
            f"{r.low_us:.1f}-{r.high_us:.1f}",
            r.bound,
            r.unit,
            f"{r.macs / 1e6:.2f}",
            f"{r.bytes / 1e3:.0f}",
            f"{100 * r.share:.1f} %",
        )
        for r in found.rows
    ]
    table(rows, ("operator", "kind", "dtype", "us", "interval", "bound", "unit", "MMACs", "kB", "of peak"))
    for f in found.fallbacks:
        print(f"falls back to the {f.unit}: {f.op} {f.node} ({f.layer}): {f.reason}")
