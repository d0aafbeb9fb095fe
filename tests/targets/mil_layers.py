"""The cases of `mil_cases` for layers, pooling, norms, reductions, attention and recurrence."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.targets.mil_cases import IMAGE, POSITIVE, Case, X, Y, _f, _i, _of, noise

KERNEL, DEEP, LINE = noise(6, 4, 3, 3, seed=3), noise(4, 1, 3, 3, seed=4), noise(5, 3, 2, seed=5)
UP = noise(4, 3, 3, 3, seed=6)
MATRIX = noise(5, 4, seed=7)
LSTM = [noise(12, 4, seed=8), noise(12, 3, seed=9), noise(12, seed=10)]


def _lstm(x: Tensor) -> Tensor:
    cell = torch.nn.LSTM(4, 3)
    i, f, o, z = (t.chunk(4) for t in LSTM), 0, 0, 0  # MIL's gates are i, f, o, z; torch's i, f, z, o
    del f, o, z
    weights = [torch.cat([a, b, d, c]) for a, b, c, d in i]
    with torch.no_grad():
        cell.weight_ih_l0.copy_(weights[0])
        cell.weight_hh_l0.copy_(weights[1])
        cell.bias_ih_l0.copy_(weights[2])
        cell.bias_hh_l0.zero_()
        return cell(x)[0]


def _gru(x: Tensor) -> Tensor:
    """Without a bias inside the reset gate, where MIL and torch differ; MIL's gates are r, o, z, torch's r, z, o."""
    cell = torch.nn.GRU(4, 3, bias=False)
    weights = [torch.cat([t[:3], t[6:9], t[3:6]]) for t in (LSTM[0][:9], LSTM[1][:9])]
    with torch.no_grad():
        cell.weight_ih_l0.copy_(weights[0])
        cell.weight_hh_l0.copy_(weights[1])
        return cell(x)[0]


def _same(x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 0, 1)), KERNEL, stride=2)  # rows 6 -> 3 need 1 more, columns 5 -> 3 need 2


LAYERS = [
    _of(
        "conv",
        lambda x: F.conv2d(x, KERNEL, torch.ones(6), 2, (1, 2)),
        IMAGE,
        weight=KERNEL.numpy(),
        bias=_f(np.ones(6)),
        strides=_i(2, 2),
        pad_type="custom",
        pad=_i(1, 1, 2, 2),
    ),
    _of("conv", _same, IMAGE, weight=KERNEL.numpy(), strides=_i(2, 2), pad_type="same"),
    _of(
        "conv",
        lambda x: F.conv2d(F.pad(x, (2, 0, 1, 0)), DEEP, groups=4, dilation=2),
        IMAGE,
        weight=DEEP.numpy(),
        groups=4,
        dilations=_i(2, 2),
        pad_type="custom",
        pad=_i(1, 0, 2, 0),
    ),
    _of("conv", lambda x: F.conv1d(x, LINE), X, weight=LINE.numpy(), pad_type="valid"),
    _of(
        "conv_transpose",
        lambda x: F.conv_transpose2d(x, UP, stride=2, padding=1),
        IMAGE,
        weight=UP.numpy(),
        strides=_i(2, 2),
        pad_type="custom",
        pad=_i(1, 1, 1, 1),
    ),
    _of(
        "conv_transpose",
        lambda x: F.conv_transpose2d(x, UP, stride=2, padding=1, output_padding=1),
        IMAGE,
        weight=UP.numpy(),
        strides=_i(2, 2),
        pad_type="custom",
        pad=_i(1, 1, 1, 1),
        output_shape=_i(2, 3, 12, 10),
    ),
    _of(
        "max_pool",
        lambda x: F.max_pool2d(x, 3, 2, 1),
        IMAGE,
        kernel_sizes=_i(3, 3),
        strides=_i(2, 2),
        pad_type="custom",
        pad=_i(1, 1, 1, 1),
    ),
    _of(
        "max_pool",
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-9.0), 2, 1),
        IMAGE,
        kernel_sizes=_i(2, 2),
        strides=_i(1, 1),
        pad_type="same",
    ),
    *[
        _of(
            "avg_pool",
            lambda x, e=exclude: F.avg_pool2d(x, 3, 2, 1, count_include_pad=not e),
            IMAGE,
            kernel_sizes=_i(3, 3),
            strides=_i(2, 2),
            pad_type="custom",
            pad=_i(1, 1, 1, 1),
            exclude_padding_from_average=exclude,
        )
        for exclude in (False, True)
    ],
    _of(
        "l2_pool",
        lambda x: F.lp_pool2d(x, 2.0, 2, 2),
        IMAGE,
        kernel_sizes=_i(2, 2),
        strides=_i(2, 2),
        pad_type="valid",
    ),
    _of("linear", lambda x: F.linear(x, MATRIX, torch.ones(5)), X, weight=MATRIX.numpy(), bias=_f(np.ones(5))),
    _of("matmul", lambda x, y: x @ y.mT, X, Y, keys="x y", transpose_y=True),
    _of("matmul", lambda x, y: x.mT @ y, X, Y, keys="x y", transpose_x=True),
    (
        "einsum",
        Case(
            lambda mb, x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
            lambda x, y: torch.einsum("nchw,nwhu->nchu", x, y),
            (IMAGE, noise(2, 5, 6, 3)),
        ),
    ),
    _of(
        "batch_norm",
        lambda x: F.batch_norm(x, torch.arange(4.0), torch.arange(1.0, 5), torch.ones(4) * 2, torch.ones(4), eps=0.1),
        IMAGE,
        mean=_f(range(4)),
        variance=_f(range(1, 5)),
        gamma=_f([2] * 4),
        beta=_f([1] * 4),
        epsilon=np.float32(0.1),
    ),
    _of("instance_norm", lambda x: F.instance_norm(x, eps=0.1), IMAGE, epsilon=np.float32(0.1)),
    _of(
        "layer_norm",
        lambda x: F.layer_norm(x, (4,), torch.arange(4.0), torch.ones(4), 0.1),
        X,
        axes=_i(-1),
        gamma=_f(range(4)),
        beta=_f([1] * 4),
        epsilon=np.float32(0.1),
    ),
    _of("layer_norm", lambda x: F.layer_norm(x.mT, (3,)).mT, X, axes=_i(1), epsilon=np.float32(1e-5)),
    _of(
        "l2_norm",
        lambda x: x / (x.square().sum((1, 2, 3), keepdim=True) + 0.1).sqrt(),
        IMAGE,
        epsilon=np.float32(0.1),
    ),
    _of(
        "local_response_norm",
        lambda x: F.local_response_norm(x, 3, 0.1, 0.6, 2.0),
        IMAGE,
        size=3,
        alpha=np.float32(0.1),
        beta=np.float32(0.6),
        k=np.float32(2),
    ),
    *[
        _of(name, right, source, axes=_i(0, 2), keep_dims=keep)
        for name, right, source, keep in [
            ("reduce_sum", lambda x: x.sum((0, 2)), X, False),
            ("reduce_mean", lambda x: x.mean((0, 2), keepdim=True), X, True),
            ("reduce_max", lambda x: x.amax((0, 2)), X, False),
            ("reduce_min", lambda x: x.amin((0, 2)), X, False),
            ("reduce_prod", lambda x: x.prod(2).prod(0), X, False),
            ("reduce_l1_norm", lambda x: x.abs().sum((0, 2)), X, False),
            ("reduce_l2_norm", lambda x: torch.linalg.vector_norm(x, dim=(0, 2)), X, False),
            ("reduce_sum_square", lambda x: x.square().sum((0, 2)), X, False),
            ("reduce_log_sum", lambda x: x.sum((0, 2)).log(), POSITIVE, False),
            ("reduce_log_sum_exp", lambda x: x.logsumexp((0, 2)), X, False),
        ]
    ],
    _of("reduce_argmax", lambda x: x.argmax(1).int(), X, axis=1, keep_dims=False),
    _of("reduce_argmin", lambda x: x.argmin(1, keepdim=True).int(), X, axis=1, keep_dims=True),
    (
        "scaled_dot_product_attention",
        Case(
            lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
            lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v,
            (X, Y, X + Y),
        ),
    ),
    (
        "lstm",
        Case(
            lambda mb, x: mb.lstm(
                x=x,
                initial_h=_f(np.zeros((3, 3))),
                initial_c=_f(np.zeros((3, 3))),
                weight_ih=LSTM[0].numpy(),
                weight_hh=LSTM[1].numpy(),
                bias=LSTM[2].numpy(),
                output_sequence=True,
            )[0],
            _lstm,
            (X,),
        ),
    ),
    (
        "gru",
        Case(
            lambda mb, x: mb.gru(
                x=x,
                initial_h=_f(np.zeros((3, 3))),
                weight_ih=LSTM[0][:9].numpy(),
                weight_hh=LSTM[1][:9].numpy(),
                output_sequence=True,
            )[0],
            _gru,
            (X,),
        ),
    ),
]
