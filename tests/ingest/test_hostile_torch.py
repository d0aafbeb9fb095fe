"""Hostile `.pt`, `.pt2` and zip files: each made here, refused by its rule, with no payload run."""

from __future__ import annotations

import io
import json
import pickle
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from edgecompile.errors import InputError, Refused
from edgecompile.ingest import Limits, vet
from edgecompile.ingest.limits import Limits as _Limits
from edgecompile.ingest.pt2_text import guard_fault, operator_fault, structure_fault, symbolic_fault
from tests.ingest import makers

Make = Callable[[Mapping[str, bytes], Path], bytes]
"""From the valid files and the marker's path to the bytes of the hostile file."""


def _nodes(model: Any) -> list[Any]:
    nodes: list[Any] = model["graph_module"]["graph"]["nodes"]
    return nodes


def _signature(model: Any) -> Any:
    return model["graph_module"]["module_call_graph"][0]["signature"]


def _set_expression(model: Any, text: str) -> None:
    values = model["graph_module"]["graph"]["sym_int_values"]
    next(iter(values.values()))["as_expr"]["expr_str"] = text


def _tar(v: Mapping[str, bytes], m: Path) -> bytes:
    buffer, data = io.BytesIO(), pickle.dumps(makers.Touch(m), 2)
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _script(v: Mapping[str, bytes], m: Path) -> bytes:
    return makers.added(makers.added(v["weights.pt"], "constants.pkl"), "code/__torch__.py")


def _marked(v: Mapping[str, bytes], mode: int) -> bytes:
    """The weights with one more member of this file type."""
    buffer = io.BytesIO(v["weights.pt"])
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo("archive/data/999")
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def _duplicate(name: str) -> Make:
    def make(v: Mapping[str, bytes], m: Path) -> bytes:
        buffer = io.BytesIO(makers.zipped(makers.unzipped(v["weights.pt"])))
        with zipfile.ZipFile(buffer, "a") as archive:
            info = zipfile.ZipInfo(name.replace("data.pkl", "dataXpkl"))
            archive.writestr(info, pickle.dumps(makers.Touch(m), 2))
        # written under another name, since zipfile warns of two equal ones
        return buffer.getvalue().replace(b"dataXpkl", b"data.pkl")

    return make


def _with_member(name: str, kind: str = "one.pt2") -> Make:
    return lambda v, m: makers.added(v[kind], name)


def _model(change: Callable[[Any], object], kind: str = "one.pt2") -> Make:
    return lambda v, m: makers.edited(v[kind], change)


def _weights(name: str, value: Any) -> Make:
    """The .pt2 file with a field of each weight's entry changed."""

    def change(config: Any) -> None:
        for entry in config["config"].values():
            entry[name] = value

    return lambda v, m: makers.edited(v["one.pt2"], change, "model_weights_config.json")


def _patched(old: bytes, new: bytes, count: int = -1) -> Make:
    def make(v: Mapping[str, bytes], m: Path) -> bytes:
        data = makers.zipped(makers.unzipped(v["weights.pt"]))
        assert old in data
        return data.replace(old, new, count)

    return make


def _central(offset: int, value: bytes) -> Make:
    """The weights with bytes of the first directory entry changed."""

    def make(v: Mapping[str, bytes], m: Path) -> bytes:
        data = bytearray(makers.zipped(makers.unzipped(v["weights.pt"])))
        at = data.index(b"PK\x01\x02") + offset
        data[at : at + len(value)] = value
        return bytes(data)

    return make


def _end(offset: int, value: bytes) -> Make:
    def make(v: Mapping[str, bytes], m: Path) -> bytes:
        data = bytearray(makers.zipped(makers.unzipped(v["weights.pt"])))
        at = data.rindex(b"PK\x05\x06") + offset
        data[at : at + len(value)] = value
        return bytes(data)

    return make


def _zip64(offset: int, value: bytes) -> Make:
    """torch's own archive, which has a zip64 end record and its locator, with bytes of either changed."""

    def make(v: Mapping[str, bytes], m: Path) -> bytes:
        data = bytearray(v["weights.pt"])
        at = data.rindex(b"PK\x06\x06") + offset
        data[at : at + len(value)] = value
        return bytes(data)

    return make


def _pickle_member(data: Callable[[Path], bytes]) -> Make:
    return lambda v, m: makers.replaced(v["weights.pt"], "data.pkl", lambda _: data(m))


def _sample_inputs(data: Callable[[Path], bytes]) -> Make:
    return lambda v, m: makers.replaced(v["one.pt2"], "sample_inputs/model.pt", lambda _: data(m))


def _bomb(v: Mapping[str, bytes], m: Path) -> bytes:
    return makers.zipped({"x.npy": bytes(200 << 20)}, zipfile.ZIP_DEFLATED)


def _many(v: Mapping[str, bytes], m: Path) -> bytes:
    return makers.zipped({f"archive/data/{i}": b"" for i in range(20_001)})


REFUSED: dict[str, tuple[str, str, Make]] = {
    # pickles
    "call in data.pkl": ("w.pt", "EC-IN-020", _pickle_member(lambda m: pickle.dumps(makers.Touch(m), 2))),
    "call after weights": (
        "w.pt",
        "EC-IN-020",
        lambda v, m: makers.saved({"a": torch.ones(2), "b": makers.Touch(m)}),
    ),
    "protocol 4": ("w.pt", "EC-IN-021", _pickle_member(lambda m: pickle.dumps(makers.Touch(m), 4))),
    "INST": ("w.pt", "EC-IN-021", _pickle_member(lambda m: b"(S'true'\nios\nsystem\n.")),
    "extension registry": ("w.pt", "EC-IN-021", _pickle_member(lambda m: b"\x80\x02\x82\x01.")),
    "broken tail": (
        "w.pt",
        "EC-IN-020",
        _pickle_member(lambda m: pickle.dumps(makers.Touch(m), 2)[:-1] + b"\xff"),
    ),
    "quantized tensor": ("w.pt", "EC-IN-020", lambda v, m: makers.saved({"q": _quantized()})),
    "huge pickle": ("w.pt", "EC-IN-041", _pickle_member(lambda m: bytes(17 << 20))),
    "legacy pickle": (
        "w.pt",
        "EC-IN-022",
        lambda v, m: makers.saved({"a": torch.ones(2), "b": makers.Touch(m)}, _use_new_zipfile_serialization=False),
    ),
    "plain pickle": ("w.pt", "EC-IN-022", lambda v, m: pickle.dumps(makers.Touch(m))),
    "legacy tar": ("w.pt", "EC-IN-022", _tar),
    "module": ("w.pt", "EC-IN-023", lambda v, m: makers.saved(makers.Small())),
    "TorchScript": ("w.pt", "EC-IN-024", _script),
    "torch.package": (
        "w.pt",
        "EC-IN-024",
        lambda v, m: makers.added(v["weights.pt"], ".data/extern_modules"),
    ),
    "unknown member": ("w.pt", "EC-IN-033", _with_member("extra.py", "weights.pt")),
    # zip structure
    "deflated": (
        "w.pt",
        "EC-IN-010",
        lambda v, m: makers.zipped(makers.unzipped(v["weights.pt"]), zipfile.ZIP_DEFLATED),
    ),
    "lzma": ("x.npz", "EC-IN-010", lambda v, m: makers.zipped({"x.npy": v["x.npy"]}, zipfile.ZIP_LZMA)),
    "parent": ("w.pt", "EC-IN-011", lambda v, m: makers.zipped({"a/../../x": b"1"})),
    "absolute": ("w.pt", "EC-IN-011", lambda v, m: makers.zipped({"/etc/x": b"1"})),
    "backslash": ("w.pt", "EC-IN-011", _patched(b"archive/version", b"archive\\version")),
    "drive": ("w.pt", "EC-IN-011", lambda v, m: makers.zipped({"C:/x": b"1"})),
    "control character": ("w.pt", "EC-IN-011", lambda v, m: makers.zipped({"a\x1b[31m\n": b"1"})),
    "not UTF-8": ("w.pt", "EC-IN-011", _patched(b"archive/version", b"archive/vers\xff\xfen")),
    "long name": ("w.pt", "EC-IN-011", lambda v, m: makers.zipped({"a/" + "n" * 1001: b"1"})),
    "duplicate": ("w.pt", "EC-IN-012", _duplicate("archive/data.pkl")),
    "duplicate by case": ("w.pt", "EC-IN-012", _duplicate("archive/DATA.pkl")),
    "symbolic link": ("w.pt", "EC-IN-013", lambda v, m: _marked(v, stat.S_IFLNK | 0o777)),
    "device": ("w.pt", "EC-IN-013", lambda v, m: _marked(v, stat.S_IFCHR | 0o666)),
    "folder": ("w.pt", "EC-IN-013", lambda v, m: makers.zipped({"archive/data/": b""})),
    "encrypted": ("w.pt", "EC-IN-013", _central(8, b"\x01\x00")),
    "strong encryption": ("w.pt", "EC-IN-013", _central(8, b"\x40\x00")),
    "many members": ("w.pt", "EC-IN-014", _many),
    "bomb": ("x.npz", "EC-IN-015", _bomb),
    "prefix": ("w.pt", "EC-IN-016", lambda v, m: b"PK" + bytes(30) + v["weights.pt"]),
    "prefix with right offsets": ("w.pt", "EC-IN-016", lambda v, m: _shifted(v)),
    "comment": ("w.pt", "EC-IN-016", lambda v, m: makers.zipped({"a/b": b""})[:-2] + b"\x05\x00hello"),
    "gap before the directory": ("w.pt", "EC-IN-016", lambda v, m: _gap(v)),
    "directory offset": ("w.pt", "EC-IN-016", _end(16, b"\x01\x00\x00\x00")),
    "volumes": ("w.pt", "EC-IN-016", _end(4, b"\x01\x00")),
    "fewer members": ("w.pt", "EC-IN-016", _end(8, b"\x02\x00\x02\x00")),
    "local name differs": ("w.pt", "EC-IN-016", _patched(b"archive/data/0", b"archive/data/X", 1)),
    "local method differs": ("w.pt", "EC-IN-016", lambda v, m: _local(v, 8, b"\x08\x00")),
    "local size differs": ("w.pt", "EC-IN-016", lambda v, m: _local(v, 18, b"\x01\x00\x00\x00")),
    "stored size differs": ("w.pt", "EC-IN-016", _central(20, b"\x01\x00\x00\x00")),
    "zip64 locator elsewhere": ("w.pt", "EC-IN-016", _zip64(56 + 8, b"\x00\x00\x00\x00")),
    "zip64 signature": ("w.pt", "EC-IN-016", _zip64(0, b"PK\x06\x05")),
    "zip64 other count": ("w.pt", "EC-IN-016", _zip64(32, b"\x01")),
    "long directory entries": ("w.pt", "EC-IN-016", lambda v, m: _long_extra()),
    # .pt2
    "sample inputs": ("m.pt2", "EC-IN-020", _sample_inputs(lambda m: makers.saved(((makers.Touch(m),), {})))),
    "sample inputs in the old form": (
        "m.pt2",
        "EC-IN-022",
        _sample_inputs(lambda m: pickle.dumps(makers.Touch(m), 2)),
    ),
    "script in sample inputs": (
        "m.pt2",
        "EC-IN-024",
        _sample_inputs(lambda m: makers.added(makers.saved(((torch.ones(1),), {})), "constants.pkl")),
    ),
    "legacy weights": (
        "m.pt2",
        "EC-IN-020",
        lambda v, m: makers.added(v["one.pt2"], "data/weights/model.pt", makers.saved({"a": makers.Touch(m)})),
    ),
    "use_pickle": ("m.pt2", "EC-IN-025", _weights("use_pickle", True)),
    "use_pickle 1": ("m.pt2", "EC-IN-025", _weights("use_pickle", 1)),
    "compiled code": ("m.pt2", "EC-IN-026", _with_member("data/aotinductor/model/model.so")),
    "source code": ("m.pt2", "EC-IN-026", _with_member("extra/model.cpp")),
    "custom object": ("m.pt2", "EC-IN-027", _with_member("data/constants/custom_obj_0")),
    "opaque object": ("m.pt2", "EC-IN-027", _with_member("data/constants/opaque_obj_0")),
    "weight in a custom object": ("m.pt2", "EC-IN-027", _weights("path_name", "custom_obj_0")),
    "weight outside": ("m.pt2", "EC-IN-027", _weights("path_name", "../models/model.json")),
    "custom object in the graph": (
        "m.pt2",
        "EC-IN-027",
        _model(lambda j: j["graph_module"]["graph"]["custom_obj_values"].update(a={"name": "a", "class_fqn": "b"})),
    ),
    "sympify": (
        "m.pt2",
        "EC-IN-028",
        _model(lambda j: _set_expression(j, "__import__('os').system('true')"), "two.pt2"),
    ),
    "sympify in a string": (
        "m.pt2",
        "EC-IN-028",
        _model(lambda j: _set_expression(j, "Symbol('x' + open('y'))"), "two.pt2"),
    ),
    "range constraint": (
        "m.pt2",
        "EC-IN-028",
        _model(lambda j: j["range_constraints"].update({"exec('1')": {}})),
    ),
    "node name": ("m.pt2", "EC-IN-029", _model(lambda j: _nodes(j)[0].update(name="a=1;import os;b"))),
    "value name": (
        "m.pt2",
        "EC-IN-029",
        _model(lambda j: j["graph_module"]["graph"]["tensor_values"].update({"a\nb": {}})),
    ),
    "weight name": (
        "m.pt2",
        "EC-IN-029",
        _model(lambda j: j["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name='a"+b+"')),
    ),
    "argument name": (
        "m.pt2",
        "EC-IN-029",
        _model(lambda j: _signature(j).update(forward_arg_names=["x=1"])),
    ),
    "long node name": ("m.pt2", "EC-IN-009", _model(lambda j: _nodes(j)[0].update(name="a" * 5000))),
    "torch function": ("m.pt2", "EC-IN-030", _model(lambda j: _nodes(j)[1].update(target="torch.hub.load"))),
    "library loader": (
        "m.pt2",
        "EC-IN-030",
        _model(lambda j: _nodes(j)[1].update(target="torch.ops.load_library")),
    ),
    "file operator": (
        "m.pt2",
        "EC-IN-030",
        _model(lambda j: _nodes(j)[1].update(target="torch.ops.aten.from_file.default")),
    ),
    "operator as an argument": (
        "m.pt2",
        "EC-IN-030",
        _model(lambda j: _nodes(j)[1]["inputs"][0].update(arg={"as_operator": "torch.load"})),
    ),
    "enum in a structure": (
        "m.pt2",
        "EC-IN-031",
        _model(
            lambda j: _signature(j).update(
                in_spec=json.dumps(
                    [
                        1,
                        {
                            "type": "builtins.dict",
                            "children_spec": [],
                            "context": json.dumps({"__enum__": True, "fqn": "this:x", "name": "y"}),
                        },
                    ]
                )
            )
        ),
    ),
    "guard": ("m.pt2", "EC-IN-032", _model(lambda j: j["guards_code"].append("open('marker', 'w')"))),
    "unknown pt2 member": ("m.pt2", "EC-IN-033", _with_member("models/model.py")),
    "deep JSON": (
        "m.pt2",
        "EC-IN-006",
        lambda v, m: makers.replaced(
            v["one.pt2"],
            "models/model.json",
            lambda _: b'{"graph_module":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        ),
    ),
    "deep graph": ("m.pt2", "EC-IN-006", _model(lambda j: j["graph_module"].update(a=_nested(300)))),
    "many nodes": (
        "m.pt2",
        "EC-IN-005",
        _model(lambda j: j["graph_module"].update(a=[{"target": "torch.ops.aten.add.Tensor"}] * 200_001)),
    ),
    "large JSON": (
        "m.pt2",
        "EC-IN-041",
        lambda v, m: makers.replaced(v["one.pt2"], "models/model.json", lambda _: b" " * ((64 << 20) + 1)),
    ),
    "sizes beyond all numbers": (
        "m.pt2",
        "EC-IN-007",
        lambda v, m: makers.edited(
            v["one.pt2"],
            lambda c: c["config"]["scale"]["tensor_meta"].update(sizes=[{"as_int": 10**4000}] * 9),
            "model_weights_config.json",
        ),
    ),
    "guards are no list": ("m.pt2", "EC-IN-032", _model(lambda j: j.update(guards_code=5))),
    "many instructions": (
        "w.pt",
        "EC-IN-041",
        _pickle_member(lambda m: b"\x80\x02" + b"N" * 1_000_001 + b"."),
    ),
    "huge weight": (
        "m.pt2",
        "EC-IN-007",
        lambda v, m: makers.edited(
            v["one.pt2"],
            lambda c: c["config"]["scale"]["tensor_meta"].update(
                sizes=[{"as_int": 1 << 20}, {"as_int": 1 << 20}, {"as_expr": {}}]
            ),
            "model_weights_config.json",
        ),
    ),
}


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _quantized() -> torch.Tensor:
    return torch._make_per_tensor_quantized_tensor(torch.zeros(2, dtype=torch.int8), 0.1, 0)


def _shifted(v: Mapping[str, bytes]) -> bytes:
    """A zip file with bytes before it, and offsets that take them into account."""
    buffer = io.BytesIO(b"PK" + bytes(30))
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, data in makers.unzipped(v["weights.pt"]).items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _gap(v: Mapping[str, bytes]) -> bytes:
    data = makers.zipped(makers.unzipped(v["weights.pt"]))
    at = data.index(b"PK\x01\x02")
    end = bytearray(data[at:])
    place = end.rindex(b"PK\x05\x06") + 16
    end[place : place + 4] = struct.pack("<L", at + 10)
    return data[:at] + bytes(10) + bytes(end)


def _local(v: Mapping[str, bytes], offset: int, value: bytes) -> bytes:
    data = bytearray(makers.zipped(makers.unzipped(v["weights.pt"])))
    data[offset : offset + len(value)] = value
    return bytes(data)


def _long_extra() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("a/b")
        info.extra = b"\x99\x99\xd0\x0f" + bytes(4048)
        archive.writestr(info, b"")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_refused(valid: Mapping[str, bytes], tmp_path: Path, case: str) -> None:
    name, rule, make = REFUSED[case]
    marker = tmp_path / "marker"
    path = makers.write(tmp_path / name, make(valid, marker))
    start = time.process_time()
    with pytest.raises(Refused) as caught:
        vet(path)
    assert makers.soon(start)
    error = caught.value
    assert (error.rule, error.exit_code) == (rule, 8)
    assert str(error).isprintable()
    assert str(path) in str(error)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


DAMAGED: dict[str, tuple[str, str, Make]] = {
    "zip of something": ("a.pt", "a zip file of another kind", lambda v, m: makers.zipped({"a/b.txt": b"1"})),
    "empty zip": ("a.pt", "a zip file of another kind", lambda v, m: makers.zipped({})),
    "only a signature": ("a.pt", "no zip directory", lambda v, m: b"PK\x03\x04"),
    "no data.pkl": (
        "a.pt2",
        "no data.pkl in it",
        _sample_inputs(lambda m: makers.zipped({"a/version": b"3"})),
    ),
    "damaged pickle": ("a.pt", "damaged pickle", _pickle_member(lambda m: b"\x80\x02}q")),
    "pickle with a tail": ("a.pt", "bytes after the end", _pickle_member(lambda m: b"\x80\x02}.junk")),
    "checksum": ("a.pt", "checksum of member", _patched(b"\x80\x02}", b"\x80\x02]", 1)),
    "directory signature": ("a.pt", "damaged zip directory", _central(0, b"PK\x01\x03")),
    "directory cut": ("a.pt", "zip directory ends too early", lambda v, m: _short_directory()),
    "local signature": (
        "a.pt",
        "damaged zip member",
        lambda v, m: b"PK\x03\x05" + makers.zipped({"a/data.pkl": b"1"})[4:],
    ),
    "missing zip64 sizes": ("a.pt", "zip64 sizes are missing", _central(20, b"\xff\xff\xff\xff")),
    "data descriptor": ("a.pt", "damaged zip member", lambda v, m: _no_descriptor(v)),
    "two programs": (
        "a.pt2",
        "2 programs in it",
        lambda v, m: makers.added(
            v["one.pt2"], "models/second.json", makers.unzipped(v["one.pt2"])["one/models/model.json"]
        ),
    ),
    "model is no JSON": (
        "a.pt2",
        "not JSON",
        lambda v, m: makers.replaced(v["one.pt2"], "model.json", lambda _: b"{"),
    ),
    "model is a list": (
        "a.pt2",
        "no graph in it",
        lambda v, m: makers.replaced(v["one.pt2"], "model.json", lambda _: b"[]"),
    ),
    "constraints are a list": (
        "a.pt2",
        "a table is missing",
        _model(lambda j: j.update(range_constraints=[1])),
    ),
    "config is a list": (
        "a.pt2",
        "no table of weights",
        lambda v, m: makers.replaced(v["one.pt2"], "model_weights_config.json", lambda _: b"[]"),
    ),
    "weight is no table": (
        "a.pt2",
        "is not described",
        lambda v, m: makers.edited(v["one.pt2"], lambda c: c["config"].update(a=1), "model_weights_config.json"),
    ),
    "pt2 without programs": (
        "a.pt2",
        "0 programs in it",
        lambda v, m: makers.replaced(v["one.pt2"], "models/model.json", lambda _: None),
    ),
}


def _short_directory() -> bytes:
    data = makers.zipped({"a/b": b""})
    at = data.index(b"PK\x01\x02")
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 20, at, 0)
    return data[: at + 20] + end


def _no_descriptor(v: Mapping[str, bytes]) -> bytes:
    """torch's archive, whose members have data descriptors, with the first of them destroyed."""
    data = bytearray(v["weights.pt"])
    at = data.index(b"PK\x07\x08")
    data[at + 4 : at + 24] = bytes(20)
    return bytes(data)


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(valid: Mapping[str, bytes], tmp_path: Path, case: str) -> None:
    name, text, make = DAMAGED[case]
    path = makers.write(tmp_path / name, make(valid, tmp_path / "marker"))
    with pytest.raises(InputError) as caught:
        vet(path)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)


def test_the_text_of_a_refusal(tmp_path: Path) -> None:
    path = makers.write(tmp_path / "w.pt", makers.saved({"b": makers.Touch(tmp_path / "marker")}))
    with pytest.raises(Refused) as caught:
        vet(path)
    assert str(caught.value) == (
        f"{path} (data.pkl): pickle that calls posix.system refused by EC-IN-020 (tensors, dtypes and"
        " OrderedDict only); save weights only: torch.save(model.state_dict(), 'weights.pt') with torch 2.x,"
        " or safetensors.torch.save_file;"
        " if you trust its author, --trust-model allows it"
    )
    module = makers.write(tmp_path / "m.pt", makers.saved(makers.Small()))
    with pytest.raises(Refused, match=r"pass the class as path/file\.py:function with --weights"):
        vet(module)


@pytest.mark.parametrize(
    "case",
    [
        "call in data.pkl",
        "legacy pickle",
        "sample inputs in the old form",
        "module",
        "use_pickle",
        "guard",
        "node name",
        "protocol 4",
    ],
)
def test_trust_lifts_rules_about_code(valid: Mapping[str, bytes], tmp_path: Path, case: str) -> None:
    name, rule, make = REFUSED[case]
    found = vet(makers.write(tmp_path / name, make(valid, tmp_path / "marker")), trust=True)
    assert found.trusted
    assert found.notes[0].startswith(f"{rule} lifted by --trust-model: ")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("case", ["parent", "duplicate", "TorchScript", "bomb", "many nodes", "comment"])
def test_trust_lifts_nothing_else(valid: Mapping[str, bytes], tmp_path: Path, case: str) -> None:
    name, rule, make = REFUSED[case]
    with pytest.raises(Refused) as caught:
        vet(makers.write(tmp_path / name, make(valid, tmp_path / "marker")), trust=True)
    assert caught.value.rule == rule


def test_limits_can_be_raised(valid: Mapping[str, bytes], tmp_path: Path) -> None:
    path = makers.write(tmp_path / "m.pt2", valid["one.pt2"])
    with pytest.raises(
        Refused, match=r"refused by EC-IN-005 \(at most 2\); from Python, vet\(path, Limits\(nodes=...\)\)"
    ):
        vet(path, Limits(nodes=2))
    with pytest.raises(Refused, match="zip members"):
        vet(path, Limits(zip_members=3))
    with pytest.raises(Refused, match="EC-IN-001"):
        vet(path, Limits(file_bytes=100))
    assert vet(path, Limits(nodes=100)).kind == "pt2"


def test_the_old_layout_of_torch_2_7(valid: Mapping[str, bytes], tmp_path: Path) -> None:
    new = makers.unzipped(valid["one.pt2"])
    old = {
        "version": b"8.1",
        "serialized_exported_program.json": new["one/models/model.json"],
        "serialized_state_dict.pt": makers.saved({"a": torch.ones(2)}),
        "serialized_constants.pt": makers.saved({}),
        "serialized_example_inputs.pt": b"",
        "extra_files/labels": b"cat",
    }
    assert vet(makers.write(tmp_path / "m.pt2", makers.zipped(old))).kind == "pt2"
    hostile = old | {"serialized_constants.pt": makers.saved({"a": makers.Touch(tmp_path / "marker")})}
    with pytest.raises(Refused) as caught:
        vet(makers.write(tmp_path / "m.pt2", makers.zipped(hostile)))
    assert caught.value.rule == "EC-IN-020"


def test_fields_that_may_be_missing(valid: Mapping[str, bytes], tmp_path: Path) -> None:
    data = makers.edited(valid["one.pt2"], lambda j: j.update(range_constraints=None, guards_code=None))
    data = makers.edited(data, lambda c: c["config"]["scale"].update(tensor_meta=None), "model_weights_config.json")
    data = makers.replaced(data, "sample_inputs/model.pt", lambda _: b"")
    assert vet(makers.write(tmp_path / "m.pt2", data)).kind == "pt2"


def test_zip64_sizes_are_read(valid: Mapping[str, bytes], tmp_path: Path) -> None:
    """A member whose sizes stand in the zip64 field, as those over 4 GB do."""
    data = bytearray(makers.zipped({"x.npy": valid["x.npy"]}))
    at, size = data.index(b"PK\x01\x02"), len(valid["x.npy"])
    extra = b"\x01\x99\x02\x00ab" + struct.pack("<2H2Q", 1, 16, size, size)
    data[at + 20 : at + 28] = b"\xff" * 8
    data[at + 30 : at + 32] = len(extra).to_bytes(2, "little")
    data[at + 46 + 5 : at + 46 + 5] = extra
    end = data.rindex(b"PK\x05\x06") + 12
    data[end : end + 4] = (46 + 5 + len(extra)).to_bytes(4, "little")
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        assert archive.read("x.npy") == valid["x.npy"]  # another reader agrees
    assert vet(makers.write(tmp_path / "x.npz", bytes(data))).kind == "npz"


@pytest.mark.parametrize(
    ("mark", "form"), [(b"PK\x07\x08", "<L2L"), (b"", "<L2L"), (b"", "<L2Q"), (b"PK\x07\x08", "<L2Q")]
)
def test_every_form_of_data_descriptor(valid: Mapping[str, bytes], tmp_path: Path, mark: bytes, form: str) -> None:
    plain = makers.zipped({"x.npy": valid["x.npy"]})
    at, size = plain.index(b"PK\x01\x02"), len(valid["x.npy"])
    descriptor = mark + struct.pack(form, zlib.crc32(valid["x.npy"]), size, size)
    data = bytearray(plain[:at] + descriptor + plain[at:])
    for place in (6, at + len(descriptor) + 8):
        data[place] |= 8
    data[14:26] = bytes(12)
    end = data.rindex(b"PK\x05\x06") + 16
    data[end : end + 4] = (at + len(descriptor)).to_bytes(4, "little")
    assert vet(makers.write(tmp_path / "x.npz", bytes(data))).kind == "npz"


def test_notes_are_bounded(valid: Mapping[str, bytes], tmp_path: Path) -> None:
    data = makers.edited(valid["one.pt2"], lambda j: j.update(guards_code=[f"x{i} == 1" for i in range(500)] * 2))
    assert len(vet(makers.write(tmp_path / "m.pt2", data), trust=True).notes) == 100


LIMITS = _Limits()


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "2*s77 + 1",
        "s0//2",
        "(s0 + s1) // 4",
        "int_oo",
        "true",
        "Symbol('s77', positive=True, integer=True)",
        "FloorDiv(Add(Mul(Symbol('s27', positive=True, integer=True), Integer(-2)), Integer(1)), Integer(2))",
        "Mul(Float('0.5', precision=53), Symbol('zf0'))",
        "Piecewise(ExprCondPair(Symbol('u0', integer=True), StrictGreaterThan(Symbol('u0'), Integer(0))))",
    ],
)
def test_symbolic_sizes_that_pass(text: str) -> None:
    assert symbolic_fault(text, LIMITS) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("os.system('x')", "the name os"),
        ("exec(1)", "the call of exec"),
        ("Symbol('s0').func", "'.'"),
        ("Symbol('s0', commutative=True)", "the argument commutative"),
        ("s0 + 'a'", "a string"),
        ("Symbol('__import__')", "a string"),
        ("Float('1e9999')", "a string"),
        ("s0[0]", "'['"),
        ("lambda: 1", "the name lambda"),
        ("S", "the name S"),
        ("Symbol('s0')(1)", "the call of a value"),
        ("1" * 30, "a very long number"),
        ("s0 @ 2", "'@ 2'"),
        ("５ + s0", "letters outside ASCII"),
        ("(" * 41 + "s0" + ")" * 41, "more than 40 levels of nesting"),
        ("s0+" * 2000, "more than 4,000 characters"),
        ('Symbol("s0")', "'\"s0\")'"),
        ("s0 ; s1", "'; s1'"),
        ("s0 if s1 else s2", "the name if"),
    ],
)
def test_symbolic_sizes_that_do_not(text: str, fault: str) -> None:
    assert symbolic_fault(text, LIMITS) == fault


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[1] != max(1, L['x'].size()[1] // 2)",
        "L['y'].size()[0] == (2*L['x'].size()[0])",
        "L['k'][0].stride()[0] == 1 and not L['z'].field.storage_offset() % 2 == 0",
        "L['n'] <= 5 or L['m'] is None",
    ],
)
def test_guards_that_pass(text: str) -> None:
    assert guard_fault(text, LIMITS) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("open('x')", "the call of open"),
        ("L['x'].__class__ == 1", "'.'"),
        ("L['x'].data_ptr() == 1", "the call of a value"),
        ("L['x'] == 'a'", "a string"),
        ("x == 1", "the name x"),
        ("L['x'] == 9**9", "'**'"),
        ("L[f'{x}'] == 1", "the name L"),
        ("L['x'](1)", "the call of a value"),
        ("L['x'] == " + "1" * 30, "a very long number"),
        ("L['x'] ; 1", "'; 1'"),
        ("é", "letters outside ASCII"),
    ],
)
def test_guards_that_do_not(text: str, fault: str) -> None:
    assert guard_fault(text, LIMITS) == fault


def test_operators() -> None:
    good = (
        "torch.ops.aten.conv2d.default",
        "_operator.floordiv",
        "math.trunc",
        "torch.sym_max",
        "torch.ops.higher_order.cond",
        "torch.ops.quantized_decomposed.quantize_per_tensor.default",
        "torch.ops.prims.convert_element_type.default",
        "torch.ops.aten.__and__.Tensor",
        "torch.ops.aten._to_copy.default",
        "torch.ops.aten.mean.dim",
    )
    bad = (
        "torch.load",
        "os.system",
        "_operator.methodcaller",
        "math.__loader__",
        "torch.ops.higher_order.triton_kernel_wrapper",
        "torch.ops.mine.op.default",
        "torch.ops.aten.from_file",
        "torch.ops.aten.__class__",
        "torch.classes.load_library",
        "torch.ops.aten.add.Tensor.x",
        "torch.ops.aten.add",
        "torch.ops.aten.add._op",
        "#extension:op",
        "",
    )
    assert [operator_fault(name) for name in good] == [None] * len(good)
    assert [operator_fault(name) for name in bad] == ["operator"] * len(bad)


@pytest.mark.parametrize(
    ("root", "fault"),
    [
        ({"type": "builtins.tuple", "context": "null", "children_spec": []}, None),
        ({"type": "builtins.dict", "context": '["a", 1]', "children_spec": []}, None),
        ({"type": "builtins.dict", "context": '["a\'b"]', "children_spec": []}, 'context ["a\'b"]'),
        ({"type": "builtins.list", "context": "[1]", "children_spec": []}, "context [1]"),
        (
            {"type": "collections.defaultdict", "context": "{}", "children_spec": []},
            "type collections.defaultdict",
        ),
        ({"type": "builtins.tuple", "context": None, "children_spec": []}, "unreadable JSON"),
        ({"type": None, "context": None}, "unreadable JSON"),
        (1, "unreadable JSON"),
    ],
)
def test_structures(root: object, fault: str | None) -> None:
    assert structure_fault(json.dumps([1, root]), LIMITS) == fault
    assert (
        structure_fault(json.dumps([2, {"type": None, "context": None, "children_spec": []}]), LIMITS)
        == "an unknown version"
    )
    assert structure_fault("[" * 300_000, LIMITS) == "more than 256,000 characters"
    assert structure_fault("[" * 200_000, LIMITS) == "unreadable JSON"


def test_torch_itself_would_run_them(valid: Mapping[str, bytes], tmp_path: Path) -> None:
    """The reason for all this: loading without vetting runs the payload, so the payloads above are live."""
    marker = tmp_path / "marker"
    path = makers.write(tmp_path / "m.pt2", REFUSED["sample inputs"][2](valid, marker))
    code = "import sys, torch; torch.export.load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    assert marker.exists()
