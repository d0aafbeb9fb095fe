"""What each ATen operator is to a runtime: a kernel of its own, a step inside another's, or nothing at all."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from edgecompile.cost.work import Kind

aten = torch.ops.aten

CONV = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.convolution.default,
}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
MATMUL = {aten.matmul.default, aten.bmm.default, aten.mm.default, aten.addmm.default, aten.baddbmm.default}
ATTENTION = aten.scaled_dot_product_attention.default
SOFTMAX = {aten.softmax.int, aten._softmax.default, aten.log_softmax.int}

# kinds of operators with a kernel of their own, by the name before the dot of `aten.name.overload`
_KINDS: dict[str, Kind] = {
    "lstm": "recurrent",
    "gru": "recurrent",
    "rnn_tanh": "recurrent",
    "rnn_relu": "recurrent",
    "layer_norm": "norm",
    "native_layer_norm": "norm",
    "group_norm": "norm",
    "instance_norm": "norm",
    "rms_norm": "norm",
    "linalg_vector_norm": "norm",
    "norm": "norm",
    "softmax": "softmax",
    "_softmax": "softmax",
    "log_softmax": "softmax",
    "max_pool1d": "pool",
    "max_pool2d": "pool",
    "max_pool2d_with_indices": "pool",
    "max_pool3d": "pool",
    "avg_pool1d": "pool",
    "avg_pool2d": "pool",
    "avg_pool3d": "pool",
    "adaptive_avg_pool1d": "pool",
    "adaptive_avg_pool2d": "pool",
    "adaptive_avg_pool3d": "pool",
    "adaptive_max_pool2d": "pool",
    "mean": "pool",
    "sum": "pool",
    "amax": "pool",
    "amin": "pool",
    "max": "pool",
    "min": "pool",
    "var": "pool",
    "std": "pool",
    "prod": "pool",
    "any": "pool",
    "all": "pool",
    "argmax": "pool",
    "argmin": "pool",
    "cumsum": "pool",
    "topk": "pool",
    "sort": "pool",
    "upsample_nearest1d": "resize",
    "upsample_nearest2d": "resize",
    "upsample_bilinear2d": "resize",
    "upsample_bicubic2d": "resize",
    "grid_sampler": "resize",
    "embedding": "gather",
    "index": "gather",
    "index_select": "gather",
    "gather": "gather",
    "scatter": "gather",
    "cat": "concat",
    "stack": "concat",
    "permute": "copy",
    "transpose": "copy",
    "t": "copy",
    "movedim": "copy",
    "pad": "copy",
    "constant_pad_nd": "copy",
    "reflection_pad2d": "copy",
    "roll": "copy",
    "flip": "copy",
    "repeat": "copy",
    "tile": "copy",
    "slice": "copy",
    "select": "copy",
    "narrow": "copy",
    "chunk": "copy",
    "split": "copy",
    "split_with_sizes": "copy",
    "unbind": "copy",
    "pixel_shuffle": "copy",
    "pixel_unshuffle": "copy",
    "channel_shuffle": "copy",
    "unfold": "copy",
    "im2col": "copy",
    "col2im": "copy",
}
# other readings of the same bytes, and what an inference runtime drops
_VIEWS = {
    "view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten", "unsqueeze", "squeeze",
    "expand", "expand_as", "alias", "detach", "contiguous", "clone", "to", "_to_copy", "type_as", "lift_fresh_copy",
    "dropout", "dropout_", "feature_dropout", "dropout2d", "identity", "sym_size", "numpy_T",
}  # fmt: skip
# made once, while the artifact is built
_MADE = {
    "arange", "full", "zeros", "ones", "scalar_tensor", "empty", "full_like", "zeros_like", "ones_like", "eye",
    "linspace", "new_full", "new_zeros", "new_ones", "new_empty", "empty_like",
}  # fmt: skip
# pointwise, whatever their tag says
_POINTWISE = {
    "batch_norm", "_native_batch_norm_legit_no_training", "prelu", "masked_fill", "where", "relu6", "hardtanh",
    "hardswish", "hardsigmoid", "silu", "gelu", "mish", "softplus", "celu", "selu", "elu", "leaky_relu", "glu",
    "log_sigmoid", "square", "clamp", "rsub", "__and__", "__or__", "__xor__",
}  # fmt: skip

SPLITS = {"slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind"}
PADS = {"pad", "constant_pad_nd"}
TURNS = {"permute", "transpose", "t", "movedim", "numpy_T"}


def word(node: fx.Node) -> str:
    """`conv2d` of a call of `aten.conv2d.default`."""
    target = node.target
    if isinstance(target, OpOverload):
        return target._schema.name.rpartition("::")[2]
    return getattr(target, "__name__", str(target))


def kind(node: fx.Node) -> Kind | None:
    """The kind of kernel that a call starts, None for views, steps of others, and what is made while building."""
    target = node.target
    if target in CONV or target in TRANSPOSED:
        return "conv"
    if target in MATMUL:
        return "matmul"
    if target is aten.linear.default:
        return "linear"
    if target is ATTENTION:
        return "attention"
    return _KINDS.get(word(node))


def is_view(node: fx.Node) -> bool:
    """Whether the call only reads the same bytes in another way, or hands one of several results on."""
    return not isinstance(node.target, OpOverload) or word(node) in _VIEWS


def is_made(node: fx.Node) -> bool:
    """Whether the call's result is the same in every run."""
    return word(node) in _MADE


def is_pointwise(node: fx.Node) -> bool:
    """Whether every element of the result depends on one place of each operand."""
    target = node.target
    return isinstance(target, OpOverload) and (torch.Tag.pointwise in target.tags or word(node) in _POINTWISE)


def is_quantize(node: fx.Node) -> bool:
    """A `quantized_decomposed` call that writes integers."""
    return _quantized_word(node).startswith("quantize_")


def is_dequantize(node: fx.Node) -> bool:
    """A `quantized_decomposed` call that reads integers."""
    return _quantized_word(node).startswith("dequantize_")


def _quantized_word(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, OpOverload) and target.namespace == "quantized_decomposed":
        return word(node)
    return ""
