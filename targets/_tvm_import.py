"""Torch operators in Relax where TVM's importer has none, decomposes them badly, or stumbles over its own result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgecompile.targets import _tvm_layers as layers
from edgecompile.targets._tvm_int8 import NAMES

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MASKED = -1e30
"""What is added to a masked score: far below all others, and finite."""

Convert = Callable[[Any, Any], Any]


def prepared(exported: ExportedProgram) -> ExportedProgram:
    """The program with those operators decomposed that the importer does not know, and no others."""
    import torch

    known = names()
    missing = {
        n.target
        for n in exported.graph.nodes
        if isinstance(n.target, torch._ops.OpOverload) and n.target.__name__ not in known
    }
    table = torch.export.default_decompositions()
    chosen = {op: rule for op, rule in table.items() if op in missing}  # type: ignore[no-untyped-call,unused-ignore]
    return exported.run_decompositions(chosen) if chosen else exported


def unknown(exported: ExportedProgram) -> list[tuple[Any, str]]:
    """Nodes that cannot be imported, each with the reason."""
    import torch

    known, found = names(), []
    for node in exported.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.__name__ not in known:
            found.append((node, "has no form in TVM's Relax"))
        elif getattr(node.target, "__name__", "") == "batch_norm.default" and node.args[5]:
            found.append((node, "takes its statistics from the batch"))
    return found


def names() -> set[str]:
    """Every operator that can be imported, as `conv2d.default`."""
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    return set(ExportedProgramImporter().create_convert_map()) | set(converters(layers.Weights({}))) | NAMES


def converters(weights: layers.Weights) -> Mapping[str, Convert]:
    """Our own importers by operator name."""
    return {
        "conv2d.default": lambda node, importer: layers.conv2d(node, importer, weights),
        "batch_norm.default": lambda node, importer: layers.batch_norm(node, importer, weights),
        "conv_transpose2d.input": lambda node, importer: layers.transposed(node, importer, weights),
        "linear.default": lambda node, importer: layers.linear(node, importer, weights),
        "adaptive_avg_pool2d.default": layers.adaptive_pool,
        "scaled_dot_product_attention.default": _attention,
        "squeeze.dim": _reshaped,
        "squeeze.dims": _reshaped,
        "squeeze.default": _reshaped,
        "unsqueeze.default": _reshaped,
        "flatten.using_ints": _reshaped,
        "unflatten.int": _reshaped,
        "view.default": _reshaped,
        "reshape.default": _reshaped,
        "select.int": _select,
        "conv1d.default": layers.conv1d,
        "pad.default": _pad,
        "constant_pad_nd.default": _pad,
        **dict.fromkeys(("_to_copy.default", "to.device"), _to_copy),
        "rms_norm.default": _rms_norm,
        "group_norm.default": _group_norm,
        "mean.dim": layers.mean,
        **{f"{op}.default": _product for op in ("matmul", "mm", "bmm")},
        "relu6.default": lambda node, importer: _clipped(importer, importer.env[node.args[0]], 0.0, 6.0),
        "hardtanh.default": lambda node, importer: _clipped(importer, importer.env[node.args[0]], *_bounds(node)),
        "clamp.default": lambda node, importer: _clipped(importer, importer.env[node.args[0]], *_bounds(node)),
        "hardsigmoid.default": lambda node, importer: _hard_sigmoid(importer, importer.env[node.args[0]]),
        "hardswish.default": _hard_swish,
        **{f"{op}.{kind}": _scaled for op in ("add", "sub", "rsub") for kind in ("Tensor", "Scalar")},
    }


def _scaled(node: Any, importer: Any) -> Any:
    """`add`, `sub` and `rsub`: TVM's importer leaves their `alpha` out, so what it lacks is added."""
    from tvm import relax
    from tvm.relax import op

    name = node.target.__name__
    made = importer.create_convert_map()[name](node)
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    if alpha == 1:
        return made
    dtype, emit = str(made.ty.dtype), importer.block_builder.emit
    held = node.args[0 if name.startswith("rsub") else 1]
    value = op.astype(importer.env[held], dtype) if hasattr(held, "op") else relax.const(held, dtype)
    more = emit(op.multiply(emit(value), relax.const(alpha - 1, dtype)))
    return emit((op.add if name.startswith("add") else op.subtract)(made, more))


def _product(node: Any, importer: Any) -> Any:
    """A product in the operands' own type: TVM's importer asks for float32 whatever they are."""
    from tvm.relax import op

    return importer.block_builder.emit(op.matmul(importer.env[node.args[0]], importer.env[node.args[1]]))


def _value(importer: Any, argument: Any) -> Any:
    return importer.env.get(argument, argument) if hasattr(argument, "op") else argument


def _reshaped(node: Any, importer: Any) -> Any:
    """Whatever only changes the shape, to the shape that torch has found."""
    from tvm import relax

    shape = [int(d) for d in node.meta["val"].shape]
    return importer.block_builder.emit(relax.op.reshape(importer.env[node.args[0]], shape))


def _to_copy(node: Any, importer: Any) -> Any:
    from tvm import relax

    value = importer.env[node.args[0]]
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    return value if str(value.ty.dtype) == dtype else importer.block_builder.emit(relax.op.astype(value, dtype))


def _select(node: Any, importer: Any) -> Any:
    """One index of an axis, as a slice: TVM's `take` is not checked against its bounds and fuses with nothing."""
    from tvm import relax

    value, axis, index = node.args
    sizes = node.args[0].meta["val"].shape
    axis, index = axis % len(sizes), index % int(sizes[axis])
    emit = importer.block_builder.emit
    part = emit(relax.op.strided_slice(importer.env[value], [axis], [index], [index + 1]))
    return emit(relax.op.reshape(part, [int(d) for d in node.meta["val"].shape]))


def _attention(node: Any, importer: Any) -> Any:
    """softmax(q kT / sqrt(d) + mask) v, for any number of axes; a boolean mask keeps where it is true."""
    from tvm import relax
    from tvm.relax import op

    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    emit = importer.block_builder.emit
    q, k, v = (importer.env[given[n]] for n in names[:3])
    size = [int(d) for d in given["query"].meta["val"].shape]
    keys = [int(d) for d in given["key"].meta["val"].shape]
    scale = given.get("scale") or 1 / math.sqrt(size[-1])
    if keys[:-2] != size[:-2]:  # grouped queries: every key head serves several
        k = emit(op.repeat(k, size[-3] // keys[-3], axis=len(size) - 3))
        v = emit(op.repeat(v, size[-3] // keys[-3], axis=len(size) - 3))
    swapped = [*range(len(size) - 2), len(size) - 1, len(size) - 2]
    q = emit(op.multiply(q, relax.const(scale, "float32")))
    scores = emit(op.matmul(q, emit(op.permute_dims(k, swapped))))
    mask = given.get("attn_mask")
    if mask is not None:
        held = importer.env[mask]
        if str(held.ty.dtype) == "bool":
            held = emit(op.where(held, relax.const(0.0, "float32"), relax.const(MASKED, "float32")))
        else:
            held = emit(op.maximum(held, relax.const(MASKED, "float32")))
        scores = emit(op.add(scores, held))
    if given.get("is_causal"):
        scores = emit(op.add(scores, relax.const(_causal(size[-2], keys[-2]))))
    return emit(op.matmul(emit(op.nn.softmax(scores, axis=-1)), v))


def _causal(rows: int, columns: int) -> Any:
    import numpy as np

    return np.triu(np.full((rows, columns), MASKED, np.float32), 1)


def _bounds(node: Any) -> tuple[float | None, float | None]:
    default = (-1.0, 1.0) if "hardtanh" in str(node.target) else (None, None)
    names = ("min_val", "max_val") if "hardtanh" in str(node.target) else ("min", "max")
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    low, high = (given.get(n, d) for n, d in zip(names, default, strict=True))
    return low, high


def _clipped(importer: Any, x: Any, low: float | None, high: float | None) -> Any:
    """Bounds as maximum and minimum: TVM's `clip` stops a change of layout."""
    from tvm import relax
    from tvm.relax import op

    dtype = str(x.ty.dtype)
    if low is not None:
        x = importer.block_builder.emit(op.maximum(x, relax.const(low, dtype)))
    if high is not None:
        x = importer.block_builder.emit(op.minimum(x, relax.const(high, dtype)))
    return x


def _hard_sigmoid(importer: Any, x: Any) -> Any:
    from tvm import relax
    from tvm.relax import op

    emit = importer.block_builder.emit
    moved = _clipped(importer, emit(op.add(x, relax.const(3.0, "float32"))), 0.0, 6.0)
    return emit(op.multiply(moved, relax.const(1 / 6, "float32")))


def _hard_swish(node: Any, importer: Any) -> Any:
    from tvm.relax import op

    x = importer.env[node.args[0]]
    return importer.block_builder.emit(op.multiply(x, _hard_sigmoid(importer, x)))


def _pad(node: Any, importer: Any) -> Any:
    """Padding with a constant, the last axis first as torch counts; other modes are TVM's."""
    from tvm.relax import op

    arguments = [*node.args, *node.kwargs.values()]
    mode = next((a for a in arguments[2:] if isinstance(a, str)), "constant")
    value = next((a for a in arguments[2:] if isinstance(a, (int, float))), 0.0)
    if not any(node.args[1]):  # TVM would fuse an empty function, and fail
        return importer.env[node.args[0]]
    rank = len(node.args[0].meta["val"].shape)
    pairs = [(0, 0)] * rank
    for i in range(len(node.args[1]) // 2):
        pairs[rank - 1 - i] = tuple(node.args[1][2 * i : 2 * i + 2])
    return importer.block_builder.emit(
        op.nn.pad(importer.env[node.args[0]], [p for pair in pairs for p in pair], mode, float(value or 0.0))
    )


def _rms_norm(node: Any, importer: Any) -> Any:
    from tvm import relax
    from tvm.relax import op

    x, size = importer.env[node.args[0]], node.args[1]
    weight = importer.env[node.args[2]] if len(node.args) > 2 and node.args[2] is not None else None
    epsilon = node.args[3] if len(node.args) > 3 and node.args[3] is not None else 1.1920929e-07
    emit = importer.block_builder.emit
    axes = list(range(-len(size), 0))
    square = emit(op.mean(emit(op.multiply(x, x)), axis=axes, keepdims=True))
    scaled = emit(op.multiply(x, emit(op.rsqrt(emit(op.add(square, relax.const(epsilon, "float32")))))))
    return scaled if weight is None else emit(op.multiply(scaled, weight))


def _group_norm(node: Any, importer: Any) -> Any:
    """Means over whole groups as rows: of TVM's own operator no kernel would be made that is not a plain loop."""
    from tvm import relax
    from tvm.relax import op

    names = ("input", "num_groups", "weight", "bias", "eps")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    emit = importer.block_builder.emit
    shape = [int(d) for d in node.meta["val"].shape]
    rows = emit(op.reshape(importer.env[given["input"]], [shape[0], given["num_groups"], -1]))
    off = emit(op.subtract(rows, emit(op.mean(rows, axis=[-1], keepdims=True))))
    square = emit(op.mean(emit(op.multiply(off, off)), axis=[-1], keepdims=True))
    scale = emit(op.rsqrt(emit(op.add(square, relax.const(float(given.get("eps", 1e-5)), "float32")))))
    value = emit(op.reshape(emit(op.multiply(off, scale)), shape))
    for name, apply in (("weight", op.multiply), ("bias", op.add)):
        if given.get(name) is not None:
            held = emit(op.reshape(importer.env[given[name]], [shape[1], *[1] * (len(shape) - 2)]))
            value = emit(apply(value, held))
    return value
