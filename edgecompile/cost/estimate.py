"""estimate(): what a program would take on a device, operator by operator, with intervals and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecompile.cost import measured, validation
from edgecompile.cost.columns import ACTIVATION_BYTES, WEIGHT_BYTES, Columns, Floats, columns
from edgecompile.cost.fuse import workload
from edgecompile.cost.laws import PARAMETERS, Seconds, Sheet
from edgecompile.cost.predict import SHARED, seconds, sheet
from edgecompile.cost.result import Bound, Estimate, Fallback, Latency, OperatorRow
from edgecompile.cost.work import Work, Workload
from edgecompile.device import DeviceProfile
from edgecompile.errors import SpecError, Unsupported, near
from edgecompile.program import Program

_UNKNOWN_SPREAD = 2.0
"""Factor up and down where nothing backs a prediction, at least."""
_ROW_POWER = 1.5
"""An operator alone is further off than the sum of many: its interval reaches this power of the network's factor."""


def estimate(
    program: Program | Workload,
    device: DeviceProfile | str,
    dtype: str | None = None,
    batch: int = 1,
    sparse: bool = False,
    fallback: bool = True,
    unit: str = "",
) -> Estimate:
    """Predict the latency of a program at a batch on a device.

    `dtype` prices it as if wholly compiled so (`float`: the widest that the device's toolchain chooses); by default
    operators that read integers run in int8 and all others in the device's usual float. `sparse`: as if all weights
    were 2:4. `unit`: run on that unit of the device, and on its main one what that unit cannot. Raises `SpecError`
    where the device has no such rate or no predictor, `Unsupported` (exit 5) without `fallback` where the unit cannot
    run an operator.
    """
    of = _on(DeviceProfile.load(device) if isinstance(device, str) else device, unit)
    load = program if isinstance(program, Workload) else workload(program)
    works = tuple(w.at(batch) for w in load.works) if load.dynamic else load.works
    asked, batch = batch, batch if load.dynamic else load.batch
    chosen, uniform, on = _dtype(of, dtype), dtype is not None, sheet(of)
    if sparse and not on.rate(chosen, sparse=True):
        raise SpecError(f"{of.name} has no 2:4 rate in {chosen}: it has {', '.join(on.sparse_rates) or 'none'}")
    ledger, moved = _fallbacks(works, of)
    if ledger and not fallback:
        raise Unsupported(f"{of.name}, {of.unit}", [f"{f.op} ({f.node}, {f.layer}): {f.reason}" for f in ledger])
    found = seconds(works, of, chosen, measured.parameters(of), uniform, sparse, on)
    if ledger:
        found = _moved(found, _elsewhere(works, of, chosen, uniform), moved)
    c, total = columns(works, chosen, uniform), found.total
    leading = "int8" if not uniform and "int8" in c.dtype else chosen
    judged = _judged(of, works, leading, found.floor + float(total.sum()), len(ledger), sparse)
    scale = judged.latency.value / (1e3 * (found.floor + float(total.sum())))
    floor = 1e6 * found.floor * scale
    spread = judged.spread
    start = OperatorRow(
        "start", "", "start", chosen, floor, floor / spread, floor * spread, "launch", of.unit, 0, 0, 0.0
    )  # fmt: skip
    rows = _rows(works, of, found, total * scale, c, on, spread**_ROW_POWER, moved)
    memory = _memory_mb(load, works, c, batch, chosen)
    return Estimate(
        f"{of.name}:{of.mode}" if of.mode else of.name,
        leading if leading == chosen else f"{leading}+{chosen}",
        batch,
        judged.latency,
        judged.validated,
        (*rows, start),
        memory,
        judged.evidence,
        ledger,
        _notes(load, asked, memory, of),
    )


@dataclass(frozen=True)
class _Judged:
    latency: Latency
    validated: bool | str
    evidence: str
    spread: float


def _judged(
    of: DeviceProfile, works: Sequence[Work], dtype: str, seconds_: float, fallbacks: int, sparse: bool
) -> _Judged:
    """The latency with its interval: measured where exactly this was, else predicted where validation backs it."""
    if (exact := measured.network(of, works, dtype)) is not None and not sparse:
        latency = Latency(exact.latency_ms, exact.low_ms, exact.high_ms, "measured")
        return _Judged(latency, True, f"this network was measured on {exact.date}", exact.high_ms / exact.latency_ms)
    validated, evidence, spread = validation.evidence(of, dtype)
    if fallbacks:
        validated = f"{fallbacks} operators fall back to the {_last(of)}, whose time nobody has measured"
    elif sparse and validated is True:
        validated = "2:4 sparsity is no part of the validation"
    if validated is not True:
        spread = max(_UNKNOWN_SPREAD, spread**2)
    value = seconds_ * 1e3
    kind: Literal["predicted", "unvalidated"] = "predicted" if validated is True else "unvalidated"
    return _Judged(Latency(value, value / spread, value * spread, kind), validated, evidence, spread)


def _on(of: DeviceProfile, unit: str) -> DeviceProfile:
    """The device with another of its units as the main one; what that cannot run goes to the former."""
    if of.law == "none":
        raise SpecError(f"{of.name}: no predictor: measure it with edgecompile profile --device {of.name}")
    if unit in ("", of.unit):
        return of
    if unit not in of.units:
        raise SpecError(f"{of.name} has no unit {unit!r}{near(unit, of.units)}")
    main = replace(of.units[of.unit], law=of.law)
    chosen = of.units[unit]
    return replace(of, units={unit: chosen, of.unit: main}, law=chosen.law, fit=f"{of.fit} {unit}")


def _elsewhere(works: Sequence[Work], of: DeviceProfile, dtype: str, uniform: bool) -> Seconds:
    """Every operator on the unit that takes what the main one cannot."""
    unit = of.units[_last(of)]
    there = replace(of, units={_last(of): unit}, law=unit.law, fit=of.fit.partition(" ")[0], mode="")
    return seconds(works, there, dtype, None if unit.law == "gpu" else {SHARED: PARAMETERS[unit.law]}, uniform)


def _moved(here: Seconds, there: Seconds, moved: NDArray[np.bool_]) -> Seconds:
    """Times of the operators that moved from the other unit, all else as it was."""
    compute, memory, launch, total = (
        np.where(moved, getattr(there, part), getattr(here, part)) for part in ("compute", "memory", "launch", "total")
    )
    return Seconds(compute, memory, launch, total, here.floor)


def _memory_mb(load: Workload, works: Sequence[Work], c: Columns, batch: int, dtype: str) -> float:
    """Peak of activations and all constants, looked-up tables too."""
    looked_up = max(0, load.constants - sum(w.weights for w in works)) * WEIGHT_BYTES[dtype]
    alive = load.peak_elements * (batch if load.dynamic else 1) * ACTIVATION_BYTES[dtype]
    return (float(c.weight_bytes.sum()) + looked_up + alive) / 1e6


def _notes(load: Workload, batch: int, memory_mb: float, of: DeviceProfile) -> tuple[str, ...]:
    unknown = sorted(set(load.unknown.values()))
    found = [f"priced by their bytes alone, for want of a rule: {', '.join(unknown)}"] if unknown else []
    if not load.dynamic and batch not in (1, load.batch):
        found.append(f"the program takes batches of {load.batch} only: priced at that, not at {batch}")
    if damaged := measured.damaged(of):
        found.append(damaged)
    if of.memory_mb and memory_mb > of.memory_mb.value:
        found.append(f"needs {memory_mb:.0f} MB, more than the {of.memory_mb.value:.0f} MB of {of.title}")
    return tuple(found)


def _rows(
    works: Sequence[Work],
    of: DeviceProfile,
    found: Seconds,
    total: Floats,
    c: Columns,
    on: Sheet,
    spread: float,
    moved: NDArray[np.bool_],
) -> list[OperatorRow]:
    size = c.read_bytes + c.write_bytes + c.weight_bytes
    rows = []
    for i, work in enumerate(works):
        us = float(total[i]) * 1e6
        compute, memory, launch = float(found.compute[i]), float(found.memory[i]), float(found.launch[i])
        bound: Bound = "launch" if launch > max(compute, memory) else "compute" if compute >= memory else "memory"
        peak = 0.0 if moved[i] else on.rate(c.dtype[i]) * us * 1e-6
        rows.append(
            OperatorRow(
                work.name,
                work.layer,
                work.kind,
                c.dtype[i],
                us,
                us / spread,
                us * spread,
                bound,
                _last(of) if moved[i] else of.unit,
                work.macs,
                int(size[i]),
                work.macs / peak if peak else 0.0,
                work.nodes,
            )
        )
    return rows


def _dtype(of: DeviceProfile, asked: str | None) -> str:
    """The dtype to price in: the device's usual float one by default."""
    rates = of.units[of.unit].rates
    if asked is None:
        return "fp32" if of.law == "cpu" else "fp16" if "fp16" in rates else next(iter(rates))
    if asked == "float":
        return next((d for d in ("tf32", "fp32") if d in rates), "fp16")
    if asked not in ACTIVATION_BYTES:
        raise SpecError(f"--dtype {asked}: not a dtype{near(asked, ('float', *ACTIVATION_BYTES))}")
    return asked


def _last(of: DeviceProfile) -> str:
    """The unit that takes what the main one cannot."""
    names = list(of.units)
    return "CPU" if "CPU" in names else names[-1]


def _fallbacks(works: Sequence[Work], of: DeviceProfile) -> tuple[tuple[Fallback, ...], NDArray[np.bool_]]:
    cannot = of.units[of.unit].unsupported
    moved = np.array([w.kind in cannot for w in works], dtype=bool)
    ledger = tuple(
        Fallback(w.nodes[0] if w.nodes else w.name, w.layer, w.kind, _last(of), f"the {of.unit} has no kernel for it")
        for w, goes in zip(works, moved, strict=True)
        if goes
    )
    return ledger, moved
