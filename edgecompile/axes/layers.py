"""How axes go through layers, products, norms, reductions and what works element by element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from edgecompile.axes.dims import Dim, product, split
from edgecompile.axes.walk import Dims, Found, Rule, Walk, operands
from edgecompile.functional import DROPOUTS, PASSING
from edgecompile.rewrite import argument

aten = torch.ops.aten


def pointwise(walk: Walk, node: fx.Node) -> Dims:
    """Axes of one size are the same, counted from the last; those of one index are broadcast."""
    return broadcast(walk, node, [walk.of(n) for n in operands(node)], walk.fresh(node))


def broadcast(walk: Walk, node: fx.Node, given: Sequence[Dims], fresh: Dims) -> Dims:
    """The axes that tensors have together; a fresh one where none of them has as many indices."""
    found: list[Dim] = []
    for back in range(1, len(fresh) + 1):
        size = fresh[-back].size
        fitting = [dims[-back] for dims in given if len(dims) >= back and dims[-back].size == size]
        for other in fitting[1:]:
            walk.same(node, fitting[0], other)
        found.append(fitting[0] if fitting else fresh[-back])
    return tuple(reversed(found))


def passing(walk: Walk, node: fx.Node) -> Found | None:
    """The first argument's axes."""
    return walk.dims.get(cast(fx.Node, node.args[0]))


def linear(walk: Walk, node: fx.Node) -> Dims:
    """`x @ weight.T + bias`."""
    x, w = walk.of(node.args[0]), walk.of(node.args[1])
    walk.same(node, x[-1], w[-1])
    _vector(walk, node, "bias", w[0])
    walk.sums(node, node.args[1], -1)
    walk.work[node] = ((*x, *w[:-1]),)
    return (*x[:-1], *w[:-1])


def matmul(walk: Walk, node: fx.Node) -> Dims:
    """Products of matrices and vectors, the axes in front broadcast."""
    return _product(walk, node, *node.args[:2])


def _product(walk: Walk, node: fx.Node, left: Any, right: Any) -> Dims:
    a, b = walk.of(left), walk.of(right)
    walk.sums(node, left, -1)
    walk.sums(node, right, -2 if len(b) > 1 else -1)
    walk.same(node, a[-1], b[-2] if len(b) > 1 else b[-1])
    ends = (*a[-2:-1], *(b[-1:] if len(b) > 1 else ()))
    count = len(walk.sizes(node)) - len(ends)
    found = (*broadcast(walk, node, [a[:-2], b[:-2]], walk.fresh(node)[:count]), *ends)
    walk.work[node] = ((*found, a[-1]),)
    return found


def addmm(walk: Walk, node: fx.Node) -> Dims:
    """A product and what is added to it."""
    made = _product(walk, node, *node.args[1:3])
    return broadcast(walk, node, [made, walk.of(node.args[0])], made)


def einsum(walk: Walk, node: fx.Node) -> Dims | None:
    """Axes of one letter are the same."""
    text, given = str(node.args[0]).replace(" ", ""), cast("Sequence[fx.Node]", node.args[1])
    left, arrow, right = text.partition("->")
    if "." in text or not arrow:
        return None
    letters: dict[str, Dim] = {}
    for word, source in zip(left.split(","), given, strict=True):
        for letter, dim in zip(word, walk.of(source), strict=True):
            walk.same(node, letters.setdefault(letter, dim), dim)
    walk.work[node] = (tuple(letters.values()),)
    return tuple(letters[letter] for letter in right)


def conv(walk: Walk, node: fx.Node) -> Dims:
    """Channels in and out; those of groups are products of the groups and what each has."""
    x, w = walk.of(argument(node, "input")), walk.of(argument(node, "weight"))
    groups, transposed = int(argument(node, "groups")), "transpose" in str(node.target)
    spatial = len(w) - 2
    into, out = (w[0], w[1]) if transposed else (w[1], w[0])
    count = Dim(groups)
    if groups > 1:
        each = Dim((into if transposed else out).size // groups)
        whole = product([count, each])
        walk.same(node, into if transposed else out, whole)
        into, out = (whole, product([count, out])) if transposed else (product([count, into]), whole)
        walk.virtual[node] = (count,)
    walk.same(node, x[-spatial - 1], into)
    _vector(walk, node, "bias", out)
    for dim in (*x[-spatial:], *w[2:]):
        dim.fix(walk.why(node))
    found = (*x[: -spatial - 1], out, *_fixed(walk, node, spatial))
    walk.sums(node, argument(node, "weight"), 0 if transposed else 1)
    walk.work[node] = ((*(x if transposed else found), *w[1:]),)
    return found


def _fixed(walk: Walk, node: fx.Node, count: int) -> Dims:
    """The last axes of a result, new and fixed."""
    return tuple(Dim(size, walk.why(node)) for size in walk.sizes(node)[len(walk.sizes(node)) - count :])


def _vector(walk: Walk, node: fx.Node, name: str, dim: Dim) -> None:
    found = walk.arg(node, name)
    if found is not None:
        walk.same(node, found[-1], dim)


def channel_norm(walk: Walk, node: fx.Node) -> Dims:
    """Batch norm and instance norm: a value a channel."""
    x = walk.of(node.args[0])
    for name in ("weight", "bias", "running_mean", "running_var"):
        _vector(walk, node, name, x[1])
    return x


def last_norm(walk: Walk, node: fx.Node) -> Dims:
    """Layer norm and RMS norm: statistics over the last axes, those that are kept."""
    x, count = walk.of(node.args[0]), len(cast("Sequence[int]", node.args[1]))
    for name in ("weight", "bias") if "layer_norm" in str(node.target) else ("weight",):
        found = walk.arg(node, name)
        for a, b in zip(found or (), x[len(x) - count :], strict=False):
            walk.same(node, a, b)
    return x


def group_norm(walk: Walk, node: fx.Node) -> Dims:
    """Channels are groups times what each group has; statistics over what is kept of it."""
    x, groups = walk.of(node.args[0]), int(cast(int, node.args[1]))
    for name in ("weight", "bias"):
        _vector(walk, node, name, x[1])
    count = Dim(groups)
    walk.same(node, x[1], product([count, Dim(x[1].size // groups)]))
    walk.virtual[node] = (count,)
    return x


def attention(walk: Walk, node: fx.Node) -> Dims:
    """Scaled dot-product attention; with grouped queries their heads are those of the keys times some."""
    q, k, v = (walk.of(argument(node, name)) for name in ("query", "key", "value"))
    walk.same(node, q[-1], k[-1])
    walk.same(node, k[-2], v[-2])
    k[-2].fix(walk.why(node))
    lead = list(q[:-2])
    if lead and k[-3].size not in (1, q[-3].size):
        walk.same(node, q[-3], product([k[-3], Dim(q[-3].size // k[-3].size)]))
        walk.same(node, k[-3], v[-3])
        given = [q[:-3], k[:-3], v[:-3]]
        lead = [*broadcast(walk, node, given, q[:-3]), q[-3]]
    else:
        lead = list(broadcast(walk, node, [q[:-2], k[:-2], v[:-2]], walk.fresh(node)[: len(lead)]))
    mask = walk.arg(node, "attn_mask")
    if mask is not None:
        broadcast(walk, node, [(*lead, q[-2], k[-2]), mask], (*lead, q[-2], k[-2]))
    walk.virtual[node] = (q[-1],)
    walk.work[node] = tuple((*lead, q[-2], k[-2], width) for width in (q[-1], v[-1]))
    return (*lead, q[-2], v[-1])


def along(walk: Walk, node: fx.Node) -> Dims:
    """Softmax, cumulative sums, flips: all of one axis is needed, the others pass."""
    x = walk.of(node.args[0])
    given = argument(node, "dims" if any(a.name == "dims" for a in _schema(node)) else "dim")
    for axis in given if isinstance(given, (list, tuple)) else [given]:
        x[axis].fix(walk.why(node))
    return x


def _schema(node: fx.Node) -> Sequence[Any]:
    return cast("Sequence[Any]", cast(Any, node.target)._schema.arguments)


def reduction(walk: Walk, node: fx.Node) -> Dims | None:
    """Sums, means, variances over some axes: of those that are kept."""
    x = walk.of(node.args[0])
    names = {a.name for a in _schema(node)}
    given = argument(node, "dim") if "dim" in names else None
    if isinstance(given, int):
        given = [given]
    axes = {a % len(x) for a in given} if given else set(range(len(x)))
    if "keepdim" in names and argument(node, "keepdim"):
        return tuple(Dim(1) if i in axes else d for i, d in enumerate(x))
    return tuple(d for i, d in enumerate(x) if i not in axes)


def pooled(count: int) -> Rule:
    """Pools and changes of size over the last axes; what is before them passes."""

    def rule(walk: Walk, node: fx.Node) -> Found:
        x = walk.of(node.args[0])
        for dim in x[-count:]:
            dim.fix(walk.why(node))
        values = node.meta["val"]
        if not isinstance(values, (tuple, list)):
            return (*x[:-count], *_fixed(walk, node, count))
        sizes = [[walk.size(s) for s in v.shape[-count:]] for v in values]
        return [(*x[:-count], *(Dim(s, walk.why(node)) for s in each)) for each in sizes]

    return rule


def lookup(walk: Walk, node: fx.Node) -> Dims:
    """An embedding: every row may be asked for."""
    table, index = walk.of(node.args[0]), walk.of(node.args[1])
    table[0].fix(walk.why(node))
    return (*index, *table[1:])


def prelu(walk: Walk, node: fx.Node) -> Dims:
    """A slope for all or one a channel."""
    x, slope = walk.of(node.args[0]), walk.of(node.args[1])
    if slope[0].size > 1:
        walk.same(node, x[1], slope[0])
    return x


def gated(walk: Walk, node: fx.Node) -> Dims | None:
    """One half times a function of the other."""
    x, axis = walk.of(node.args[0]), int(argument(node, "dim"))
    halves = split(x[axis], (x[axis].size // 2,) * 2, "sum", walk.why(node))
    if halves is None:
        return None
    walk.same(node, halves[0], halves[1])
    found = list(x)
    found[axis] = halves[0]
    return tuple(found)


def per_channel(walk: Walk, node: fx.Node) -> Dims:
    """A tensor of integers with a scale and a zero point an index of one axis."""
    x, axis = walk.of(node.args[0]), int(argument(node, "axis"))
    for name in ("scales", "zero_points"):
        _vector(walk, node, name, x[axis])
    return x


RULES: dict[Any, Rule] = {
    aten.linear.default: linear,
    **dict.fromkeys((aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default), matmul),
    **dict.fromkeys((aten.addmm.default, aten.baddbmm.default), addmm),
    aten.einsum.default: einsum,
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), conv),
    **dict.fromkeys((aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input), conv),
    **dict.fromkeys((aten.batch_norm.default, aten.instance_norm.default), channel_norm),
    **dict.fromkeys((aten.layer_norm.default, aten.rms_norm.default), last_norm),
    aten.group_norm.default: group_norm,
    aten.scaled_dot_product_attention.default: attention,
    **dict.fromkeys((aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default), along),
    **dict.fromkeys((aten.cumsum.default, aten.flip.default), along),
    **dict.fromkeys((aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.sum.default), reduction),
    **dict.fromkeys((aten.amax.default, aten.amin.default, aten.linalg_vector_norm.default), reduction),
    **dict.fromkeys((aten.var.correction, aten.var.dim, aten.std.correction, aten.std.dim), reduction),
    **dict.fromkeys((aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default), pooled(1)),
    **dict.fromkeys((aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default), pooled(2)),
    **dict.fromkeys((aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default), pooled(2)),
    **dict.fromkeys((aten.upsample_nearest1d.vec, aten.upsample_linear1d.vec), pooled(1)),
    **dict.fromkeys((aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec), pooled(2)),
    **dict.fromkeys((aten.upsample_nearest2d.default, aten.upsample_bilinear2d.default), pooled(2)),
    **dict.fromkeys((aten.upsample_bicubic2d.vec, aten.upsample_bicubic2d.default), pooled(2)),
    **dict.fromkeys((aten.reflection_pad1d.default, aten.replication_pad1d.default), pooled(1)),
    **dict.fromkeys((aten.reflection_pad2d.default, aten.replication_pad2d.default), pooled(2)),
    aten.embedding.default: lookup,
    aten.prelu.default: prelu,
    aten.glu.default: gated,
    **dict.fromkeys(
        (
            *PASSING, *DROPOUTS, aten.clone.default, aten.contiguous.default, aten.detach.default, aten.detach_.default,
            aten.alias.default, aten.lift_fresh_copy.default, aten.to.dtype, aten.to.device,
            aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default, aten.zeros_like.default,
            aten.ones_like.default, aten.full_like.default, aten.nan_to_num.default,
        ),
        passing,
    ),
}  # fmt: skip
"""Operator -> the rule that gives its result's axes."""


def quantized() -> dict[Any, Rule]:
    """The rules of quantize and dequantize, whose operators are registered by an import."""
    import torch.ao.quantization.fx._decomposed

    q = torch.ops.quantized_decomposed
    return {
        q.quantize_per_tensor.default: passing,
        q.dequantize_per_tensor.default: passing,
        q.quantize_per_channel.default: per_channel,
        q.dequantize_per_channel.default: per_channel,
    }
