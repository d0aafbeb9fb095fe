"""reparameterize: parallel convolutions that are added become one convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx
from torch.nn import functional

from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._affine import Affine, Readers, affine, representable, shared, store, title
from edgecompile.passes.fold_bn import scale_and_shift
from edgecompile.program import Program
from edgecompile.rewrite import argument, call, only_user, replace, same_type, shape, weight_readers

aten = torch.ops.aten


@dataclass(frozen=True)
class Reparameterize(Pass):
    """Merge branches of one input that are added: convolutions of several kernels, batch norm, identity.

    before:
        %conv2d = conv2d(%x, a.weight: float32[8, 8, 3, 3], a.bias, [1, 1], [1, 1])
        %conv2d_1 = conv2d(%x, b.weight: float32[8, 8, 1, 1], b.bias)
        %add = add.Tensor(%conv2d, %conv2d_1)
        %add_1 = add.Tensor(%add, %x)
    after:
        %conv2d = conv2d(%x, a.weight: float32[8, 8, 3, 3], a.bias, [1, 1], [1, 1])

    Smaller kernels are padded with zeros around their centre, the identity is a kernel with a single one
    (RepVGG, Ding et al. 2021; MobileOne, Vasu et al. 2023); linear layers are added. Run `fold_bn` first; a
    batch norm straight on the input is a branch of its own. Branches that do not fit stay in the sum.

    Kept, with a note: weights that other layers read too, strides, dilations, groups or centres that differ,
    kernels whose union needs more MACs than they do (1x7 and 7x1), weights that would no longer be finite.
    """

    name: ClassVar[str] = "reparameterize"
    exact: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        readers = weight_readers(program)
        for root in list(program.graph.graph.nodes):
            if not _is_sum(root) or any(_is_sum(user) and _inside(root, user) for user in root.users):
                continue
            leaves, sums = _tree(root)
            merged = leaves
            for source in dict.fromkeys(found.source for leaf in leaves if (found := affine(program, leaf))):
                merged = _merge(program, merged, source, readers, ctx)
            if len(merged) < len(leaves):
                _rebuild(program, root, merged, [*sums, *leaves])
        return program


@dataclass(frozen=True)
class _Branch:
    node: fx.Node
    conv: Affine | None  # None: `scale * source + shift`
    scale: Tensor | None = None
    shift: Tensor | None = None


def _is_sum(node: fx.Node) -> bool:
    plain = node.target is aten.add.Tensor and node.kwargs.get("alpha", 1) == 1
    return bool(plain and all(same_type(node, a) for a in node.args))


def _inside(inner: fx.Node, outer: fx.Node) -> bool:
    """Whether one sum is a part of another: nobody else reads it."""
    return only_user(inner) is outer and outer.args.count(inner) == 1


def _tree(root: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """What a tree of sums adds up, first to last, as often as it is added, and the inner sums."""
    leaves: list[fx.Node] = []
    sums: list[fx.Node] = []
    stack = list(reversed(root.all_input_nodes if len(root.all_input_nodes) == 2 else root.all_input_nodes * 2))
    while stack:
        node = stack.pop()
        outer = only_user(node)
        if _is_sum(node) and outer is not None and (outer is root or outer in sums) and _inside(node, outer):
            sums.append(node)
            stack += [a for a in reversed(node.args) if isinstance(a, fx.Node)]
        else:
            leaves.append(node)
    return leaves, sums


def _merge(program: Program, leaves: list[fx.Node], source: fx.Node, readers: Readers, ctx: Context) -> list[fx.Node]:
    """Merge the leaves that read `source` into the one with the largest kernel; returns what is left."""
    branches = [
        b for leaf in leaves if leaves.count(leaf) == 1 or leaf is source if (b := _branch(program, leaf, source))
    ]
    convs = [b.conv for b in branches if b.conv is not None]
    if not convs or len(branches) < 2:
        return leaves
    main = max(convs, key=lambda found: math.prod(found.kernel))
    fitting: list[_Branch] = []
    for each in branches:
        reason = shared(main, readers) or (None if each.node is main.node else _misfit(each, main, readers))
        if reason is None:
            fitting.append(each)
        else:
            ctx.note(f"{title(each.node)} not merged with {main.node.name}: {reason}")
    if len(fitting) < 2:
        return leaves
    matrix, bias = torch.zeros_like(main.matrix(program)), torch.zeros_like(main.shift(program))
    for each in fitting:
        part, offset = _as_kernel(program, each, main)
        matrix, bias = matrix + part, bias + offset
    if not representable(matrix, bias, main.node.meta["val"].dtype):
        ctx.note(f"{title(main.node)} kept: its merged weights would not be finite")
        return leaves
    store(program, main, matrix, bias)
    ctx.count("merged", len(fitting) - 1)
    gone = {b.node for b in fitting} - {main.node}
    return [leaf for leaf in leaves if leaf not in gone]


def _rebuild(program: Program, root: fx.Node, leaves: list[fx.Node], old: list[fx.Node]) -> None:
    """A new chain of sums in place of `root`; the old sums and branches that nobody reads any more go."""
    total = leaves[0]
    for leaf in leaves[1:]:
        total = call(program, aten.add.Tensor, (total, leaf), root)
    replace(program, root, total)
    for node in sorted(set(old), reverse=True):
        if not node.users and node.op == "call_function":
            program.graph.graph.erase_node(node)


def _branch(program: Program, node: fx.Node, source: fx.Node) -> _Branch | None:
    if node is source:
        return _Branch(node, None)
    if only_user(node) is None:
        return None
    if node.target is aten.batch_norm.default and argument(node, "input") is source:
        pair = scale_and_shift(program, node)
        return None if pair is None else _Branch(node, None, *pair)
    found = affine(program, node)
    return _Branch(node, found) if found is not None and found.source is source else None


def _misfit(branch: _Branch, target: Affine, readers: Readers) -> str | None:
    """Why a branch is not a part of the target's kernel."""
    ones = (1,) * target.spatial
    if target.transposed:
        return f"{target.node.name} is transposed"
    found = branch.conv
    if found is None:
        if branch.scale is not None and not target.spatial:
            return "its channels are not those of a linear layer" if len(shape(target.node) or ()) != 2 else None
        if target.channels_in != target.channels_out or (target.spatial and target.ints("stride") != ones):
            return f"{target.node.name} does not keep places and channels"
        kernel, padding, dilation = (
            ones,
            (0,) * target.spatial,
            target.ints("dilation") if target.spatial else (),
        )
    else:
        if reason := shared(found, readers):
            return reason
        if found.spatial != target.spatial or found.transposed or found.groups != target.groups:
            return "they are different operators or have different groups"
        if target.spatial and found.ints("stride") != target.ints("stride"):
            return "their strides differ"
        kernel, padding = found.kernel, found.padding
        dilation = found.ints("dilation") if target.spatial else ()
    own = (target.kernel, target.padding, target.ints("dilation") if target.spatial else ())
    for k, p, d, large, pad, spread in zip(kernel, padding, dilation, *own, strict=True):
        if k > large:
            return "neither kernel holds the other, and their union would need more MACs"
        if k > 1 and d != spread:
            return "their dilations differ"
        if (large - k) % 2 or (large - k) // 2 * spread != pad - p:
            return "their centres differ"
    return None


def _as_kernel(program: Program, branch: _Branch, target: Affine) -> tuple[Tensor, Tensor]:
    """A branch as float64 weight and bias of the target's shape."""
    if branch.conv is not None:
        matrix, bias = branch.conv.matrix(program), branch.conv.shift(program)
        kernel = branch.conv.kernel
    else:
        channels, per_group = target.channels_out, target.channels_in // target.groups
        scale = torch.ones(channels, dtype=torch.float64) if branch.scale is None else branch.scale
        bias = torch.zeros(channels, dtype=torch.float64) if branch.shift is None else branch.shift
        rows = torch.arange(channels)
        matrix = torch.zeros(channels, per_group, dtype=torch.float64)
        matrix[rows, rows % per_group] = scale
        kernel = (1,) * target.spatial
        matrix = matrix.reshape(channels, per_group, *kernel)
    sides = [(large - k) // 2 for k, large in zip(kernel, target.kernel, strict=True)]
    return functional.pad(matrix, [s for side in reversed(sides) for s in (side, side)]), bias
