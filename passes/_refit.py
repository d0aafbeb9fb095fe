"""Least squares for a pruned program: each layer gives what it gave before as well as its new inputs allow.

The program and its pruned copy run side by side, node by node, over calibration data. Where a linear layer or a
convolution comes, its weights in the copy are solved so that the copy's inputs X' give the program's outputs Y, with
some damping towards the weights that it had: `W' = (Y X'^T + d W) (X' X'^T + d I)^-1`. With the program's own inputs
that is what all updates of optimal brain surgeon add up to (ZipLM); with the copy's, later layers mend what earlier
ones lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from edgecompile.axes import Coupling
from edgecompile.axes.dims import Index, kept
from edgecompile.data import Dataset
from edgecompile.passes._least_squares import DAMPS, QUICK, Rows, Sums, ridge
from edgecompile.passes._relevant import Relevant
from edgecompile.program import Program
from edgecompile.rewrite import argument, aten, layer, set_weight, weight, weight_readers

_LAYERS = (aten.linear.default, aten.conv2d.default, aten.conv1d.default)
_CHUNK, _POSITIONS = 8, 2048
"""Samples at a time, and how many of their positions are looked at, drawn evenly."""
_LARGEST = 5000
"""Inputs of a layer (channels times the kernel's places) above which it is left as it is: the cost is their cube."""
_BYTES = 200e6
"""The largest tensor that all samples together may have: several are alive at a time, twice."""


@dataclass(frozen=True)
class Refitted:
    """How many layers were solved, which were left as they are, and how many samples memory allowed."""

    solved: int
    left: tuple[str, ...]
    samples: int


def refit(
    program: Program,
    smaller: Program,
    copies: Mapping[fx.Node, fx.Node],
    coupling: Coupling,
    keep: Mapping[str, Sequence[int]],
    data: Dataset,
    seed: int,
    counts: Relevant,
    quick: bool = False,
) -> Refitted:
    """Change the weights of the smaller program, which takes any batch, in place.

    `counts` says which positions count (`relevant`). Left as they are: layers whose weight others read too,
    grouped convolutions, and those that are too large. `quick` tries one damping, where programs are compared.
    """
    damps = QUICK if quick else DAMPS
    inputs = _samples(program, data)
    chosen = coupling.chosen(keep)
    readers = weight_readers(smaller)
    generator = torch.Generator().manual_seed(seed)
    first, second = _Side(program, inputs), _Side(smaller, inputs)
    rest = iter(smaller.graph.graph.nodes)
    solved, left = 0, []
    with torch.no_grad():
        for node in program.graph.graph.nodes:
            if node.op == "output":
                break
            first.run_one(node)
            if node not in copies:  # of a branch that was left out
                first.forget(node)
                continue
            while (other := next(rest)) is not copies[node]:  # what shrinking added
                second.run_one(other)
            if fits(smaller, other, readers):
                index = kept(coupling.weights[str(argument(node, "weight").target)][0], chosen)
                _solve(smaller, other, second.env, first.env[node], index, generator, counts.get(node), damps)
                solved += 1
            elif other.target in _LAYERS:
                left.append(layer(node))
            second.run_one(other)
            first.forget(node)
            second.forget(other)
    return Refitted(solved, tuple(left), len(inputs[0]))


class _Side(fx.Interpreter):
    """A program that is run one node at a time and forgets what nobody reads any more."""

    def __init__(self, program: Program, inputs: Sequence[Tensor]) -> None:
        super().__init__(program.graph)
        self.args_iter = iter(inputs)
        last = {source: node for node in program.graph.graph.nodes for source in node.all_input_nodes}
        self._ends: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            self._ends.setdefault(node, []).append(source)

    def run_one(self, node: fx.Node) -> None:
        self.env[node] = self.run_node(node)

    def forget(self, node: fx.Node) -> None:
        for old in self._ends.get(node, ()):
            self.env.pop(old, None)


def _samples(program: Program, data: Dataset) -> list[Tensor]:
    """The inputs of all samples that memory allows, one tensor an input."""
    sizes = [_bytes(n.meta.get("val")) for n in program.graph.graph.nodes if n.op != "get_attr"]
    most = max(1, int(_BYTES / max(1, *sizes) * program.inputs[0].shape[0]))
    found = list(zip(*(b.inputs for b in data.take(most)), strict=True))
    return [torch.cat(list(parts)) for parts in found]


def _bytes(value: Any) -> int:
    """Bytes of a tensor at the example batch."""
    if not isinstance(value, Tensor):
        return 0
    count = value.element_size()
    for size in value.shape:
        count *= size if isinstance(size, int) else int(size.node.hint)
    return count


def fits(program: Program, node: fx.Node, readers: Mapping[str, Sequence[fx.Node]]) -> bool:
    """Whether a node is a layer that can be solved."""
    if node.target not in _LAYERS:
        return False
    own = [n for n in (argument(node, "weight"), argument(node, "bias")) if n is not None]
    if any(n.op != "get_attr" or len(readers[str(n.target)]) > 1 for n in own):
        return False
    if node.target is not aten.linear.default and int(argument(node, "groups")) != 1:
        return False
    value = weight(program, own[0])
    return value is not None and value.is_floating_point() and value[0].numel() <= _LARGEST


def _solve(
    program: Program,
    node: fx.Node,
    env: dict[fx.Node, Any],
    output: Tensor,
    index: Index,
    generator: torch.Generator,
    counts: Tensor | None,
    damps: Sequence[float],
) -> None:
    """New weights (and bias) for a layer from its inputs now and its outputs of before."""
    read, bias_node = argument(node, "weight"), argument(node, "bias")
    value = weight(program, read)
    bias = weight(program, bias_node)
    assert value is not None
    old = value.double().reshape(len(value), -1)
    if bias is not None:
        old = torch.cat([old, bias.double()[:, None]], 1)
    x = env[argument(node, "input")]
    halves: list[Sums | Rows] = []
    chunks = -(-len(x) // _CHUNK)
    for number, start in enumerate(range(0, len(x), _CHUNK)):
        samples = slice(start, min(len(x), start + _CHUNK))
        both = [rows_of(node, x[samples], value.shape), _outputs(node, output[samples], index)]
        rows, wanted = drawn(*of_those(both, counts, samples), generator=generator)
        if not halves:
            halves = [Rows(), Rows()] if len(rows) * chunks < old.shape[1] else [Sums(), Sums()]
        halves[number % 2].add(F.pad(rows, (0, 1), value=1.0) if bias is not None else rows, wanted)
    new = ridge(halves, old, damps)
    if bias is not None:
        env[bias_node] = new[:, -1].to(bias.dtype)
        set_weight(program, bias_node, env[bias_node])
        new = new[:, :-1]
    env[read] = new.reshape(value.shape).to(value.dtype)  # it was read before
    set_weight(program, read, env[read])


def of_those(rows: Sequence[Tensor], counts: Tensor | None, samples: slice) -> Sequence[Tensor]:
    """The positions of these samples that count."""
    return rows if counts is None else [one[counts[samples].flatten()] for one in rows]


def drawn(*rows: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
    """Some of the positions of a chunk where there are many, the same of each."""
    if len(rows[0]) <= _POSITIONS:
        return rows
    chosen = torch.randperm(len(rows[0]), generator=generator)[:_POSITIONS]
    return [one[chosen] for one in rows]


def rows_of(node: fx.Node, x: Tensor, shape: Sequence[int]) -> Tensor:
    """What a layer multiplies its weights with: [positions, inputs]."""
    if node.target is aten.linear.default:
        return x.reshape(-1, x.shape[-1])
    padding, stride, dilation = (list(argument(node, name)) for name in ("padding", "stride", "dilation"))
    kernel = [int(s) for s in shape[2:]]
    if len(kernel) == 1:
        x, kernel = x.unsqueeze(2), [1, *kernel]
        padding, stride, dilation = [0, padding[-1]], [1, stride[-1]], [1, dilation[-1]]
    pairs = [tuple((p * 2)[:2]) for p in (kernel, dilation, padding, stride)]
    return F.unfold(x, *pairs).transpose(1, 2).reshape(-1, x.shape[1] * kernel[0] * kernel[1])


def _outputs(node: fx.Node, y: Tensor, index: Index) -> Tensor:
    """A layer's outputs for the channels that are kept: [positions, outputs]."""
    if node.target is aten.linear.default:
        return y.reshape(-1, y.shape[-1])[:, index]
    return y.flatten(2).transpose(1, 2).reshape(-1, y.shape[1])[:, index]
