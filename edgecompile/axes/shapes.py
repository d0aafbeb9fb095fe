"""How axes go through views, slices, concatenations and copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from edgecompile.axes.dims import Dim, concatenation, product, regrouped, split
from edgecompile.axes.walk import Dims, Found, Rule, Walk
from edgecompile.rewrite import argument

aten = torch.ops.aten


def view(walk: Walk, node: fx.Node) -> Dims | None:
    """A reshape; one size is left to be computed, so that of several dynamic products all are fixed."""
    try:
        found = regrouped(walk.of(node.args[0]), walk.sizes(node), walk.why(node))
    except ValueError:
        return None
    dynamic = [d for axis, d in enumerate(found) if walk.dynamic(node, axis) and d.found().kind != "atom"]
    for dim in dynamic if len(dynamic) > 1 else ():
        dim.fix(walk.why(node))
    return tuple(found)


def permute(walk: Walk, node: fx.Node) -> Dims:
    """The axes in another order."""
    x = walk.of(node.args[0])
    return tuple(x[int(a)] for a in cast("Sequence[int]", node.args[1]))


def transpose(walk: Walk, node: fx.Node) -> Dims:
    """Two axes swapped: the last two where none are named."""
    x = list(walk.of(node.args[0]))
    a, b = (int(v) for v in node.args[1:3]) if len(node.args) > 1 else (-2, -1)  # type: ignore[arg-type]
    if len(x) > 1:
        x[a], x[b] = x[b], x[a]
    return tuple(x)


def squeeze(walk: Walk, node: fx.Node) -> Dims:
    """Axes of one index left out."""
    x = walk.of(node.args[0])
    given = node.args[1] if len(node.args) > 1 else range(len(x))
    axes = {int(a) % len(x) for a in (given if isinstance(given, (list, tuple, range)) else [given])}  # type: ignore[arg-type]
    for i in axes:  # one that shrank to one index would be left out too
        x[i].fix(walk.why(node))
    return tuple(d for i, d in enumerate(x) if i not in axes or d.size != 1)


def unsqueeze(walk: Walk, node: fx.Node) -> Dims:
    """An axis of one index more."""
    x, axis = list(walk.of(node.args[0])), int(cast(int, node.args[1]))
    x.insert(axis % (len(x) + 1), Dim(1))
    return tuple(x)


def expand(walk: Walk, node: fx.Node) -> Dims:
    """Axes of one index, or new ones in front, take any size."""
    x, fresh = walk.of(node.args[0]), walk.fresh(node)
    x = (*(Dim(1) for _ in fresh[len(x) :]), *x)
    return tuple(old if old.size == new.size else new for old, new in zip(x, fresh, strict=True))


def expand_as(walk: Walk, node: fx.Node) -> Dims:
    """Another tensor's sizes."""
    return walk.of(node.args[1])


def repeat(walk: Walk, node: fx.Node) -> Dims:
    """Every axis several times over."""
    x, counts = walk.of(node.args[0]), cast("Sequence[Any]", node.args[1])
    x = (*(Dim(1) for _ in counts[len(x) :]), *x)
    return tuple(product([Dim(walk.size(n), walk.why(node)), d]) for n, d in zip(counts, x, strict=True))


def repeat_interleave(walk: Walk, node: fx.Node) -> Dims | None:
    """Every index several times in a row, as heads of keys are for the queries that share them."""
    x, axis = list(walk.of(node.args[0])), argument(node, "dim")
    if axis is None:
        return None
    count = Dim(int(argument(node, "repeats")))
    x[axis] = product([x[axis], count])
    walk.virtual[node] = (count,)
    return tuple(x)


def cat(walk: Walk, node: fx.Node) -> Dims:
    """One axis behind the other, the others the same."""
    parts = [walk.of(n) for n in cast("Sequence[fx.Node]", node.args[0])]
    parts = [p for p in parts if len(p) == len(walk.sizes(node))]  # an empty vector may stand for nothing
    axis = int(argument(node, "dim")) % len(parts[0])
    for other in parts[1:]:
        for a, b in zip(_without(parts[0], axis), _without(other, axis), strict=True):
            walk.same(node, a, b)
    return (*parts[0][:axis], concatenation([p[axis] for p in parts]), *parts[0][axis + 1 :])


def stack(walk: Walk, node: fx.Node) -> Dims:
    """The same axes, and a new one of the tensors."""
    parts = [walk.of(n) for n in cast("Sequence[fx.Node]", node.args[0])]
    for other in parts[1:]:
        for a, b in zip(parts[0], other, strict=True):
            walk.same(node, a, b)
    found, axis = list(parts[0]), int(argument(node, "dim"))
    found.insert(axis % (len(found) + 1), Dim(len(parts), walk.why(node)))
    return tuple(found)


def _without(dims: Dims, axis: int) -> Dims:
    return (*dims[:axis], *dims[axis + 1 :])


def divided(walk: Walk, node: fx.Node) -> Found | None:
    """An axis in pieces (split, chunk)."""
    x, axis = walk.of(node.args[0]), int(argument(node, "dim"))
    sizes = [walk.size(v.shape[axis]) for v in node.meta["val"]]
    parts = split(x[axis], sizes, "sum", walk.why(node))
    if parts is None:
        return None
    axis %= len(x)
    walk.virtual[node] = parts
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


def unbind(walk: Walk, node: fx.Node) -> Found:
    """A tensor for each index of an axis."""
    x, axis = walk.of(node.args[0]), int(argument(node, "dim"))
    x[axis].fix(walk.why(node))
    return [_without(x, axis % len(x)) for _ in node.meta["val"]]


def select(walk: Walk, node: fx.Node) -> Dims:
    """One index of an axis."""
    x, axis = walk.of(node.args[0]), int(cast(int, node.args[1]))
    x[axis].fix(walk.why(node))
    return _without(x, axis % len(x))


def slice_(walk: Walk, node: fx.Node) -> Dims | None:
    """A part of an axis, or every so many of its indices."""
    x, axis = list(walk.of(node.args[0])), int(argument(node, "dim"))
    start, end, step = (argument(node, name) for name in ("start", "end", "step"))
    size, count = x[axis].size, walk.sizes(node)[axis]
    if count == size:
        return tuple(x)
    if not all(isinstance(v, int) or v is None for v in (start, end, step)) or walk.dynamic(node, axis):
        return None
    begin = min(start + size if start < 0 else start, size) if start else 0
    if step == 1:
        parts = split(x[axis], (begin, count, size - begin - count), "sum", walk.why(node))
        if parts is None:
            return None
        walk.virtual[node] = parts
        x[axis] = parts[1]
        return tuple(x)
    if size % step or count != size // step or begin >= step:
        return None
    parts = split(x[axis], (count, step), "product", walk.why(node))
    if parts is None:
        return None
    parts[1].fix(walk.why(node))
    x[axis] = parts[0]
    return tuple(x)


def indexed(walk: Walk, node: fx.Node) -> Dims | None:
    """Axes read by tensors of indices stay; the others pass."""
    x = walk.of(node.args[0])
    given = list(cast("Sequence[fx.Node | None]", node.args[1]))
    used = [i for i, n in enumerate(given) if n is not None]
    if any(cast(fx.Node, given[i]).meta["val"].dtype == torch.bool for i in used):
        return None
    for i in used:
        x[i].fix(walk.why(node))
        walk.fix(given[i], walk.why(node))
    rank = max(len(walk.of(given[i])) for i in used)
    at = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    rest = [d for i, d in enumerate(x) if i not in used]
    made = [Dim(s, walk.why(node)) for s in walk.sizes(node)[at : at + rank]]
    return (*rest[:at], *made, *rest[at:])


def chosen(walk: Walk, node: fx.Node) -> Dims:
    """Some indices of one axis."""
    x, axis = list(walk.of(node.args[0])), int(cast(int, node.args[1]))
    x[axis].fix(walk.why(node))
    walk.fix(node.args[2], walk.why(node))
    x[axis] = Dim(walk.sizes(node)[axis], walk.why(node))
    return tuple(x)


def padded(walk: Walk, node: fx.Node) -> Dims | None:
    """A constant before and behind some of the last axes."""
    x, pads = list(walk.of(node.args[0])), cast("Sequence[int]", node.args[1])
    if not all(isinstance(p, int) and p >= 0 for p in pads):
        return None
    for back, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True), 1):
        ends = (Dim(n, walk.why(node)) for n in (before, after))
        x[-back] = concatenation([next(ends), x[-back], next(ends)])
    return tuple(x)


def rolled(walk: Walk, node: fx.Node) -> Dims:
    """Axes turned round."""
    walk.fix(node.args[0], walk.why(node), cast("Sequence[int]", argument(node, "dims")) or None)
    return walk.of(node.args[0])


def triangle(walk: Walk, node: fx.Node) -> Dims:
    """Above or below the diagonal of the last two axes."""
    walk.fix(node.args[0], walk.why(node), (-2, -1))
    return walk.of(node.args[0])


def shuffled(walk: Walk, node: fx.Node) -> Dims | None:
    """Pixel shuffle: channels are those that stay times the places that they move to."""
    x, factor = walk.of(node.args[0]), int(cast(int, node.args[1]))
    parts = split(x[-3], (x[-3].size // factor**2, factor, factor), "product", walk.why(node))
    if parts is None:
        return None
    for dim in (*parts[1:], *x[-2:]):
        dim.fix(walk.why(node))
    return (*x[:-3], parts[0], *(Dim(s, walk.why(node)) for s in walk.sizes(node)[-2:]))


def unshuffled(walk: Walk, node: fx.Node) -> Dims:
    """Its inverse."""
    x, factor = walk.of(node.args[0]), int(cast(int, node.args[1]))
    for dim in x[-2:]:
        dim.fix(walk.why(node))
    places = [Dim(factor, walk.why(node)) for _ in range(2)]
    return (*x[:-3], product([x[-3], *places]), *(Dim(s, walk.why(node)) for s in walk.sizes(node)[-2:]))


def filled(walk: Walk, node: fx.Node) -> Dims:
    """A constant of any size."""
    return walk.fresh(node)


VIEWS = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
)  # fmt: skip
FILLED = (
    aten.full.default, aten.zeros.default, aten.ones.default, aten.new_zeros.default, aten.new_ones.default,
    aten.new_full.default,
)  # fmt: skip
DIVIDED = (
    aten.split_with_sizes.default, aten.split.Tensor, aten.split.sizes, aten.chunk.default,
    aten.unsafe_split.Tensor, aten.unsafe_chunk.default,
)  # fmt: skip

RULES: dict[Any, Rule] = {
    **dict.fromkeys(VIEWS, view),
    aten.permute.default: permute,
    **dict.fromkeys((aten.transpose.int, aten.t.default, aten.mT.default, aten.numpy_T.default), transpose),
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default), squeeze),
    aten.unsqueeze.default: unsqueeze,
    aten.expand.default: expand,
    aten.expand_as.default: expand_as,
    aten.repeat.default: repeat,
    aten.repeat_interleave.self_int: repeat_interleave,
    **dict.fromkeys((aten.cat.default, aten.concat.default), cat),
    aten.stack.default: stack,
    **dict.fromkeys(DIVIDED, divided),
    aten.unbind.int: unbind,
    aten.select.int: select,
    aten.slice.Tensor: slice_,
    aten.index.Tensor: indexed,
    aten.index_select.default: chosen,
    aten.constant_pad_nd.default: padded,
    aten.pad.default: padded,
    aten.roll.default: rolled,
    **dict.fromkeys((aten.tril.default, aten.triu.default), triangle),
    aten.pixel_shuffle.default: shuffled,
    aten.pixel_unshuffle.default: unshuffled,
    **dict.fromkeys(FILLED, filled),
}  # fmt: skip
"""Operator -> the rule that gives its result's axes."""
