"""One program in several runtimes of this machine, timed side by side: the fastest that is right is the result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgecompile.building.options import Budgets
from edgecompile.building.workshop import Built, Workshop
from edgecompile.errors import EdgeCompileError
from edgecompile.measure import median_ms, ratio, settle, verdict
from edgecompile.program import Program
from edgecompile.report import Decision
from edgecompile.target import Target
from edgecompile.verify import DRIFT_DB, output_errors

_SAME_DB = 60.0
"""Signal to noise, in dB, of two runtimes' outputs for one float program: what is below is not the same program.

Of a quantized one `DRIFT_DB`: a rounding that differs goes on through the layers.
"""


@dataclass(frozen=True)
class Winner:
    """The artifact that is the result, the workshop that made it, and what is to be said of the others."""

    shop: Workshop
    built: Built
    decisions: tuple[Decision, ...] = ()
    notes: tuple[str, ...] = ()


def contest(
    shop: Workshop,
    rivals: Sequence[Target],
    program: Program,
    first: Built,
    budgets: Budgets,
    inputs: tuple[Tensor, ...],
) -> Winner:
    """Emit the program for each rival too, and take a rival where it is faster than `first` and gives its outputs.

    A rival that is not installed, refuses the program, fails, or loses what the drop budget does not allow is a note.
    The choice is a recorded decision.
    """
    winner = Winner(shop, first)
    for rival in rivals:
        if first.call is None:
            return replace(winner, notes=(*winner.notes, f"{rival.name}: not tried: nothing is timed here"))
        other = replace(shop, target=rival, _made={})
        try:
            other.tell(f"building for {rival.name}", 0, 1)
            reasons = rival.refuse(shop.fixed(program))
            built = None if reasons else other.build(program)
        except EdgeCompileError as error:
            reasons, built = [str(error)], None
        if built is not None:
            limit = DRIFT_DB if any(w.dtype == torch.int8 for w in program.weights().values()) else _SAME_DB
            reasons = _unfit(other, built, winner.built, budgets, inputs, limit)
        if built is None or reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            winner = replace(winner, notes=(*winner.notes, f"{rival.name}: not in the running: {reasons[0]}{more}"))
            continue
        winner = _raced(winner, other, built)
    return winner


def contested(shop: Workshop, rivals: Sequence[Target], program: Program, of: Program) -> float:
    """What part of another program's latency one takes in the fastest of all runtimes: a recorded decision for each.

    A rival that is not installed, refuses the program or fails is not in the running; `contest` says why in the end.
    """
    found = shop.share(program, of)
    for rival in rivals:
        other = replace(shop, target=rival, _made={})
        other.tell(f"building for {rival.name}", 0, 1)
        with suppress(EdgeCompileError):
            if not rival.refuse(shop.fixed(program)):
                found = min(found, shop.share(program, of, other))
    return found


def _unfit(
    shop: Workshop, built: Built, first: Built, budgets: Budgets, inputs: tuple[Tensor, ...], least_db: float
) -> list[str]:
    """Why an artifact cannot be the result, however fast."""
    if built.run is None or built.call is None or first.run is None:
        return ["it does not run here"]
    found, wanted = ([tuple(t.detach().numpy() for t in run(inputs))] for run in (built.run, first.run))
    snr = output_errors(found, wanted).snr_db
    if snr is not None and not snr >= least_db:
        return [f"its outputs differ from {first.artifact.kind}'s: signal to noise {snr:.0f} dB"]
    if (budgets.size_bytes or budgets.size_percent) and built.size_bytes > first.size_bytes:
        return [f"there is a size budget, and it takes {built.size_bytes} bytes, not {first.size_bytes}"]
    drop, best = shop.drop(built), shop.drop(first)
    limit = budgets.drop_pp
    if drop is None or best is None or limit is None or drop.value_pp <= max(limit, best.value_pp):
        return []
    return [f"it loses {drop.value_pp:.2f} points, more than {limit:g}"]


def _raced(winner: Winner, other: Workshop, built: Built) -> Winner:
    """Both artifacts side by side, with more rounds while nobody can tell which is faster."""
    shop, first = winner.shop, winner.built
    assert first.call is not None
    assert built.call is not None
    old, new = first.artifact.kind, built.artifact.kind
    name = f"runtime:{first.digest[:12]}:{old}:{new}"
    samples, _ = settle(
        {old: first.call, new: built.call},
        lambda s: verdict(ratio(s[new], s[old])),
        rounds=16,
        cap=128 if shop.decided(name) is None else 16,
        seed=shop.seed,
        least=1,
        progress=lambda done, total: shop.tell("measuring", done, total),
    )
    speed = ratio(samples[new], samples[old])
    found = new if verdict(speed) == "faster" else old
    chosen = shop.decide(name, found)
    times = {kind: median_ms(samples[kind]).value for kind in (old, new)}
    said = ", ".join(f"{kind} {ms:.3g} ms" for kind, ms in times.items())
    why = f"{said}: {new} at {speed.value:.3f}x of {old} ({speed.low:.3f}-{speed.high:.3f})"
    if chosen != found:
        why = f"{why}; the recorded choice is replayed"
    sizes = {f"{b.artifact.kind}_bytes": b.size_bytes for b in (first, built)}
    row = Decision(name, chosen, why, {**{f"{k}_ms": ms for k, ms in times.items()}, **sizes})
    kept = replace(winner, shop=other, built=built) if chosen == new else winner
    return replace(kept, decisions=(*winner.decisions, row))
