"""Values at the layers of an artifact whose runtime shows none: from a second build, in which they are outputs."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, fx

from edgecompile.errors import TargetError
from edgecompile.program import Program
from edgecompile.target import Target, loaded
from edgecompile.verify import Tap

_ENDS = "edgecompile_tap_"


@contextmanager
def second_build(target: Target, program: Program, threads: int, here: bool) -> Iterator[Tap]:
    """A tap of what `target` makes of a program at a fixed batch.

    A layer whose result is rounded to integers is seen behind that rounding. Kernels that fuse several layers end at
    each that is seen: rounding differs from the artifact's by that, and a wrong layer is wrong in both. Raises
    `TargetError` where the second build fails.
    """
    with tempfile.TemporaryDirectory(prefix="edgecompile-tap-") as text:
        folder = Path(text)
        built: list[tuple[Any, list[str]]] = []

        def tap(names: Sequence[str], inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray[Any, Any]]:
            if not built:
                more, seen = with_outputs(program, names)
                run, _ = loaded(target, target.emit(more, folder, {}), threads, here)
                if run is None:
                    raise TargetError(f"{target.name}: nothing here runs it")
                built.append((run, seen))
            run, seen = built[0]
            values = run(inputs)[len(program.output_names) :]
            return {name: value.numpy() for name, value in zip(seen, values, strict=True)}

        yield tap


def with_outputs(program: Program, names: Sequence[str]) -> tuple[Program, list[str]]:
    """The program with the values of the named nodes behind its own outputs, and the names of those that it has."""
    own = program.clone()
    graph = own.graph.graph
    known = {n.name: n for n in graph.nodes if isinstance(n.meta.get("val"), Tensor)}
    returned = list(own.outputs())
    seen = {name: _rounded(known[name]) for name in names if name in known}
    seen = {name: node for name, node in seen.items() if node not in returned}
    last = {node: name for name, node in seen.items()}  # two layers may have one value
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    output.args = ((*returned, *last),)
    own.graph.recompile()
    ends = tuple(f"{_ENDS}{index}" for index in range(len(last)))
    return dataclasses.replace(own, output_names=(*own.output_names, *ends)), list(last.values())


def _rounded(node: fx.Node) -> fx.Node:
    """What a node's readers read: the dequantized value where nothing reads the node but its quantization."""
    (reader, *others) = node.users or (node,)
    if others or "quantize_per" not in str(reader.target) or "dequantize" in str(reader.target):
        return node
    return next((u for u in reader.users if "dequantize" in str(u.target)), node)
