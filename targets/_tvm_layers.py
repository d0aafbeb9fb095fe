"""Layers with weights in Relax: convolutions with the norm behind them folded in, linear layers, means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Weights:
    """The constants of a program by the name of their placeholder, and what its convolutions take in."""

    values: Mapping[str, Any]

    @staticmethod
    def of(exported: ExportedProgram) -> Weights:
        """Parameters, buffers and constants, in torch's memory."""
        found = {}
        held: dict[str, Any] = dict(exported.state_dict) | dict(exported.constants)
        for spec in exported.graph_signature.input_specs:
            if spec.target is not None and spec.target in held and hasattr(spec.arg, "name"):
                found[spec.arg.name] = held[spec.target].detach()
        return Weights(found)

    def get(self, node: Any) -> Any | None:
        """The constant that a node stands for."""
        return self.values.get(getattr(node, "name", ""))

    def norm(self, conv: Any) -> tuple[Any, Any] | None:
        """Scale and shift of the batch norm that alone reads a convolution's result."""
        users = list(conv.users)
        if len(users) != 1 or getattr(users[0].target, "__name__", "") != "batch_norm.default":
            return None
        return None if self.get(conv.args[1]) is None else self.affine(users[0])

    def affine(self, node: Any) -> tuple[Any, Any] | None:
        """Scale and shift of a batch norm with fixed statistics, in float64."""
        import torch

        _, weight, bias, mean, variance, training, _, epsilon, *_ = node.args
        if training or self.get(mean) is None or self.get(variance) is None:
            return None
        scale = torch.rsqrt(self.values[variance.name].double() + epsilon)
        if weight is not None:
            scale = scale * self.values[weight.name].double()
        shift = -self.values[mean.name].double() * scale
        return scale, shift if bias is None else shift + self.values[bias.name].double()


def conv1d(node: Any, importer: Any) -> Any:
    """A convolution over one axis is one over images of one row."""
    from tvm.relax import op

    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = {"bias": None, "stride": [1], "padding": [0], "dilation": [1], "groups": 1}
    given |= dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    emit = importer.block_builder.emit
    x, w = (emit(op.expand_dims(importer.env[given[n]], 2)) for n in names[:2])
    stride, pad, dilation = (_only(given[n]) for n in names[3:6])
    out = emit(
        op.nn.conv2d(x, w, strides=[1, stride], padding=[0, pad], dilation=[1, dilation], groups=given["groups"])
    )
    if given["bias"] is not None:
        bias = importer.env[given["bias"]]
        out = emit(op.add(out, emit(op.reshape(bias, [1, int(bias.ty.shape[0]), 1, 1]))))
    return emit(op.reshape(out, [int(d) for d in node.meta["val"].shape]))


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def conv2d(node: Any, importer: Any, weights: Weights) -> Any:
    """A convolution with the batch norm behind it folded in."""
    from tvm import relax
    from tvm.relax import op

    given: dict[str, Any] = {"bias": None, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    given |= dict(zip(_CONV, node.args, strict=False)) | dict(node.kwargs)
    emit = importer.block_builder.emit
    weight, bias = importer.env[given["weight"]], None
    held, held_bias = weights.get(given["weight"]), weights.get(given["bias"])
    if given["bias"] is not None and held_bias is None:
        bias = importer.env[given["bias"]]
        bias = emit(op.reshape(bias, [1, int(bias.ty.shape[0]), 1, 1]))
    if held is not None:
        folded = weights.norm(node) if bias is None else None
        value: Any = held.double()
        offset: Any = None if held_bias is None else held_bias.double()
        if folded is not None:
            value = value * folded[0].reshape(-1, 1, 1, 1)
            offset = folded[1] if offset is None else folded[1] + offset * folded[0]
        weight = relax.const(value.float().numpy())
        if offset is not None:
            bias = relax.const(offset.float().reshape(1, -1, 1, 1).numpy())
    pads = [int(p) for p in given["padding"]]
    out = emit(
        op.nn.conv2d(
            importer.env[given["input"]], weight, strides=list(given["stride"]), padding=pads * (2 // len(pads)),
            dilation=list(given["dilation"]), groups=given["groups"],
        )
    )  # fmt: skip
    return out if bias is None else emit(op.add(out, bias))


def transposed(node: Any, importer: Any, weights: Weights) -> Any:
    """A transposed convolution as a convolution over the image with zeros between its pixels."""
    from tvm import relax
    from tvm.relax import op

    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    given: dict[str, Any] = {"bias": None, "stride": [1], "padding": [0], "output_padding": [0], "groups": 1}
    given |= {"dilation": [1]} | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    held: Any = weights.get(given["weight"])
    groups = int(given["groups"])
    stride, pad, more, dilation = (
        [int(v) for v in (given[n] * 2)[:2]] for n in ("stride", "padding", "output_padding", "dilation")
    )
    emit = importer.block_builder.emit
    inner, outer, *kernel = held.shape
    split = held.reshape(groups, inner // groups, outer, *kernel).transpose(1, 2).flip(-1, -2)
    weight = relax.const(split.reshape(groups * outer, inner // groups, *kernel).contiguous().numpy())
    b, c, h, w = (int(d) for d in given["input"].meta["val"].shape)
    x = importer.env[given["input"]]
    if stride != [1, 1]:
        x = emit(op.reshape(x, [b, c, h, 1, w, 1]))
        x = emit(op.nn.pad(x, [0, 0, 0, 0, 0, 0, 0, stride[0] - 1, 0, 0, 0, stride[1] - 1]))
        x = emit(op.reshape(x, [b, c, h * stride[0], w * stride[1]]))
        x = emit(op.strided_slice(x, [2, 3], [0, 0], [(h - 1) * stride[0] + 1, (w - 1) * stride[1] + 1]))
    first = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, pad, strict=True)]
    pads = [*first, *(f + m for f, m in zip(first, more, strict=True))]
    if min(pads) < 0:
        sizes = [(h - 1) * stride[0] + 1, (w - 1) * stride[1] + 1]
        cut = [max(-p, 0) for p in pads]
        x = emit(op.strided_slice(x, [2, 3], cut[:2], [sizes[0] - cut[2], sizes[1] - cut[3]]))
        pads = [max(p, 0) for p in pads]
    out = emit(op.nn.conv2d(x, weight, padding=pads, dilation=dilation, groups=groups))
    if given["bias"] is None:
        return out
    return emit(op.add(out, emit(op.reshape(importer.env[given["bias"]], [1, groups * outer, 1, 1]))))


def batch_norm(node: Any, importer: Any, weights: Weights) -> Any:
    """A batch norm with fixed statistics as a product and a sum; nothing where a convolution took it in."""
    from tvm import relax
    from tvm.relax import op

    before, x = node.args[0], importer.env[node.args[0]]
    if getattr(before.target, "__name__", "") == "conv2d.default" and weights.norm(before) is not None:
        given = before.args[2] if len(before.args) > 2 else before.kwargs.get("bias")
        if given is None or weights.get(given) is not None:
            return x
    pair = weights.affine(node)
    if pair is None:
        raise ValueError(f"{node.name}: batch_norm takes its statistics from the batch")
    shape = [1, -1, *[1] * (len(node.meta["val"].shape) - 2)]
    scale, shift = (relax.const(v.float().reshape(shape).numpy()) for v in pair)
    emit = importer.block_builder.emit
    return emit(op.add(emit(op.multiply(x, scale)), shift))


def linear(node: Any, importer: Any, weights: Weights) -> Any:
    """A linear layer, its weights already transposed."""
    from tvm import relax
    from tvm.relax import op

    emit = importer.block_builder.emit
    x, held = importer.env[node.args[0]], weights.get(node.args[1])
    if held is not None:
        weight = relax.const(held.float().T.contiguous().numpy())
    else:
        weight = emit(op.permute_dims(importer.env[node.args[1]], [1, 0]))
    out = emit(op.matmul(x, weight))
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return out if bias is None else emit(op.add(out, importer.env[bias]))


def adaptive_pool(node: Any, importer: Any) -> Any:
    """A mean where one value is left, a plain pool where the windows are equal."""
    from tvm.relax import op

    x, size = importer.env[node.args[0]], [int(d) for d in node.args[0].meta["val"].shape[-2:]]
    out = [int(d) for d in node.meta["val"].shape[-2:]]
    if out == [1, 1]:
        return importer.block_builder.emit(op.mean(x, axis=[2, 3], keepdims=True))
    window = [s // o for s, o in zip(size, out, strict=True)]
    if all(s % o == 0 for s, o in zip(size, out, strict=True)):
        return importer.block_builder.emit(op.nn.avg_pool2d(x, window, window))
    return importer.block_builder.emit(op.nn.adaptive_avg_pool2d(x, out))


def mean(node: Any, importer: Any) -> Any:
    """A mean that keeps its axes at first, so that a change of layout passes through it."""
    from tvm.relax import op

    emit, rank = importer.block_builder.emit, len(node.args[0].meta["val"].shape)
    axes = [a % rank for a in node.args[1]] if node.args[1] else list(range(rank))
    made = emit(op.mean(importer.env[node.args[0]], axis=axes, keepdims=True))
    return emit(op.reshape(made, [int(d) for d in node.meta["val"].shape]))


def _only(value: Any) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)
