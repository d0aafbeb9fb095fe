"""The artifact's outputs against the teacher's, and its layers where they drift or the accuracy budget is missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from edgecompile import errors
from edgecompile.building.tapped import second_build
from edgecompile.building.workshop import Built, Workshop
from edgecompile.errors import TargetError
from edgecompile.pass_manager import Step
from edgecompile.program import Program
from edgecompile.report import LayerDrift, Verify
from edgecompile.teacher import Teacher
from edgecompile.verify import DRIFT_DB, first_drift, layer_drift, output_errors

_KEPT_LAYERS = 200


def verified(
    teacher: Teacher,
    shop: Workshop,
    program: Program,
    final: Built,
    batches: Sequence[tuple[Tensor, ...]],
    code: int,
    steps: Sequence[Step],
    said: list[str],
) -> Verify | None:
    """Errors over the evaluation data; layer by layer when the outputs drift or the accuracy budget is missed."""
    if final.found is None or shop.teacher is None:
        return None
    found = output_errors(final.found, shop.teacher)
    only_exact = all(all(p.exact for p in s.passes) for s in steps if s.kept and s.changed)
    limit = 60.0 if only_exact else DRIFT_DB
    drifts = found.snr_db is not None and not found.snr_db >= limit
    layers: list[tuple[str, float | None]] = []
    if (drifts or code == errors.ACCURACY) and final.run is not None:
        layers = _layers(teacher, shop, program, final, batches, said)
    rows = tuple(LayerDrift(name, db) for name, db in layers[:_KEPT_LAYERS])
    return Verify(found.samples, found.max_abs, found.mean_abs, found.snr_db, first_drift(layers, limit), rows)


def _layers(
    teacher: Teacher,
    shop: Workshop,
    program: Program,
    final: Built,
    batches: Sequence[tuple[Tensor, ...]],
    said: list[str],
) -> list[tuple[str, float | None]]:
    """Layer by layer, by what the artifact's own runtime shows, else by a second build; what fails there is told."""
    assert final.run is not None
    if (tap := getattr(shop.target, "tap", None)) is not None:
        tapped = replace(final.artifact, facts={**final.artifact.facts, "literal": final.stands_in})
        return layer_drift(teacher.program, program, lambda names, x: tap(tapped, names, x), final.run, batches)
    fixed = shop.fixed(program)
    try:
        with second_build(shop.target, fixed, shop.threads, shop.predict is None) as seen:
            return layer_drift(teacher.program, fixed, seen, final.run, batches)
    except TargetError as error:
        said.append(f"layers were not compared: {error}")
        return []
