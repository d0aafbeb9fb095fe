"""Zero padding in the exported ONNX graph, folded into the convolutions that read it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from edgecompile.targets._onnx_graph import Graph


def fold_pads(model: onnx.ModelProto) -> int:
    """Zero padding in front of convolutions becomes their own, on both sides of Q/DQ too; returns how many.

    ONNX convolutions may pad each side differently, which torch's cannot: the exact passes leave such a pad. Zero is
    the zero point exactly, so padding before or after quantization is the same.
    """
    graph = Graph(model)
    count = 0
    for pad in list(graph.proto.node):
        amounts = _zero_pad(graph, pad) if pad.op_type == "Pad" else None
        if amounts is None:
            continue
        quantize, convs = _padded_convs(graph, pad)
        if not convs:
            continue
        half = len(amounts) // 2
        for conv in convs:
            attributes = {a.name: a for a in conv.attribute}
            own = list(attributes["pads"].ints) if "pads" in attributes else [0] * (2 * (half - 2))
            added = [*amounts[2:half], *amounts[half + 2 :]]
            kept = [a for a in conv.attribute if a.name != "pads"]
            pads = helper.make_attribute("pads", [a + b for a, b in zip(own, added, strict=True)])
            kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
            del conv.attribute[:]
            conv.attribute.extend([*kept, pads])
            if quantize is None:
                conv.input[0] = pad.input[0]
        if quantize is not None:
            quantize.input[0] = pad.input[0]
        count += 1
    graph.finish()
    return count


def _zero_pad(graph: Graph, pad: onnx.NodeProto) -> list[int] | None:
    """The amounts of a constant zero pad over spatial axes alone, else None."""
    mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
    amounts = graph.value(pad.input[1]) if len(pad.input) > 1 else None
    if mode != b"constant" or amounts is None or (len(pad.input) > 3 and pad.input[3]):
        return None
    filled = graph.value(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    if filled is None or np.any(filled != 0) or np.any(amounts < 0):
        return None
    half = len(amounts) // 2
    return [int(a) for a in amounts] if not np.any(amounts[[0, 1, half, half + 1]]) else None


def _padded_convs(graph: Graph, pad: onnx.NodeProto) -> tuple[onnx.NodeProto | None, list[onnx.NodeProto]]:
    """The convolutions that read a pad, directly or behind one quantization; none when anything else does."""
    users = graph.consumers[pad.output[0]]
    quantize = users[0] if len(users) == 1 and users[0].op_type == "QuantizeLinear" else None
    if quantize is not None:
        users = [u for d in graph.consumers[quantize.output[0]] for u in graph.consumers[d.output[0]]]
    plain = pad.output[0] not in graph.outputs and all(
        u.op_type == "Conv" and not any(a.name == "auto_pad" and a.s not in (b"", b"NOTSET") for a in u.attribute)
        for u in users
    )
    return quantize, users if plain else []
