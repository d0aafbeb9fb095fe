"""Post-training INT8 and FP8: small numbers where the runtime has kernels for them, float where they cost the score."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import fx
from torch._ops import OpOverload

from edgecompile.errors import PassError, SpecError, near
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes import _float8
from edgecompile.passes._bias import correct_bias
from edgecompile.passes._calibrate import CORRECTED_ON, Recipe, calibrated, leading, small
from edgecompile.passes._placement import Placement, matcher, place
from edgecompile.passes._sensitivity import noise_ranking
from edgecompile.passes._smooth import smooth
from edgecompile.passes.fold_bn import FoldBn, scale_and_shift
from edgecompile.program import Program
from edgecompile.rewrite import add_weight, aten, layer, nodes
from edgecompile.rewrite import replace as replace_node
from edgecompile.target import QuantRule


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize weights and activations to INT8 with calibration data, as the target's kernels want them.

    Before: `%y = conv2d(%x, w: float32[16, 3, 3, 3])`

    After: `%q = quantize_per_tensor(%x, scale, zero, 0, 255, uint8)`, `%d = dequantize_per_tensor(%q, ...)`,
    `%v = dequantize_per_channel(w: int8[16, 3, 3, 3], ...)`, `%y = conv2d(%d, %v)`.

    `calibration` chooses the activation ranges: `min_max` and `percentile` (NNCF's estimators), `mse` and `entropy`
    (one histogram). `smooth` shifts outlier channels of what linear layers read into their weights, where their
    output gains by it (SmoothQuant). `activations` and `reduce_range` are `auto`: what the target's kernels
    multiply on this CPU without saturating. Layers that match a glob in `keep_float` stay float; `layers` overrides
    single ones, `(("stem.*", "float"), ("head.*", "per_tensor"))`: per_tensor is one weight scale for the layer,
    and the first glob that matches decides. Globs are matched against module paths, node names and origins. When a
    drop budget is set, the layers with the lowest signal-to-noise ratio become float until it holds, found by
    galloping and bisection.

    `weights=fp8` takes E4M3 numbers instead, for GPUs from Ada and Hopper on: the layers with weights read their
    inputs in FP8 at one scale, the largest magnitude over 448, and write floats. It has no zero points, no ranges
    other than `min_max` and no smoothing: the steps between its numbers grow with them.

    Refuses: a target without integer kernels, or without FP8 where that is asked for, no calibration data, a program
    without a layer that can be quantized, a glob that matches nothing.
    """

    name: ClassVar[str] = "quantize"
    needs_calib: ClassVar[bool] = True
    integers: ClassVar[bool] = True

    weights: Literal["int8", "fp8"] = "int8"
    activations: Literal["auto", "u8", "s8"] = "auto"
    calibration: Literal["min_max", "percentile", "mse", "entropy"] = "min_max"
    reduce_range: Literal["auto", "yes", "no"] = "auto"
    bias_correction: bool = True
    smooth: bool = True
    samples: int = 300
    keep_float: tuple[str, ...] = ()
    layers: tuple[tuple[str, Literal["float", "per_tensor"]], ...] = ()

    def __post_init__(self) -> None:
        if self.weights == "fp8":
            wrong = [
                f"calibration={self.calibration}" if self.calibration != "min_max" else "",
                f"activations={self.activations}" if self.activations != "auto" else "",
                f"reduce_range={self.reduce_range}" if self.reduce_range != "auto" else "",
            ]
            if wrong := list(filter(None, wrong)):
                raise SpecError(f"quantize: {', '.join(wrong)} is about integers: leave it out with weights=fp8")

    def run(self, program: Program, ctx: Context) -> Program:
        """The quantized program; see the class."""
        table = self._table(ctx)
        if ctx.calib is None:
            raise PassError("quantize: needs calibration data: give --calib with images, an .npz or module:function")
        recipe = self._recipe(ctx)
        program = _folded(program, ctx)
        self._check_globs(program, table)
        keep = self._keep()
        first = place(program, table, keep)
        if not first.weights:
            raise PassError(
                "quantize: no layer of this program has an integer kernel on the target; leave the pass out"
            )
        batches = [b.inputs for b in ctx.calib.take(self.samples)]
        batches = small(batches) if program.batch is None else batches
        ctx.stats["calibration_samples"] = sum(int(b[0].shape[0]) for b in batches if b)
        float8 = self.weights == "fp8"
        if self.smooth and not float8:
            ctx.stats["smoothed"] = smooth(program, first, leading(batches, 64))

        def attempt(floats: frozenset[str]) -> tuple[Program, Placement]:
            placement = place(program, table, lambda node: keep(node) or node.name in floats)
            one_scale = frozenset(n.name for n in placement.weights if self._override(n) == "per_tensor")
            if float8:
                made = _float8.calibrated(program, placement, batches, one_scale)
                if self.bias_correction:
                    correct_bias(program, made, placement, leading(batches, CORRECTED_ON))
                return made, placement
            return calibrated(program, placement, batches, recipe, one_scale), placement

        quantized, placement = attempt(frozenset())
        if ctx.max_drop is not None and ctx.drop is not None:
            quantized, placement = _within(program, quantized, placement, attempt, ctx, batches[0])
        ctx.stats["quantized_layers"] = len(placement.weights)
        ctx.stats["float_layers"] = len(placement.left)
        for node, why in placement.left.items():
            ctx.note(f"{layer(node)} stays float: {why}")
        if wide := placement.wide:
            more = f" and {len(wide) - 1} more stay" if len(wide) > 1 else " stays"
            ctx.note(f"{wide[0].name} ({layer(wide[0])}){more} float: the target's integers have fewer axes")
        if float8:
            ctx.note("inputs of layers and weights in FP8 (E4M3), a weight scale per channel")
            return quantized
        here = ctx.device is None or ctx.device.measured_here
        own = ctx.target is not None and ctx.target.activations == "s8"
        if here and recipe.activation == "s8" and not own and platform.machine() in ("x86_64", "AMD64"):
            ctx.note("signed activations: ONNX Runtime leaves many convolutions in float behind Q/DQ on x86; use u8")
        ctx.note(
            f"activations {recipe.activation}, weights int8 per channel"
            + (" at reduced range" if recipe.reduce_range else "")
        )
        return quantized

    def _table(self, ctx: Context) -> Mapping[OpOverload, QuantRule]:
        table = ctx.target.quantizable() if ctx.target is not None else {}
        if not table:
            raise PassError("quantize: the target has no integer kernels; leave the pass out")
        if self.weights == "int8":
            return table
        assert ctx.target is not None
        if "fp8" not in ctx.target.dtypes:
            raise PassError(
                f"quantize: weights=fp8: {ctx.target.name} has no FP8 kernels here: "
                "tensorrt(sm=89), sm=90 and sm=120 have, or take int8"
            )
        return _float8.kernels(table)

    def _override(self, node: fx.Node) -> str | None:
        return next((what for glob, what in self.layers if matcher((glob,))(node)), None)

    def _keep(self) -> Callable[[fx.Node], bool]:
        kept = matcher(self.keep_float)
        return lambda node: kept(node) or self._override(node) == "float"

    def _check_globs(self, program: Program, table: Mapping[OpOverload, QuantRule]) -> None:
        nodes = [n for n in program.graph.graph.nodes if n.op == "call_function"]
        globs = [("keep_float", g) for g in self.keep_float] + [("layers", g) for g, _ in self.layers]
        for option, glob in globs:
            if not any(map(matcher((glob,)), nodes)):
                known = {layer(n) for n in place(program, table, lambda node: False).weights}
                raise PassError(f"quantize: {option}: {glob!r} matches no layer{near(glob, known)}")

    def _recipe(self, ctx: Context) -> Recipe:
        from edgecompile.measure import machine

        flags = machine()["flags"]
        assert isinstance(flags, (list, tuple))
        here = ctx.device is None or ctx.device.measured_here
        exact = not here or any(f in flags for f in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"))
        usual = ctx.target.activations if ctx.target is not None else "u8"
        activation = usual if self.activations == "auto" else self.activations
        # seven-bit weights cannot overflow a sum of two products in 16 bits, whatever the activations are
        saturates = not exact and (ctx.target is None or ctx.target.saturates)
        reduce_range = saturates if self.reduce_range == "auto" else self.reduce_range == "yes"
        return Recipe(activation, self.calibration, reduce_range, self.bias_correction)


def _folded(program: Program, ctx: Context) -> Program:
    """The program without batch norms behind convolutions, which NNCF and torchao would fold unseen, tied weights too.

    One that does not fold exactly becomes the product and the sum that it is.
    """
    program = FoldBn().run(program, ctx)
    for norm in nodes(program, aten.batch_norm.default):
        before = norm.args[0]
        if not isinstance(before, fx.Node) or before.target not in (aten.conv1d.default, aten.conv2d.default):
            continue
        pair = scale_and_shift(program, norm)
        if pair is None:
            raise PassError(f"quantize: {layer(norm)} takes its statistics from the batch; leave the pass out")
        value: fx.Node = before
        for op, constant, word in zip((aten.mul.Tensor, aten.add.Tensor), pair, ("scale", "shift"), strict=True):
            column = constant.float().reshape(-1, *[1] * (norm.meta["val"].dim() - 2))
            stored = add_weight(program, f"{layer(norm)}.{word}", column, norm)
            with program.graph.graph.inserting_before(norm):
                value = program.graph.graph.call_function(op, (value, stored))
            value.meta = dict(norm.meta)
        replace_node(program, norm, value)
    return program


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
