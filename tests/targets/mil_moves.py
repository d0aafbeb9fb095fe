"""The rest of the cases of `mil_cases`: operations that move numbers, and those that resample images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.targets.mil_cases import IMAGE, WHOLE, Case, X, Y, _f, _i, _of, noise


def _numpy(x: Tensor) -> Any:
    return x.numpy()


def _scatter(mode: str) -> tuple[str, Case]:
    ones = np.ones((2, 2, 4), dtype=np.float32)

    def right(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, [2, 0]] = x[:, [2, 0]] + 1 if mode == "add" else torch.ones(())
        return x

    return _of("scatter", right, X, keys="data", indices=_i(2, 0), updates=ones, axis=1, mode=mode)


def _along(x: Tensor) -> Tensor:
    return x.scatter_add(2, WHOLE[:, :, None].long(), torch.ones(2, 3, 1))


def _nd(x: Tensor) -> Tensor:
    x = x.clone()
    x[1, 2] += 1
    x[0, 1] += 1
    return x


def _updated(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0:2, 1] = 7
    return x


MOVES = [
    _of("reshape", lambda x: x.reshape(2, 2, 6), X, shape=_i(2, 2, -1)),
    _of("reshape", lambda x: x.reshape(2, 3, 4), X, shape=_i(0, 0, -1)),
    _of("transpose", lambda x: x.permute(2, 0, 1), X, perm=_i(2, 0, 1)),
    _of("expand_dims", lambda x: x[:, None, :, :, None], X, axes=_i(1, -1)),
    _of("squeeze", lambda x: x[0, :, :], X[:1], axes=_i(0)),
    _of("flatten2d", lambda x: x.reshape(6, 4), X, axis=2),
    _of("shape", lambda x: torch.tensor(x.shape, dtype=torch.int32), X),
    ("concat", Case(lambda mb, x, y: mb.concat(values=(x, y), axis=1), lambda x, y: torch.cat([x, y], 1), (X, Y))),
    (
        "concat",
        Case(
            lambda mb, x, y: mb.concat(values=(x, y), axis=1, interleave=True),
            lambda x, y: torch.stack([x, y], 2).reshape(2, 6, 4),
            (X, Y),
        ),
    ),
    ("split", Case(lambda mb, x: mb.split(x=x, num_splits=2, axis=2), lambda x: x.chunk(2, 2), (X,))),
    ("split", Case(lambda mb, x: mb.split(x=x, split_sizes=_i(1, 3), axis=2), lambda x: x.split([1, 3], 2), (X,))),
    ("stack", Case(lambda mb, x, y: mb.stack(values=(x, y), axis=1), lambda x, y: torch.stack([x, y], 1), (X, Y))),
    _of("tile", lambda x: x.repeat(1, 2, 3), X, reps=_i(1, 2, 3)),
    _of(
        "slice_by_index",
        lambda x: x[:, 1:, 1:5:2, -2],
        IMAGE,
        begin=_i(0, 1, 1, -2),
        end=_i(0, 0, 5, 0),
        stride=_i(1, 1, 2, 1),
        begin_mask=[True, False, False, False],
        end_mask=[True, True, False, False],
        squeeze_mask=[False, False, False, True],
    ),
    _of(
        "slice_by_index",
        lambda x: x.flip(2),
        X,
        begin=_i(0, 0, 3),
        end=_i(2, 3, 0),
        stride=_i(1, 1, -1),
        end_mask=[False, False, True],
    ),
    _of("slice_by_size", lambda x: x[:, 1:, 1:3], X, begin=_i(0, 1, 1), size=_i(2, -1, 2)),
    _of(
        "slice_update",
        _updated,
        X,
        update=_f(np.full((2, 2, 1), 7)),
        begin=_i(0, 0, 1),
        end=_i(2, 2, 2),
    ),
    _of(
        "gather",
        lambda x: torch.from_numpy(np.take(_numpy(x), [[2, 0], [-1, 1]], 1)),
        X,
        indices=np.int32([[2, 0], [-1, 1]]),
        axis=1,
    ),
    _of(
        "gather",
        lambda x: torch.stack([x[i][WHOLE[i].long()[:2] % 3] for i in (0, 1)]),
        X,
        indices=(WHOLE[:, :2] % 3).numpy(),
        axis=1,
        batch_dims=1,
    ),
    _of("gather", lambda x: x[:, 1], X, indices=np.int32(1), axis=1),
    _of(
        "gather_along_axis",
        lambda x: x.gather(2, WHOLE[:, :, None].long()),
        X,
        indices=WHOLE[:, :, None].numpy(),
        axis=2,
    ),
    _of("gather_nd", lambda x: torch.stack([x[1, 2], x[0, 1]]), X, indices=np.int32([[1, 2], [0, 1]])),
    _of(
        "gather_nd",
        lambda x: torch.stack([x[0, 2, 1], x[1, 1, 3]]),
        X,
        indices=np.int32([[2, 1], [1, 3]]),
        batch_dims=1,
    ),
    _scatter("add"),
    _scatter("update"),
    _of(
        "scatter_along_axis",
        _along,
        X,
        keys="data",
        indices=WHOLE[:, :, None].numpy(),
        updates=_f(np.ones((2, 3, 1))),
        axis=2,
        mode="add",
    ),
    _of("scatter_nd", _nd, X, keys="data", indices=np.int32([[1, 2], [0, 1]]), updates=_f(np.ones((2, 4))), mode="add"),
    _of("pad", lambda x: F.pad(x, (1, 2, 0, 1), value=3.0), X, pad=_i(0, 1, 1, 2), constant_val=np.float32(3)),
    _of("pad", lambda x: F.pad(x, (1, 2), mode="reflect"), X, pad=_i(1, 2), mode="reflect"),
    _of("pad", lambda x: F.pad(x, (1, 2), mode="replicate"), X, pad=_i(1, 2), mode="replicate"),
    _of("reverse", lambda x: x.flip(0, 2), X, axes=_i(0, 2)),
    ("topk", Case(lambda mb, x: mb.topk(x=x, k=2, axis=1), lambda x: (x.topk(2, 1)[0], x.topk(2, 1)[1].int()), (X,))),
    ("topk", Case(lambda mb, x: mb.topk(x=x, k=1, axis=2, ascending=True)[0], lambda x: x.topk(1, 2, False)[0], (X,))),
    _of("argsort", lambda x: x.argsort(1, descending=True).int(), X, axis=1, ascending=False),
    _of("argsort", lambda x: x.argsort(2).int(), X, axis=2, ascending=True),
    _of("cumsum", lambda x: x.cumsum(1), X, axis=1),
    _of("cumsum", lambda x: x.flip(1).cumsum(1).flip(1) - x, X, axis=1, exclusive=True, reverse=True),
    (
        "range_1d",
        Case(
            lambda mb, x: mb.range_1d(start=np.int32(1), end=mb.squeeze(x=x), step=np.int32(2)),
            lambda x: torch.arange(1, 8, 2).int(),
            (torch.tensor([8], dtype=torch.int32),),
        ),
    ),
    _of("one_hot", lambda x: F.one_hot(x.long(), 4).int(), WHOLE, keys="indices", one_hot_vector_size=4),
    _of(
        "one_hot",
        lambda x: F.one_hot(x.long(), 4).int().movedim(-1, 1),
        WHOLE,
        keys="indices",
        one_hot_vector_size=4,
        axis=1,
    ),
    _of("non_zero", lambda x: x.nonzero().int(), WHOLE),
    (
        "fill",
        Case(
            lambda mb, x: mb.fill(shape=mb.shape(x=x), value=np.float32(2.5)),
            lambda x: torch.full((2, 3, 4), 2.5),
            (X,),
        ),
    ),
    _of("fill_like", lambda x: torch.full_like(x, 2.5), X, keys="ref_tensor", value=np.float32(2.5)),
    _of("crop", lambda x: x[:, :, 1:5, 0:3], IMAGE, crop_height=_i(1, 1), crop_width=_i(0, 2)),
    _of("band_part", lambda x: x.triu(-1), X, lower=1, upper=-1),
    _of("band_part", lambda x: x.tril(0), X, lower=-1, upper=0),
    _of("sliding_windows", lambda x: torch.stack([x[:, :, 0:2], x[:, :, 2:4]], 2), X, axis=2, size=2, stride=2),
    _of("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), IMAGE, upscale_factor=2),
    _of("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), IMAGE[:, :, :, :4], downscale_factor=np.uint32(2)),
    _of(
        "depth_to_space",
        lambda x: (
            torch.stack([x[:, 0], x[:, 1], x[:, 2], x[:, 3]], -1)
            .reshape(2, 1, 6, 5, 2, 2)
            .permute(0, 1, 2, 4, 3, 5)
            .reshape(2, 1, 12, 10)
        ),
        IMAGE,
        block_size=2,
    ),
    _of(
        "space_to_depth",
        lambda x: torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1),
        IMAGE[:, :, :, :4],
        block_size=2,
    ),
]


def _default(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with points at `i * size / wanted`: TensorFlow's old way, written out."""
    found = torch.zeros(*x.shape[:2], height, width)
    for i in range(height):
        for j in range(width):
            a, b = min(i * x.shape[2] / height, x.shape[2] - 1), min(j * x.shape[3] / width, x.shape[3] - 1)
            r, c = int(a), int(b)
            r1, c1 = min(r + 1, x.shape[2] - 1), min(c + 1, x.shape[3] - 1)
            top = x[:, :, r, c] * (1 - b + c) + x[:, :, r, c1] * (b - c)
            low = x[:, :, r1, c] * (1 - b + c) + x[:, :, r1, c1] * (b - c)
            found[:, :, i, j] = top * (1 - a + r) + low * (a - r)
    return found


SIZES = {"target_size_height": 9, "target_size_width": 7}
GRID = noise(2, 3, 3, 2, seed=11).tanh()
RESIZES = [
    _of(
        "resize_bilinear",
        lambda x: F.interpolate(x, (9, 7), mode="bilinear"),
        IMAGE,
        sampling_mode="UNALIGN_CORNERS",
        **SIZES,
    ),
    _of(
        "resize_bilinear",
        lambda x: F.interpolate(x, (9, 7), mode="bilinear", align_corners=True),
        IMAGE,
        sampling_mode="STRICT_ALIGN_CORNERS",
        **SIZES,
    ),
    _of("resize_bilinear", lambda x: _default(x, 9, 7), IMAGE, sampling_mode="DEFAULT", **SIZES),
    _of("resize_nearest_neighbor", lambda x: F.interpolate(x, (9, 7)), IMAGE, **SIZES),
    _of(
        "upsample_nearest_neighbor",
        lambda x: F.interpolate(x, scale_factor=(2, 3)),
        IMAGE,
        scale_factor_height=2,
        scale_factor_width=3,
    ),
    _of(
        "upsample_bilinear",
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        IMAGE,
        scale_factor_height=2,
        scale_factor_width=2,
        align_corners=False,
    ),
    _of(
        "upsample_bilinear",
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        IMAGE,
        scale_factor_height=2,
        scale_factor_width=2,
        align_corners=True,
    ),
    _of(
        "resize",
        lambda x: F.interpolate(x, (9, 7), mode="bilinear"),
        IMAGE,
        shape=_i(9, 7),
        resized_dims=np.uint32(2),
        sampling_mode="UNALIGN_CORNERS",
    ),
    _of(
        "resize",
        lambda x: F.interpolate(x, (9, 7)),
        IMAGE,
        shape=_i(9, 7),
        resized_dims=np.uint32(2),
        interpolation_mode="NEAREST_NEIGHBOR",
    ),
    *[
        _of(
            "resample",
            lambda x, g, a=align, m=mode: F.grid_sample(x, g, "bilinear", m, a),
            IMAGE,
            GRID,
            keys="x coordinates",
            sampling_mode="bilinear",
            padding_mode={"zeros": "constant", "border": "border"}[mode],
            padding_value=np.float32(0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=align,
        )
        for align, mode in ((True, "zeros"), (False, "border"))
    ],
]
