"""ONNX recurrent layers: LSTM, GRU and RNN, their gates reordered into torch's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from edgecompile.models._onnx_values import Known, Node, Refusal, Value, ints

_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # where torch's gates sit among ONNX's
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
LONGEST = 64
"""Time steps that are unrolled where torch has no such layer (GRU with linear_before_reset=0)."""


def recurrent(
    n: Node,
    x: Tensor,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    peepholes: Value = None,
) -> tuple[Tensor, ...]:
    """Y `[T, D, B, H]`, Y_h and (LSTM) Y_c `[D, B, H]`; with `layout` 1 the batch comes first."""
    first = bool(n.get("layout", 0))
    x = x.transpose(0, 1) if first else x
    h0, c0 = ((v.transpose(0, 1) if first and v is not None else v) for v in (h0, c0))
    relu = _check(n, x, lengths, peepholes)
    directions = 2 if n.get("direction", "forward") == "bidirectional" else 1
    backwards = n.get("direction", "forward") == "reverse"
    hidden = int(n.get("hidden_size"))
    start = torch.zeros(directions, x.shape[1], hidden, dtype=x.dtype)
    h0 = start if h0 is None else h0
    weights = _weights(n, w, r, b, directions, hidden)
    x = x.flip(0) if backwards else x
    match n.op:
        case "LSTM":
            cell = start if c0 is None else c0
            y, *state = torch.lstm(x, [h0, cell], weights, b is not None, 1, 0.0, False, directions == 2, False)
        case "GRU" if n.get("linear_before_reset", 0):
            y, *state = torch.gru(x, h0, weights, b is not None, 1, 0.0, False, directions == 2, False)
        case "GRU":
            y, *state = _gru(x, h0, weights, b is not None)
        case _:
            run = torch.rnn_relu if relu else torch.rnn_tanh
            y, *state = run(x, h0, weights, b is not None, 1, 0.0, False, directions == 2, False)
    y = y.flip(0) if backwards else y
    y = y.reshape(x.shape[0], x.shape[1], directions, hidden)
    if first:
        return y.transpose(0, 1), *(v.reshape(directions, -1, hidden).transpose(0, 1) for v in state)
    return y.transpose(1, 2), *(v.reshape(directions, -1, hidden) for v in state)


def _check(n: Node, x: Tensor, lengths: Value, peepholes: Value) -> bool:
    """Refuse the variants torch has no layer for; returns whether a plain RNN uses Relu."""
    if lengths is not None and any(v != x.shape[0] for v in ints(lengths, "sequence lengths")):
        raise Refusal("sequences of different lengths in one batch")
    if peepholes is not None and (not isinstance(peepholes, Known) or any(peepholes.numbers())):
        raise Refusal("peephole connections")
    if n.get("clip"):
        raise Refusal("clipped cells")
    if n.get("input_forget", 0):
        raise Refusal("coupled input and forget gates")
    given = n.get("activations") or _ACTIVATIONS[n.op]
    directions = len(given) // len(_ACTIVATIONS[n.op])
    relu = n.op == "RNN" and given == ["Relu"] * directions
    if given != _ACTIVATIONS[n.op] * directions and not relu:
        raise Refusal(f"activations {', '.join(given)}")
    return relu


def _weights(n: Node, w: Value, r: Value, b: Value, directions: int, hidden: int) -> list[Tensor]:
    order = _ORDER[n.op]

    def gates(value: Tensor) -> Tensor:
        parts = torch.split(value, hidden, 0)
        return torch.cat([parts[i] for i in order]).contiguous()

    half = len(order) * hidden
    flat: list[Tensor] = []
    for d in range(directions):
        end = "_reverse" if d else ""

        def part(value: Tensor, of: slice, d: int = d) -> Tensor:
            return gates(value[d, of])

        flat.append(n.folded(w, partial(part, of=slice(None)), suffix=end))
        flat.append(n.folded(r, partial(part, of=slice(None)), suffix=end))
        if b is not None:
            flat.append(n.folded(b, partial(part, of=slice(half)), suffix=f"_input{end}"))
            flat.append(n.folded(b, partial(part, of=slice(half, None)), suffix=f"_hidden{end}"))
    return flat


def _gru(x: Tensor, h0: Tensor, weights: Sequence[Tensor], biased: bool) -> tuple[Tensor, Tensor]:
    """A GRU whose reset gate acts before the hidden product, step by step."""
    steps = x.shape[0]
    if not isinstance(steps, int) or steps > LONGEST:
        raise Refusal(f"linear_before_reset=0 over more than {LONGEST} steps")
    each = 4 if biased else 2
    ys, ends = [], []
    for d in range(len(weights) // each):
        w, r, *biases = weights[d * each : (d + 1) * each]
        h, hidden = h0[d], h0.shape[2]
        wb, rb = biases if biased else (None, None)
        outs: list[Tensor] = []
        for t in reversed(range(steps)) if d else range(steps):
            gx = torch.nn.functional.linear(x[t], w, wb)
            gh = torch.nn.functional.linear(h, r[: 2 * hidden], None if rb is None else rb[: 2 * hidden])
            reset, update = torch.sigmoid(gx[:, : 2 * hidden] + gh).chunk(2, 1)
            tail = torch.nn.functional.linear(reset * h, r[2 * hidden :], None if rb is None else rb[2 * hidden :])
            h = (1 - update) * torch.tanh(gx[:, 2 * hidden :] + tail) + update * h
            outs.append(h)
        ys.append(torch.stack(outs[::-1] if d else outs))
        ends.append(h)
    return torch.cat(ys, 2), torch.stack(ends)
