"""Post-training INT8: integers where the target's runtime has a kernel for them, float for what costs the score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from edgecompile.errors import PassError
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._calibrate import Recipe, calibrated
from edgecompile.passes._placement import Placement, matcher, place
from edgecompile.passes._sensitivity import noise_ranking
from edgecompile.program import Program
from edgecompile.rewrite import layer


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize weights and activations to INT8 with calibration data, as the target's kernels want them.

    Before: `%y = conv2d(%x, w: float32[16, 3, 3, 3])`

    After: `%q = quantize_per_tensor(%x, scale, zero, 0, 255, uint8)`, `%d = dequantize_per_tensor(%q, ...)`,
    `%v = dequantize_per_channel(w: int8[16, 3, 3, 3], ...)`, `%y = conv2d(%d, %v)`.

    `calibration` chooses the activation ranges: `min_max` and `percentile` (NNCF's estimators). `activations` and
    `reduce_range` are `auto`: what this CPU multiplies without saturating. Layers
    that match a glob in `keep_float` stay float; when a drop budget is set, the layers with the lowest
    signal-to-noise ratio follow until the budget holds, found by galloping and bisection.

    Refuses: a target without integer kernels, no calibration data, a program without a layer that can be quantized.
    """

    name: ClassVar[str] = "quantize"
    needs_calib: ClassVar[bool] = True

    weights: Literal["int8"] = "int8"
    activations: Literal["auto", "u8", "s8"] = "auto"
    calibration: Literal["min_max", "percentile"] = "min_max"
    reduce_range: Literal["auto", "yes", "no"] = "auto"
    bias_correction: bool = True
    samples: int = 300
    keep_float: tuple[str, ...] = ()

    def run(self, program: Program, ctx: Context) -> Program:
        """The quantized program; see the class."""
        table = ctx.target.quantizable() if ctx.target is not None else {}
        if not table:
            raise PassError("quantize: the target has no integer kernels; leave the pass out")
        if ctx.calib is None:
            raise PassError("quantize: needs calibration data: give --calib with images, an .npz or module:function")
        recipe = self._recipe()
        keep = matcher(self.keep_float)
        first = place(program, table, keep)
        if not first.weights:
            raise PassError(
                "quantize: no layer of this program has an integer kernel on the target; leave the pass out"
            )
        batches = [b.inputs for b in ctx.calib.take(self.samples)]
        ctx.stats["calibration_samples"] = sum(int(b[0].shape[0]) for b in batches if b)

        def attempt(floats: frozenset[str]) -> tuple[Program, Placement]:
            placement = place(program, table, lambda node: keep(node) or node.name in floats)
            return calibrated(program, placement, batches, recipe), placement

        quantized, placement = attempt(frozenset())
        if ctx.max_drop is not None and ctx.drop is not None:
            quantized, placement = _within(program, quantized, placement, attempt, ctx, batches[0])
        ctx.stats["quantized_layers"] = len(placement.weights)
        ctx.stats["float_layers"] = len(placement.left)
        for node, why in placement.left.items():
            ctx.note(f"{layer(node)} stays float: {why}")
        ctx.note(
            f"activations {recipe.activation}, weights int8 per channel"
            + (" at reduced range" if recipe.reduce_range else "")
        )
        return quantized

    def _recipe(self) -> Recipe:
        from edgecompile.measure import machine

        flags = machine()["flags"]
        assert isinstance(flags, (list, tuple))
        exact = any(f in flags for f in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"))
        activation = "u8" if self.activations == "auto" else self.activations
        # without VNNI, ONNX Runtime multiplies u8 by s8 in saturating 16-bit sums: seven-bit weights cannot overflow
        saturates = not exact and activation == "u8"
        reduce_range = saturates if self.reduce_range == "auto" else self.reduce_range == "yes"
        return Recipe(activation, self.calibration, reduce_range, self.bias_correction)


Attempt = Callable[[frozenset[str]], tuple[Program, Placement]]


def _within(
    program: Program,
    quantized: Program,
    placement: Placement,
    attempt: Attempt,
    ctx: Context,
    batch: tuple[object, ...],
) -> tuple[Program, Placement]:
    """Keep the noisiest layers in float until the drop budget holds: gallop 1, 2, 4, ..., then bisect."""
    assert ctx.drop is not None
    assert ctx.max_drop is not None
    drop, trials = ctx.drop(quantized), 1
    if drop <= ctx.max_drop:
        return quantized, placement
    ranking = noise_ranking(program, quantized, placement, batch)
    low, high, best = 0, 1, (drop, quantized, placement)
    found: tuple[Program, Placement] | None = None
    while found is None and low < len(ranking):
        high = min(high, len(ranking))
        candidate, where = attempt(frozenset(ranking[:high]))
        drop, trials = ctx.drop(candidate), trials + 1
        best = min(best, (drop, candidate, where), key=lambda b: b[0])
        if drop <= ctx.max_drop:
            found = candidate, where
        else:
            low, high = high, high * 2
    while found is not None and high - low > 1:
        middle = (low + high) // 2
        candidate, where = attempt(frozenset(ranking[:middle]))
        drop, trials = ctx.drop(candidate), trials + 1
        if drop <= ctx.max_drop:
            high, found = middle, (candidate, where)
        else:
            low = middle
    ctx.stats["search_trials"] = trials
    if found is None:
        ctx.note(f"no choice of float layers stays within {ctx.max_drop:g} points; the best loses {best[0]:.2f}")
        return best[1], best[2]
    program_found, where = found
    left = {
        n: ("its noise costs the drop budget" if n.name in ranking[:high] else why) for n, why in where.left.items()
    }
    return program_found, replace(where, left=left)
