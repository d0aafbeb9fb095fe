"""Hostile ONNX, safetensors, numpy and odd files: each made here, with its rule or its error text."""

from __future__ import annotations

import io
import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompile.errors import InputError, Refused
from edgecompile.ingest import Limits, vet
from tests.ingest import makers

Make = Callable[[Path], Path]
"""From an empty folder to the model in it."""


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def _raw(data: bytes, name: str = "model.onnx") -> Make:
    return lambda folder: makers.write(folder / name, data)


def _in_graph(fields: bytes) -> Make:
    """A model whose graph has these bytes."""
    return _raw(b"\x08\x0a\x3a" + _varint(len(fields)) + fields + b"\x42\x02\x10\x12")


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _graph(*nodes: onnx.NodeProto, weights: list[TensorProto] | None = None) -> Make:
    return lambda folder: makers.write(folder / "model.onnx", makers.graph_of(list(nodes), weights))


def _int64(name: str, values: list[int], typed: bool = False) -> TensorProto:
    return (
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        if typed
        else numpy_helper.from_array(np.array(values, np.int64), name)
    )


def _external(location: str, change: Callable[[Path], object] | None = None, **entries: str) -> Make:
    """A model whose weight is `location`, beside a good `w.bin` of 16 bytes."""

    def make(folder: Path) -> Path:
        makers.write(folder / "w.bin", bytes(16))
        if change:
            change(folder)
        return makers.external_model(folder, {"location": location, **entries})

    return make


def _linked_folder(folder: Path) -> None:
    (folder / "real").mkdir()
    makers.write(folder / "real" / "w.bin", bytes(16))
    (folder / "sub").symlink_to("real")


def _overlapping(folder: Path) -> Path:
    makers.write(folder / "w.bin", bytes(32))
    return makers.external_model(
        folder,
        {"location": "w.bin", "offset": "0", "length": "16"},
        also={"location": "w.bin", "offset": "8", "length": "16"},
    )


def _nested_if(depth: int) -> Make:
    """Written byte by byte: protobuf itself reads no more than about 30 levels."""
    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Relu")
    for _ in range(depth):
        attribute = _field(1, b"then_branch") + _field(6, _field(1, node))
        node = _field(1, b"c") + _field(2, b"y") + _field(4, b"If") + _field(5, attribute)
    return _in_graph(_field(1, node))


def _functions(*bodies: tuple[str, list[str]]) -> Make:
    """A model with functions of domain `d`, given as (name, names of the functions that it calls)."""

    def make(folder: Path) -> Path:
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
        node = helper.make_node(bodies[0][0], ["x"], ["y"], domain="d")
        model = onnx.ModelProto.FromString(makers.graph_of([node]))
        for name, calls in bodies:
            nodes = [helper.make_node(callee, ["x"], [f"y{i}"], domain="d") for i, callee in enumerate(calls)]
            model.functions.append(helper.make_function("d", name, ["x"], ["y0"], nodes, opsets))
        return makers.write(folder / "model.onnx", model.SerializeToString())

    return make


def _loop(trips: int, typed: bool = False) -> Make:
    y = helper.make_tensor_value_info("c2", TensorProto.BOOL, [])
    body = helper.make_graph([helper.make_node("Identity", ["c1"], ["c2"])], "body", [], [y])
    node = helper.make_node("Loop", ["n", "c"], ["y"], body=body)
    return _graph(node, weights=[_int64("n", [trips], typed)])


def _many_nodes(count: int) -> Make:
    def make(folder: Path) -> Path:
        node = b"\x0a\x06\x0a\x01x\x12\x01y"[2:]
        graph = (b"\x0a" + bytes([len(node)]) + node) * count
        return makers.write(
            folder / "model.onnx",
            b"\x08\x0a" + b"\x3a" + _varint(len(graph)) + graph + b"\x42\x04\x0a\x00\x10\x12",
        )

    return make


def _tile_chain() -> Make:
    nodes = [helper.make_node("Tile", [f"t{i}", "r"], [f"t{i + 1}"]) for i in range(4)]
    return _graph(*nodes, weights=[numpy_helper.from_array(np.ones(2, np.float32), "t0"), _int64("r", [1000])])


REFUSED: dict[str, tuple[str, Make]] = {
    "parent folder": ("EC-IN-002", _external("../w.bin")),
    "absolute": ("EC-IN-002", _external("/etc/passwd")),
    "device": ("EC-IN-002", _external("/dev/zero")),
    "linked folder": ("EC-IN-002", _external("sub/w.bin", _linked_folder)),
    "backslash": ("EC-IN-002", _external("a\\w.bin")),
    "NUL": ("EC-IN-002", _external("w.bin\0x")),
    "empty name": ("EC-IN-002", _external("")),
    "dot": ("EC-IN-002", _external("..")),
    "symbolic link": ("EC-IN-003", _external("l.bin", lambda f: (f / "l.bin").symlink_to("w.bin"))),
    "hard link": ("EC-IN-003", _external("h.bin", lambda f: os.link(f / "w.bin", f / "h.bin"))),
    "pipe": ("EC-IN-003", _external("p.bin", lambda f: os.mkfifo(f / "p.bin"))),
    "folder": ("EC-IN-003", _external("d.bin", lambda f: (f / "d.bin").mkdir())),
    "the model itself": ("EC-IN-003", _external("model.onnx")),
    "negative offset": ("EC-IN-004", _external("w.bin", offset="-4")),
    "huge offset": ("EC-IN-004", _external("w.bin", offset=str(1 << 60))),
    "huge length": ("EC-IN-004", _external("w.bin", length=str(1 << 60))),
    "short length": ("EC-IN-004", _external("w.bin", length="3")),
    "short file": ("EC-IN-004", _external("s.bin", lambda f: makers.write(f / "s.bin", bytes(3)))),
    "overlapping tensors": ("EC-IN-004", _overlapping),
    "a million nodes": ("EC-IN-005", _many_nodes(1_000_000)),
    "functions that double": (
        "EC-IN-005",
        _functions(*((f"f{i}", [f"f{i + 1}"] * 2) for i in range(20)), ("f20", ["Relu"])),
    ),
    "33 nested If": ("EC-IN-006", _nested_if(33)),
    "ConstantOfShape": (
        "EC-IN-007",
        _graph(helper.make_node("ConstantOfShape", ["s"], ["y"]), weights=[_int64("s", [1 << 20] * 3)]),
    ),
    "ConstantOfShape of a Constant": (
        "EC-IN-007",
        _graph(
            helper.make_node("Constant", [], ["s"], value_ints=[1 << 40]),
            helper.make_node("ConstantOfShape", ["s"], ["y"]),
        ),
    ),
    "ConstantOfShape of a Constant tensor": (
        "EC-IN-007",
        _graph(
            helper.make_node("Constant", [], ["s"], value=_int64("v", [1 << 40], typed=True)),
            helper.make_node("ConstantOfShape", ["s"], ["y"]),
        ),
    ),
    "Expand": (
        "EC-IN-007",
        _graph(helper.make_node("Expand", ["x", "s"], ["y"]), weights=[_int64("s", [1 << 40], typed=True)]),
    ),
    "Tile chain": ("EC-IN-007", _tile_chain()),
    "2^40 sparse": ("EC-IN-007", lambda f: _sparse(f, [1 << 20, 1 << 20])),
    "2^60 elements": (
        "EC-IN-007",
        _graph(weights=[TensorProto(name="w", data_type=1, dims=[1 << 30, 1 << 30])]),
    ),
    "Loop 2^60": ("EC-IN-008", _loop(1 << 60)),
    "Loop 2^60 in typed data": ("EC-IN-008", _loop(1 << 60, typed=True)),
    "long name": ("EC-IN-009", _graph(helper.make_node("Relu", ["x" * 5000], ["y"]))),
    "1 MB tensor name": ("EC-IN-009", _graph(weights=[_int64("n" * (1 << 20), [1])])),
    "long external name": ("EC-IN-009", _external("w" * 5000)),
}


def _sparse(folder: Path, dims: list[int]) -> Path:
    model = onnx.ModelProto.FromString(makers.graph_of([helper.make_node("Relu", ["x"], ["y"])]))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "v"))
    sparse.indices.CopyFrom(_int64("i", [0]))
    sparse.dims.extend(dims)
    return makers.write(folder / "model.onnx", model.SerializeToString())


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    rule, make = REFUSED[case]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    start = time.process_time()
    with pytest.raises(Refused) as caught:
        vet(path)
    assert makers.soon(start)
    assert (caught.value.rule, caught.value.exit_code) == (rule, 8)
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def _changed(**fields: Any) -> Make:
    def make(folder: Path) -> Path:
        model = makers.onnx_model()
        for name, value in fields.items():
            setattr(model, name, value)
        return makers.write(folder / "model.onnx", model.SerializeToString())

    return make


def _opset(version: int) -> Make:
    def make(folder: Path) -> Path:
        model = makers.onnx_model()
        model.opset_import[0].version = version
        return makers.write(folder / "model.onnx", model.SerializeToString())

    return make


def _edit(change: Callable[[onnx.ModelProto], object]) -> Make:
    def make(folder: Path) -> Path:
        model = makers.onnx_model()
        change(model)
        return makers.write(folder / "model.onnx", model.SerializeToString())

    return make


def _in_tensor(fields: bytes) -> Make:
    return _in_graph(_field(5, fields))


def _header(header: object, data: bytes = b"", name: str = "w.safetensors") -> Make:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return _raw(len(text).to_bytes(8, "little") + text + data, name)


def _entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data


_PLAIN_HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n"

DAMAGED: dict[str, tuple[str, Make]] = {
    "empty": ("empty file", _raw(b"")),
    "one byte": ("truncated or corrupt", _raw(b"\x08")),
    "text": ("truncated or corrupt", _raw(b"hello, this is text\n" * 10)),
    "missing external file": (
        "external data file 'gone.bin' is missing; put it beside the model",
        _external("gone.bin"),
    ),
    "unknown external key": ("unknown external data key '__class__'", _external("w.bin", __class__="x")),
    "external offset": ("external data offset 'two' is not a number", _external("w.bin", offset="two")),
    "external key twice": ("external data key 'location' occurs twice", lambda f: _twice(f)),
    "data inside and outside": ("data both inside and outside the file", lambda f: _both(f)),
    "two initialisers": (
        "initializer 'w' is defined twice",
        _edit(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
    ),
    "two node outputs": (
        "node output 'y' is defined twice",
        _edit(lambda m: m.graph.node.append(m.graph.node[-1])),
    ),
    "two inputs": (
        "graph input 'x' is defined twice",
        _edit(lambda m: m.graph.input.append(m.graph.input[0])),
    ),
    "opset 0": ("opset 0 is not known", _opset(0)),
    "opset 99": ("opset 99 is not known", _opset(99)),
    "no opset": ("no opset is declared", _edit(lambda m: m.ClearField("opset_import"))),
    "IR version 99": ("IR version 99 is not known", _changed(ir_version=99)),
    "no graph": ("0 graphs in it", _raw(b"\x08\x0a")),
    "two graphs": ("2 graphs in it", _raw(b"\x08\x0a\x3a\x00\x3a\x00")),
    "recursive functions": ("calls itself", _functions(("f", ["g"]), ("g", ["f"]))),
    "two functions": ("function 'f' is defined twice", _functions(("f", ["Relu"]), ("f", ["Relu"]))),
    "training": ("holds training information", _edit(lambda m: m.training_info.add())),
    "larger than declared": (
        "it declares 432 bytes and holds 431",
        _edit(lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(431))),
    ),
    "no data": (
        "it declares 4 elements and holds 0 bytes",
        _graph(weights=[TensorProto(name="w", data_type=1, dims=[4])]),
    ),
    "negative size": ("bad dimensions", _graph(weights=[TensorProto(name="w", data_type=1, dims=[-1])])),
    "unknown dtype": (
        "unknown data type 77",
        _graph(weights=[TensorProto(name="w", data_type=77, dims=[1])]),
    ),
    "wrong field type": ("not an ONNX model", _raw(b"\x0a\x02ab")),
    "wrong graph field": ("not an ONNX graph", _in_graph(b"\x08\x01")),
    "wrong node field": ("not an ONNX node", _in_graph(_field(1, b"\x08\x01"))),
    "wrong attribute field": ("not an ONNX attribute", _in_graph(_field(1, _field(5, b"\x28\x01")))),
    "two graphs in an attribute": (
        "two graphs in one attribute",
        _in_graph(_field(1, _field(5, _field(6, b"") * 2))),
    ),
    "wrong tensor field": ("not an ONNX tensor", _in_tensor(b"\x48\x01")),
    "tensor field twice": ("a tensor field occurs twice", _in_tensor(b"\x10\x01\x10\x01")),
    "name is no text": ("a name is not UTF-8", _in_graph(_field(1, _field(4, b"\xff\xfe")))),
    "field 0": ("not a protobuf message", _raw(b"\x02\x01a")),
    "group": ("not a protobuf message", _raw(b"\x0b\x0c")),
    "long varint": ("a number is too long", _raw(b"\x08" + b"\xff" * 11)),
    "cut varint": ("a number is cut off", _raw(b"\x08\xff")),
    "cut length": ("a number is cut off", _raw(b"\x12")),
    "field too long": ("a field is longer than its message", _raw(b"\x12\x7fab")),
    "safetensors hole": (
        "leaves a hole or overlaps",
        _header({"a": _entry(), "b": _entry(offsets=(5, 9))}, bytes(9)),
    ),
    "safetensors overlap": (
        "leaves a hole or overlaps",
        _header({"a": _entry(), "b": _entry(offsets=(2, 6))}, bytes(6)),
    ),
    "safetensors short": ("bytes and has", _header({"a": _entry()}, bytes(3))),
    "safetensors key twice": (
        "key 'a' occurs twice",
        _header(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
    ),
    "safetensors dtype": ("unknown dtype 'F99'", _header({"a": _entry("F99")}, bytes(4))),
    "safetensors size": ("declared larger or smaller", _header({"a": _entry(shape=(2,))}, bytes(4))),
    "safetensors shape": ("bad shape or bad offsets", _header({"a": _entry(shape=(-1,))}, bytes(4))),
    "safetensors boolean shape": (
        "bad shape or bad offsets",
        _header({"a": _entry(shape=(True,))}, bytes(4)),
    ),
    "safetensors offsets": ("bad shape or bad offsets", _header({"a": _entry(offsets=(4, 0))}, bytes(4))),
    "safetensors keys": ("not described as safetensors does", _header({"a": {**_entry(), "x": 1}}, bytes(4))),
    "safetensors metadata": ("its metadata is not text", _header({"__metadata__": {"a": 1}})),
    "safetensors list": ("its header is not an object", _header(b"[]", name="w.safetensors")),
    "safetensors no JSON": ("its header is not JSON", _header(b"{x}")),
    "safetensors header too long": (
        "it ends too early",
        _raw((999).to_bytes(8, "little") + b"{}", "w.safetensors"),
    ),
    "npy magic": ("not a .npy file", _raw(b"nonsense", "x.npy")),
    "npy version": ("not a numpy array", _raw(_npy(_PLAIN_HEADER, bytes(4), 9), "x.npy")),
    "npy cut": ("its header ends too early", _raw(_npy(_PLAIN_HEADER)[:30], "x.npy")),
    "npy short": ("it declares 4 bytes of data and has 3", _raw(_npy(_PLAIN_HEADER, bytes(3)), "x.npy")),
    "npy code": ("not a numpy header", _raw(_npy("__import__('os').system('true')"), "x.npy")),
    "npy nesting": ("not a numpy header", _raw(_npy("(" * 5000 + ")" * 5000), "x.npy")),
    "npy minus": ("not a numpy header", _raw(_npy("-" * 9000 + "1"), "x.npy")),
    "npy keys": ("not a numpy header", _raw(_npy("{'descr': '<f4'}"), "x.npy")),
    "npy shape": ("not a numpy header", _raw(_npy(_PLAIN_HEADER.replace("(1,)", "(-1,)")), "x.npy")),
    "npy dtype": ("dtype <q9 is not supported", _raw(_npy(_PLAIN_HEADER.replace("<f4", "<q9")), "x.npy")),
    "npz member": (
        "it declares 4 bytes of data and has 3",
        _raw(makers.zipped({"x.npy": _npy(_PLAIN_HEADER, bytes(3))}), "x.npz"),
    ),
    "npz inflate": ("does not inflate", lambda f: _broken_npz(f)),
    "npz shorter": ("is shorter than declared", lambda f: _short_npz(f)),
    "HDF5": ("an HDF5 (Keras) file; export it to ONNX", _raw(b"\x89HDF\r\n\x1a\n" + bytes(99), "m.h5")),
    "gzip": ("a gzip file; unpack it first", _raw(b"\x1f\x8b\x08" + bytes(99))),
    "program": ("a program, not a model", _raw(b"\x7fELF" + bytes(99))),
    "ORT": ("an ONNX Runtime .ort file", _raw(bytes(4) + b"ORTM" + bytes(99))),
    "not a .pt file": ("not a .pt file", _raw(b"weights", "w.pt")),
}


def _twice(folder: Path) -> Path:
    path = makers.external_model(folder, {"location": "w.bin"})
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="w.bin")
    return makers.write(path, model.SerializeToString())


def _both(folder: Path) -> Path:
    path = makers.external_model(folder, {"location": "w.bin"})
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].raw_data = bytes(16)
    return makers.write(path, model.SerializeToString())


def _deflated() -> bytearray:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.random.default_rng(0).normal(size=9999))
    return bytearray(buffer.getvalue())


def _broken_npz(folder: Path) -> Path:
    data = _deflated()
    start = data.index(b"x.npy") + 5 + 20  # the local header's name and its zip64 field
    data[start : start + 4] = b"\xff\xff\xff\xff"
    return makers.write(folder / "x.npz", bytes(data))


def _short_npz(folder: Path) -> Path:
    """A deflated member that says it is longer than it is."""
    data = bytearray(makers.zipped({"x.npy": _npy(_PLAIN_HEADER, bytes(4))}, 8))
    for signature, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + place
        data[at : at + 4] = (5000).to_bytes(4, "little")
    return makers.write(folder / "x.npz", bytes(data))


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(tmp_path: Path, case: str) -> None:
    text, make = DAMAGED[case]
    path = make(tmp_path)
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        vet(path)
    assert makers.soon(start)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)


ARRAYS: dict[str, tuple[str, Make]] = {
    "object npy": ("EC-IN-040", _raw(_npy(_PLAIN_HEADER.replace("<f4", "|O"), pickle.dumps([1])), "x.npy")),
    "object in a record": (
        "EC-IN-040",
        _raw(_npy(_PLAIN_HEADER.replace("'<f4'", "[('a', '|O')]"), bytes(8)), "x.npy"),
    ),
    "object in npz": ("EC-IN-040", lambda f: _objects(f)),
    "large npy header": ("EC-IN-041", _raw(_npy(" " * 20_000), "x.npy")),
    "many elements": (
        "EC-IN-007",
        _raw(_npy(_PLAIN_HEADER.replace("(1,)", "(99999999, 99999999, 0, 1)".replace("0,", "9,"))), "x.npy"),
    ),
    "safetensors elements": ("EC-IN-007", _header({"a": _entry(shape=(1 << 40,))}, bytes(4))),
    "safetensors beyond all numbers": ("EC-IN-007", _header({"a": _entry(shape=(10**4000,) * 9)}, bytes(4))),
    "safetensors name": ("EC-IN-009", _header({"a" * 5000: _entry()}, bytes(4))),
    "safetensors header": ("EC-IN-041", _raw((1 << 40).to_bytes(8, "little") + b"{}", "w.safetensors")),
    "safetensors nesting": ("EC-IN-006", _header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
}


def _objects(folder: Path) -> Path:
    np.savez(folder / "x.npz", x=np.array([{}], dtype=object))
    return folder / "x.npz"


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_refused(tmp_path: Path, case: str) -> None:
    rule, make = ARRAYS[case]
    path = make(tmp_path)
    with pytest.raises(Refused) as caught:
        vet(path)
    assert caught.value.rule == rule
    assert str(caught.value).isprintable()


def test_sparse_files_of_4_gb(tmp_path: Path) -> None:
    for name in ("m.onnx", "w.pt", "w.pt2", "w.safetensors", "x.npy", "x.npz"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(4 << 30)
        start = time.process_time()
        with pytest.raises(InputError):
            vet(tmp_path / name)
        assert makers.soon(start)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path / "pipe.onnx", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="not a regular file; give the model file itself"):
            vet(path)
    with pytest.raises(InputError, match=r"gone.onnx: cannot be opened \(No such file or directory\); check the path"):
        vet(tmp_path / "gone.onnx")
    with pytest.raises(InputError, match="cannot be opened"):
        vet(tmp_path / "a\0b")


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    from edgecompile.ingest.source import opened

    path = makers.write(tmp_path / "a", b"12345678")
    with opened(path) as source:
        path.write_bytes(b"1")
        with pytest.raises(InputError, match="it shrank while it was read"):
            source.read(4, 4)


def test_the_text_of_a_refusal(tmp_path: Path) -> None:
    path = _external("../w.bin")(tmp_path)
    with pytest.raises(Refused) as caught:
        vet(path)
    assert str(caught.value) == (
        f"{path} (tensor 'w'): external data in '../w.bin' refused by EC-IN-002 (a plain name in its folder);"
        " save the model again with onnx.save(model, path, save_as_external_data=True) into one folder"
    )


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mred", "\u202egpj.exe", "</script>", "::error::", "a|b"])
def test_names_are_escaped_in_errors(tmp_path: Path, name: str) -> None:
    node = helper.make_node("Relu", ["x"], [name])
    with pytest.raises(InputError) as caught:
        vet(_graph(node, node)(tmp_path))
    assert str(caught.value).isprintable()


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    """The near side of each limit: 23 nested Ifs, a short Loop, nested functions, int4 and text tensors."""
    for make in (_nested_if(23), _loop(1000), _functions(("f", ["g", "g"]), ("g", ["Relu"])), _many_nodes(1)):
        assert vet(make(tmp_path)).kind == "onnx"
    assert vet(_sparse(tmp_path, [100, 100])).kind == "onnx"
    tensors = [
        helper.make_tensor("i4", TensorProto.INT4, [3], [1, 2, 3]),
        helper.make_tensor("text", TensorProto.STRING, [2], [b"a", b"b"]),
        helper.make_tensor("f", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.0, 2.0]),
        helper.make_tensor("none", TensorProto.FLOAT, [0], []),
        helper.make_tensor("long", TensorProto.INT64, [1000], range(1000)),
        TensorProto(name="empty", data_type=TensorProto.INT64, dims=[0]),
        TensorProto(name="unpacked", data_type=TensorProto.INT64, dims=[1], int64_data=[5]),
    ]
    node = helper.make_node("Expand", ["f", "unpacked"], ["y"])
    assert vet(_graph(node, weights=tensors)(tmp_path)).declared_bytes == 2 + 8 + 4 + 8000 + 8


def test_fields_that_are_not_needed(tmp_path: Path) -> None:
    """Fields of other numbers are passed over; sparse attributes and empty external tensors are vetted."""
    model = makers.onnx_model(opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)])
    sparse = onnx.ModelProto.FromString(_sparse(tmp_path, [10]).read_bytes()).graph.sparse_initializer[0]
    model.graph.node.append(helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    model.graph.input[0].doc_string = model.graph.node[0].doc_string = "text"
    data = bytearray(model.SerializeToString())
    data += _field(8, b"\x0a\x01d\x10\x01\x18\x01")  # an opset with a field of number 3
    assert vet(makers.write(tmp_path / "model.onnx", bytes(data))).kind == "onnx"
    tensor = (
        b"\x08\x00\x10\x01" + _field(8, b"w") + _field(13, _field(1, b"location") + _field(2, b"w.bin") + b"\x18\x01")
    )
    makers.write(tmp_path / "w.bin", bytes(16))
    found = vet(_in_graph(_field(5, tensor + b"\x70\x01" + b"\x78\x01") + _field(15, b"\x20\x01"))(tmp_path))
    assert (found.declared_bytes, len(found.files)) == (0, 2)


def test_names_and_weights_beyond_the_window(tmp_path: Path) -> None:
    """The walker holds 64 kB: messages, names and raw data that cross its edges read the same."""
    nodes = [helper.make_node("Relu", [f"{i}" + "t" * 3000], [f"{i + 1}" + "t" * 3000]) for i in range(60)]
    big = numpy_helper.from_array(np.ones(100_000, np.float32), "big")
    many = helper.make_node("Concat", [f"i{i}" for i in range(20_000)], ["joined"])
    path = _graph(*nodes, many, weights=[_int64("a", [1]), big, _int64("b", [2])])(tmp_path)
    assert vet(path).declared_bytes == 400_016
    data = path.read_bytes()
    for cut in (len(data) // 3, len(data) // 2, len(data) - 1):
        with pytest.raises(InputError, match="truncated or corrupt"):
            vet(makers.write(path, data[:cut]))
    for damage in (b"\x0b", b"\x06", _varint(1 << 33) + b"\x01", _varint(1 << 33 | 2) + b"\x00"):
        with pytest.raises(InputError, match="not a protobuf message"):
            vet(makers.write(path, data + damage))
    fixed = data + b"\x79" + bytes(8) + b"\x7d" + bytes(4) + b"\x78\xff\x01"  # unknown fields of every type
    assert vet(makers.write(path, fixed)).kind == "onnx"


def test_a_large_graph_is_vetted_soon(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(30_000)]
    path = _graph(*nodes)(tmp_path)
    start = time.process_time()
    vet(path)
    assert makers.soon(start)
    with pytest.raises(Refused, match=r"30,000 nodes|nodes refused by EC-IN-005 \(at most 1,000\)"):
        vet(path, Limits(nodes=1000))
