"""ONNX control flow without control flow: branches computed both, loops of a known length unrolled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgecompile.models._onnx_block import Step
from edgecompile.models._onnx_values import Known, Refusal, Value, from_numbers, ints, numbers

if TYPE_CHECKING:
    from edgecompile.models._onnx_graph import Env, OnnxModule

LONGEST = 64
"""Iterations that are unrolled; longer loops are refused."""


def both_branches(module: OnnxModule, step: Step, condition: Tensor, env: Env) -> Sequence[Value]:
    """If on an input's value: both branches run, outputs are selected; types and shapes must agree."""
    pairs = zip(
        module.run_block(step.blocks["then_branch"], dict(env)),
        module.run_block(step.blocks["else_branch"], dict(env)),
        strict=True,
    )
    results: list[Value] = []
    for yes, no in pairs:
        if not all(isinstance(v, Tensor | Known) for v in (yes, no)):
            raise Refusal("a branch holds operators that cannot be imported")
        a, b = module.tensor(yes, buffer=True), module.tensor(no, buffer=True)
        if a.dtype != b.dtype or a.shape != b.shape:
            kinds = " and ".join(f"{str(v.dtype).removeprefix('torch.')}{list(v.shape)}" for v in (a, b))
            raise Refusal(f"its branches give {kinds}")
        results.append(torch.where(condition.reshape(()), a, b))
    return results


def loop(module: OnnxModule, step: Step, values: Sequence[Value], env: Env) -> Sequence[Value]:
    """Loop of a known, short trip count, unrolled; the condition must be known in every iteration."""
    body = step.blocks["body"]
    count, going, *carried = values
    trips = ints(count, "trip count")[0] if count is not None else LONGEST + 1
    running = bool(numbers(going, "condition")[0]) if going is not None else True
    scans: list[list[Value]] = [[] for _ in body.outputs[1 + len(carried) :]]
    state: list[Any] = list(carried)
    done = 0
    while running and done < trips:
        if done == LONGEST:
            raise Refusal(f"a loop of more than {LONGEST} iterations")
        scope = dict(env)
        scope.update(
            zip(
                body.inputs,
                [from_numbers(done, torch.int64), from_numbers(True, torch.bool), *state],
                strict=True,
            )
        )
        condition, *outputs = module.run_block(body, scope)
        state, rows = outputs[: len(carried)], outputs[len(carried) :]
        for found, row in zip(scans, rows, strict=True):
            found.append(row)
        _complete(outputs)
        running = bool(numbers(condition, "condition")[0])
        done += 1
    if any(not rows for rows in scans):
        raise Refusal("a loop that collects outputs and never runs")
    return [*state, *(torch.stack([module.tensor(r) for r in rows]) for rows in scans)]


def scan(module: OnnxModule, step: Step, values: Sequence[Value], env: Env) -> Sequence[Value]:
    """Scan over a short axis of fixed size, unrolled."""
    node, body = step.node, step.blocks["body"]
    if node.version < 9:
        raise Refusal("the batched form of opset 8")
    count = node.get("num_scan_inputs")
    state: list[Any] = list(values[: len(values) - count])
    sources = [module.tensor(v) for v in values[len(values) - count :]]
    outputs = len(body.outputs) - len(state)
    in_axes, out_axes = node.get("scan_input_axes", [0] * count), node.get("scan_output_axes", [0] * outputs)
    backwards = node.get("scan_input_directions", [0] * count)
    out_backwards = node.get("scan_output_directions", [0] * outputs)
    steps = sources[0].shape[in_axes[0]]
    if not isinstance(steps, int) or steps > LONGEST:
        raise Refusal(f"a scan of more than {LONGEST} iterations, or of a dynamic number")
    rows: list[list[Tensor]] = [[] for _ in range(outputs)]
    for i in range(steps):
        places = [steps - 1 - i if back else i for back in backwards]
        parts = [s.select(a, p) for s, a, p in zip(sources, in_axes, places, strict=True)]
        scope = dict(env)
        scope.update(zip(body.inputs, [*state, *parts], strict=True))
        found = module.run_block(body, scope)
        _complete(found)
        state = found[: len(state)]
        for row, value in zip(rows, found[len(state) :], strict=True):
            row.append(module.tensor(value))
    stacked = [torch.stack(r[::-1] if back else r, a) for r, a, back in zip(rows, out_axes, out_backwards, strict=True)]
    return [*state, *stacked]


def _complete(values: Sequence[Any]) -> None:
    if any(type(v) is object for v in values):
        raise Refusal("its body holds operators that cannot be imported")
