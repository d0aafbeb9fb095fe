"""The text form of a program: one line a node, for reading, comparing and golden tests; never parsed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from edgecompile.program.core import Program


def text_form(program: Program) -> str:
    """One line a node, weights inline with their types; stable from capture to capture."""
    symbols = program.symbols()
    graph = program.graph.graph
    weights = {n: f"{n.target}: {type_text(n.meta.get('val'), symbols)}" for n in graph.nodes if n.op == "get_attr"}

    def show(value: Any) -> str:
        if isinstance(value, fx.Node):
            return weights.get(value, f"%{value.name}")
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(show(v) for v in value) + "]"
        return str(value)

    lines = ["program(" + ", ".join(i for i in program.interface if not i.startswith("->")) + ")"]
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        args = [show(a) for a in node.args] + [f"{k}={show(v)}" for k, v in node.kwargs.items()]
        kind = type_text(node.meta.get("val"), symbols)
        lines.append(f"  %{node.name} = {op_name(node)}({', '.join(args)}) : {kind}")
    returned = zip(program.output_names, program.outputs(), strict=True)
    lines.append("  return " + ", ".join(f"{name}={show(node)}" for name, node in returned))
    return "\n".join(lines)


def op_name(node: fx.Node) -> str:
    """`conv2d`, `add.Tensor`, `quantized_decomposed.quantize_per_tensor`: ATen's namespace and `.default` left out."""
    name = str(node.target).removeprefix("aten.").removesuffix(".default")
    return name if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "__name__", name)


def type_text(value: Any, symbols: Mapping[str, str]) -> str:
    """`float32[batch, 3, 224, 224]` for a tensor, a tuple of those for several, else the Python type's name."""
    if isinstance(value, Tensor):
        sizes = []
        for size in value.shape:
            text = str(size)
            for symbol, name in symbols.items():
                text = text.replace(symbol, name)
            sizes.append(text)
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(sizes)}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(type_text(v, symbols) for v in value) + ")"
    return type(value).__name__
