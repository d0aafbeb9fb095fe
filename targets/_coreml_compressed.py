"""Compressed weights for Core ML: markers in the graph that coremltools turns into `constexpr_*` as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgecompile.program import Program
from edgecompile.rewrite import add_weight, call, nodes, replace, weight
from edgecompile.targets._compressed import Integers, compressed, title

aten = torch.ops.aten
_SPARE = 0.75
"""A sparse form is used where it takes at most this much of the dense one."""
_READERS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.linear.default,
)
_OLD_BITS = (1, 2, 4, 6, 8)
"""Widths of an index before iOS 18, which has 3 too."""
_library: Any = torch.library.Library
_LIBRARY = _library("edgecompile_coreml", "DEF")
_LIBRARY.define("integers(Tensor data, Tensor scale, Tensor? zero, int bits) -> Tensor")
_LIBRARY.define("palette(Tensor indices, Tensor lut) -> Tensor")
_LIBRARY.define("sparse(Tensor values) -> Tensor")
_LIBRARY.impl("integers", lambda data, *_: data.new_empty(data.shape, dtype=torch.float32), "Meta")
_LIBRARY.impl("palette", lambda indices, _: indices.new_empty(indices.shape, dtype=torch.float32), "Meta")
_LIBRARY.impl("sparse", torch.empty_like, "Meta")
_OPS = torch.ops.edgecompile_coreml


def reasons(program: Program, ios: str) -> list[str]:
    """What the compressed weights need and this system does not have."""
    found = []
    for one in compressed(program) if ios != "18" else ():
        where = f"{title(one)}: "
        if isinstance(one, Integers):
            if one.grouped:
                found.append(where + "scales of groups need iOS 18: coreml(ios=18), or group=0")
            elif one.bits == 4:
                found.append(where + "4-bit weights need iOS 18: coreml(ios=18), or dtype=int8")
        elif one.rows > 1:
            found.append(where + "a palette for each group of channels needs iOS 18: coreml(ios=18), or group=0")
    return found


def marked(program: Program) -> Program:
    """The program with a marker where a compressed or mostly zero weight is made; itself when there is none."""
    found = compressed(program)
    if not found and not any(_zeros(program, n) for n in nodes(program, *_READERS)):
        return program
    own = program.clone()
    for one in compressed(own):
        if isinstance(one, Integers):
            parts = {"data": one.data, "scale": one.scale} | ({} if one.zero is None else {"zero": one.zero})
            made = [add_weight(own, f"{one.node.name}_{k}", v.contiguous(), one.node) for k, v in parts.items()]
            args: tuple[Any, ...] = (*made, *[None] * (3 - len(made)), one.bits)
            replace(own, one.node, call(own, _OPS.integers.default, args, one.node))
        else:
            parts = {"indices": one.indices, "lut": one.lut}
            made = [add_weight(own, f"{one.node.name}_{k}", v.contiguous(), one.node) for k, v in parts.items()]
            replace(own, one.node, call(own, _OPS.palette.default, tuple(made), one.node))
    for node in nodes(own, *_READERS):
        if _zeros(own, node):
            source = node.args[1]
            node.update_arg(1, call(own, _OPS.sparse.default, (source,), node))
    return own.retraced()


def _zeros(program: Program, node: torch.fx.Node) -> bool:
    value = weight(program, node.args[1]) if len(node.args) > 1 else None
    return value is not None and value.is_floating_point() and value.dim() > 1 and _pays(value == 0, 16)


def _pays(zeros: Any, bits: int) -> bool:
    """Whether a bit a number and `bits` for each that is not zero are clearly less than `bits` for all."""
    kept = zeros.size if isinstance(zeros, np.ndarray) else zeros.numel()
    nonzero = kept - int(zeros.sum())
    return nonzero > 0 and nonzero * bits + kept <= _SPARE * kept * bits


def register() -> None:
    """Tell coremltools how the markers are written; once a process."""
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as registry

    for name, translate in {"integers": _integers, "palette": _palette, "sparse": _sparse}.items():
        if registry.get_func(f"edgecompile_coreml::{name}") is not None:
            continue

        def translated(context: Any, node: Any, translate: Any = translate) -> None:
            given = [None if v is None else v.val for v in ops._get_inputs(context, node)]
            context.add(translate(given, node.name))

        translated.__name__ = f"edgecompile_coreml_{name}"
        registry.register_func(translated, [f"edgecompile_coreml::{name}", f"edgecompile_coreml.{name}"])


def _new() -> bool:
    """Whether the package may hold operations of iOS 18."""
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
    from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with

    return bool(is_current_opset_version_compatible_with(AvailableTarget.iOS18))


def _narrow(value: Any, kind: str) -> Any:
    """An array that coremltools stores in so few bits."""
    from coremltools.converters.mil.mil import types

    return np.asarray(value).astype(types.nptype_from_builtin(types.string_to_builtin(kind)))


def _integers(given: list[Any], name: str) -> Any:
    from coremltools.converters.mil.frontend import _utils
    from coremltools.converters.mil.mil import Builder as mb

    data, scale, zero, bits = given[0].astype(np.int8), given[1].astype(np.float32), given[2], int(given[3])
    if not _new():
        offset = np.zeros(scale.shape, np.int8) if zero is None else zero.astype(np.int8)
        return _utils._construct_constexpr_dequant_op(data, offset, scale, name=name)
    kind = f"int{bits}"
    if zero is None and _pays(data == 0, bits):
        mask = data != 0
        kept, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=_narrow(mask, "uint1"), nonzero_data=_narrow(data[mask], kind), scale=scale, name=f"{name}_values"
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=kept, name=name)
    more = {} if zero is None else {"offset": _narrow(zero, kind)}
    return mb.constexpr_blockwise_shift_scale(data=_narrow(data, kind), scale=scale, name=name, **more)


def _palette(given: list[Any], name: str) -> Any:
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.optimize import _utils

    indices, lut = given[0].astype(np.uint8), given[1].astype(np.float32)
    widths = (*_OLD_BITS, 3) if _new() else _OLD_BITS
    bits = min(w for w in widths if 2**w >= lut.shape[-1])
    lut = np.concatenate([lut, np.repeat(lut[..., -1:], 2**bits - lut.shape[-1], -1)], -1)
    if not _new():
        packed = _utils.pack_elements_into_bits(indices, bits)
        shape = np.array(indices.shape, np.uint32)
        return mb.constexpr_lut_to_dense(indices=packed, lut=lut.reshape(-1), shape=shape, name=name)
    mask = _chosen(indices, lut) != 0
    lut = lut[..., None]
    if _pays(~mask, bits):
        kept, values = mb.constexpr_lut_to_sparse(
            indices_mask=_narrow(mask, "uint1"),
            indices_nonzero_data=_narrow(indices[mask], f"uint{bits}"),
            lut=lut,
            name=f"{name}_values",
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=kept, name=name)
    return mb.constexpr_lut_to_dense(indices=_narrow(indices, f"uint{bits}"), lut=lut, name=name)


def _chosen(indices: Any, lut: Any) -> Any:
    """The numbers of a palette whose first axis alone counts tables."""
    tables = lut.reshape(lut.shape[0], -1)
    rows = np.arange(indices.shape[0]) // (indices.shape[0] // lut.shape[0])
    return tables[rows.reshape(-1, *[1] * (indices.ndim - 1)), indices.astype(np.int64)]


def _sparse(given: list[Any], name: str) -> Any:
    from coremltools.converters.mil.mil import Builder as mb

    value = given[0].astype(np.float32)
    mask = value != 0
    if _new():
        return mb.constexpr_sparse_to_dense(nonzero_data=value[mask], mask=_narrow(mask, "uint1"), name=name)
    packed = np.packbits(mask.reshape(-1), bitorder="little")
    shape = np.array(value.shape, np.uint32)
    return mb.constexpr_sparse_to_dense(nonzero_data=value[mask], mask=packed, shape=shape, name=name)
