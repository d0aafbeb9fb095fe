"""Price an ONNX model on this CPU from the table of measured operators, without running the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgecompile.errors import OutputError
from edgecompile.hostcost import constants as joined
from edgecompile.hostcost.cold import activations_us, setting, weights_us
from edgecompile.hostcost.constants import Constants
from edgecompile.hostcost.cut import Cut, take_apart, time_alone_us
from edgecompile.hostcost.geometry import interpolate, laws, locate, macs, parametric_us, work
from edgecompile.hostcost.table import Table, default_folder, load, load_file

Source = Literal["measured", "interpolated", "parametric"]

LOW, HIGH = 0.97, 1.12
"""Measured over predicted, 5 % and 95 % quantile, by `python -m tests.bench.host`, one thread, a busy machine: 0.97 to
1.05 for its networks, 1.00 to 1.12 for ten that came later, 0.99 to 1.13 with `--batch 4`."""
PARAMETRIC_SPREAD = 0.5
"""How much wider, as a share, for a network priced by law alone: 52 % off at worst with `--no-measure`."""
NOISY = 0.10
_LEAST_US = 0.1


@dataclass(frozen=True)
class Row:
    """One node of the graph that the runtime makes of the model, in its order; `ms` includes dispatch and weights."""

    name: str
    op: str
    ms: float
    source: Source
    weight_bytes: int
    in_bytes: int
    out_bytes: int
    macs: int | None


@dataclass(frozen=True)
class Priced:
    """A predicted latency; `low` to `high`: its 90 % interval; `run_ms`: what a run costs without its nodes."""

    ms: float
    low: float
    high: float
    run_ms: float
    rows: tuple[Row, ...]
    threads: int
    notes: tuple[str, ...]


def price(model: Path, threads: int = 1, measure: bool = True, table: Path | None = None) -> Priced:
    """Predict the latency of an ONNX file with fixed shapes on this CPU.

    The file is optimised by ONNX Runtime as a session would; what the table does not know of the nodes is interpolated
    between the widths of their geometry, else timed alone for some milliseconds with values of our own making (and
    added to the table), else (`measure=False`) set by a law fitted on the table. The model as a whole is never run.
    The file is read by the runtime in this process: vet a foreign one first.
    """
    known = load(default_folder(), threads) if table is None else load_file(table, threads)
    cuts = take_apart(model, threads)
    notes = list(known.notes)
    constants = _constants(known, threads, measure, notes)
    before = len(known.times)
    times = _times(known, cuts, constants, threads, measure)
    new = len(known.times) > before
    doubt = _doubt(constants, threads, new, notes)
    if new:
        _save(known, notes)
    return _summed(cuts, times, constants, doubt, threads, notes)


def _constants(table: Table, threads: int, measure: bool, notes: list[str]) -> Constants:
    if table.constants is not None:
        return table.constants
    if not measure:
        notes.append("no profile of this machine: all is by laws of another; `edgecompile profile` makes one")
        return joined.GUESSED
    table.constants = joined.measure(threads, quick=True)
    notes.append(
        "no profile of this machine: measured the costs of a run now, roughly; `edgecompile profile` makes one"
    )
    _save(table, notes)
    return table.constants


def _times(
    table: Table, cuts: Sequence[Cut], constants: Constants, threads: int, measure: bool
) -> list[tuple[float, Source]]:
    """Warm microseconds that every node adds to a run, and where they come from."""
    if measure:
        measure_into(table, [cut for cut in cuts if _between(table, cut, constants) is None], threads)
    fitted = None
    found: list[tuple[float, Source]] = []
    for cut in cuts:
        if cut.view:
            found.append((constants.run_us + constants.view_us, "measured"))
        elif cut.key in table.times:
            found.append((table.times[cut.key], "measured"))
        elif (between := _between(table, cut, constants)) is not None:
            found.append((between, "interpolated"))
        else:
            fitted = laws(table.works.values()) if fitted is None else fitted
            found.append((parametric_us(fitted, work(cut)), "parametric"))
    return [(max(_LEAST_US, us - constants.run_us), source) for us, source in found]


def _between(table: Table, cut: Cut, constants: Constants) -> float | None:
    place = locate(cut, constants.block)
    return None if place is None else interpolate(table.points(place), place)


def measure_into(table: Table, cuts: Sequence[Cut], threads: int) -> None:
    """Time nodes that the table does not have, in two passes: what disturbs one moment seldom disturbs both."""
    new = {cut.key: cut for cut in cuts if not cut.view and cut.key not in table.times}
    first = {key: time_alone_us(cut, threads) for key, cut in new.items()}
    for key, cut in new.items():
        table.add(cut, min(first[key], time_alone_us(cut, threads)))


def _summed(
    cuts: Sequence[Cut],
    times: Sequence[tuple[float, Source]],
    constants: Constants,
    doubt: float,
    threads: int,
    notes: Sequence[str],
) -> Priced:
    found = setting(cuts)
    cold = found.coldness(constants.cold)
    moved = max(sum(map(_moved, cuts)), 1)
    per_byte = cold * activations_us(constants.cold, found) / moved
    rows = tuple(
        Row(
            name=cut.name,
            op=cut.op,
            ms=(us + cold * weights_us(constants.cold, cut) + per_byte * _moved(cut)) / 1000,
            source=source,
            weight_bytes=cut.weight_bytes,
            in_bytes=cut.in_bytes,
            out_bytes=cut.out_bytes,
            macs=macs(cut),
        )
        for cut, (us, source) in zip(cuts, times, strict=True)
    )
    run_ms = constants.run_us / 1000
    total = run_ms + sum(row.ms for row in rows)
    guessed = sum(row.ms for row in rows if row.source == "parametric")
    wider = 1 + doubt + PARAMETRIC_SPREAD * guessed / total
    said = list(notes)
    if guessed:
        said.append(f"{guessed / total:.0%} of the latency is by law, not measured: allow measuring")
    return Priced(total, total * LOW / wider, total * HIGH * wider, run_ms, rows, threads, tuple(said))


def _moved(cut: Cut) -> int:
    return 0 if cut.view else cut.in_bytes + cut.out_bytes


def _doubt(constants: Constants, threads: int, measured_now: bool, notes: list[str]) -> float:
    """How much wider the interval must be: a machine that was, or is, unsteady, or is not as fast as when profiled."""
    spread, moved = constants.spread, 0.0
    if measured_now:
        probes = [joined.probe_us(threads) for _ in range(3)]
        spread = max(spread, max(probes) / min(probes) - 1)
        moved = abs(sorted(probes)[1] / constants.probe_us - 1) if constants.probe_us else 0.0
    if spread > NOISY:
        notes.append(f"noisy machine: repetitions of one measurement are {spread:.0%} apart; the interval is wider")
    if moved > NOISY:
        notes.append(f"this machine is {moved:.0%} off the speed that was profiled; the interval is wider")
    return max((value for value in (spread, moved) if value > NOISY), default=0.0)


def _save(table: Table, notes: list[str]) -> None:
    try:
        table.save()
    except OutputError as error:
        notes.append(f"the table was not kept: {error}")
