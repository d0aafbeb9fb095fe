"""Constants of packages: every packing against coremltools' own reader and decoders, and a package by someone else."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecompile.errors import TargetError
from edgecompile.targets._mil_constexpr import decompressed
from edgecompile.targets._mil_read import coremltools, decode, read_package
from edgecompile.targets._mil_run import Interpreter


def draw(low: int, high: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(low, high, shape)


@pytest.fixture(scope="module")
def storage() -> Any:
    coremltools()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools.libmilstoragepython as module
    return module


@pytest.mark.parametrize(
    "kind", ["uint1", "uint2", "uint3", "uint4", "uint6", "uint8", "int4", "int8", "int16", "int32"]
)
def test_stored_integers_are_read_as_coremltools_wrote_them(storage: Any, kind: str, tmp_path: Path) -> None:
    width = int(kind.lstrip("uint"))
    low, high = (0, 2**width) if kind.startswith("u") else (-(2 ** (width - 1)), 2 ** (width - 1))
    values = draw(low, high, (37,)).astype({"i": np.int8, "u": np.uint8}[kind[0]] if width <= 8 else kind)
    path = tmp_path / "weight.bin"
    writer = storage._BlobStorageWriter(str(path))
    offset = getattr(writer, f"write_{kind}_data")(values)
    del writer
    data = np.fromfile(path, dtype="u1")
    size, start = (int(n) for n in np.frombuffer(data[offset + 8 : offset + 24].tobytes(), dtype="<u8"))
    found = decode(data[start : start + size], kind.upper(), (37,))
    assert found.tolist() == values.tolist()


def test_too_few_bytes_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 bytes where 9 numbers of UINT3 should be"):
        decode(b"abc", "UINT3", (9,))


def ops() -> tuple[Any, Any]:
    """coremltools' definitions for iOS 16 and 18, whose `decompress` is what its own passes compute with."""
    coremltools()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops
        from coremltools.converters.mil.mil.ops.defs.iOS18 import compression
    return constexpr_ops, compression


def test_compressed_constants_decode_as_coremltools_does() -> None:
    old, new = ops()
    data, zero = draw(-127, 128, (6, 4)).astype(np.int8), draw(-5, 5, (6,), 1).astype(np.int8)
    scale = np.linspace(0.01, 0.2, 6, dtype=np.float32)
    found = decompressed(
        "constexpr_affine_dequantize", {"quantized_data": data, "zero_point": zero, "scale": scale, "axis": np.int32(0)}
    )
    assert np.allclose(found[0], old.constexpr_affine_dequantize.decompress(data, zero, scale, 0))

    blocks, offset = np.linspace(0.01, 0.2, 12, dtype=np.float32).reshape(6, 2), draw(-5, 5, (6, 2), 2).astype(np.int8)
    given = {"data": data, "scale": blocks, "offset": offset}
    right = new.constexpr_blockwise_shift_scale.decompress(data, blocks, offset)
    assert np.allclose(decompressed("constexpr_blockwise_shift_scale", given)[0], right)

    indices = draw(0, 8, (6, 4), 3).astype(np.uint8)
    for shape, axis in (((1, 1, 8, 1), None), ((3, 2, 8, 1), None), ((3, 1, 8, 2), 0), ((1, 2, 8, 3), 1)):
        lut = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
        given = {"indices": indices, "lut": lut, **({} if axis is None else {"vector_axis": np.int32(axis)})}
        found = decompressed("constexpr_lut_to_dense", given)
        assert np.array_equal(found[0], new.constexpr_lut_to_dense.decompress(indices, lut, axis)), shape

    mask = draw(0, 2, (6, 4), 5).astype(np.uint8)
    values = np.arange(1, mask.sum() + 1, dtype=np.float32)
    right = new.constexpr_sparse_to_dense.decompress(values, mask)
    assert np.array_equal(decompressed("constexpr_sparse_to_dense", {"nonzero_data": values, "mask": mask})[0], right)
    packed = np.packbits(mask.reshape(-1), bitorder="little")
    given = {"nonzero_data": values, "mask": packed, "shape": np.array([6, 4], dtype=np.uint32)}
    assert np.array_equal(decompressed("constexpr_sparse_to_dense", given)[0], right)


def test_joint_forms_decode_as_coremltools_does() -> None:
    _, new = ops()
    mask = draw(0, 2, (6, 4), 5).astype(np.uint8)
    count = int(mask.sum())
    indices, lut = draw(0, 4, (count,), 6).astype(np.uint8), np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1) + 0.5
    right = new.constexpr_lut_to_sparse.decompress(mask, indices, lut, None)
    found = decompressed("constexpr_lut_to_sparse", {"indices_mask": mask, "indices_nonzero_data": indices, "lut": lut})
    assert all(np.array_equal(a, b) for a, b in zip(found, right, strict=True))
    data, scale = draw(-8, 8, (count,), 7).astype(np.int8), np.linspace(0.1, 0.6, 6, dtype=np.float32).reshape(6, 1)
    right = new.constexpr_sparse_blockwise_shift_scale.decompress(mask, data, scale, None)
    found = decompressed(
        "constexpr_sparse_blockwise_shift_scale", {"data_mask": mask, "nonzero_data": data, "scale": scale}
    )
    assert all(np.allclose(a, b) for a, b in zip(found, right, strict=True))


def test_a_package_that_apples_tools_made_of_tensorflow_equals_its_onnx_form() -> None:
    """basic-pitch ships one model as an .mlpackage and as ONNX: the oracle for reader and interpreter together."""
    spec = importlib.util.find_spec("basic_pitch")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("basic-pitch is not installed")
    import onnxruntime as ort

    folder = Path(next(iter(spec.submodule_search_locations))) / "saved_models" / "icassp_2022"
    sound = np.random.default_rng(0).standard_normal((1, 43844, 1)).astype(np.float32) * 0.1
    loaded = Interpreter(folder / "nmp.mlpackage")
    found = loaded.run({"input_2": torch.from_numpy(sound)})
    session = ort.InferenceSession(str(folder / "nmp.onnx"), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {session.get_inputs()[0].name: sound})
    for name, right in zip(("Identity_1", "Identity_2", "Identity"), (wanted[1], wanted[0], wanted[2]), strict=True):
        assert np.abs(found[name].numpy() - right).max() < 1e-5


def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    package = tmp_path / "old.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "m").write_bytes(b"")
    (package / "Manifest.json").write_text('{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "m"}}}')
    with pytest.raises(TargetError, match=r"^old.mlpackage: nothing where an ML Program was expected"):
        read_package(package)
