"""Files made by the libraries themselves pass, under any name, and vetting imports none of them."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecompile.errors import InputError, Refused
from edgecompile.ingest import RULES, text_safe, vet
from tests.ingest import makers

KINDS = {
    "net.onnx": "onnx",
    "one.pt2": "pt2",
    "two.pt2": "pt2",
    "weights.pt": "torch_weights",
    "weights.safetensors": "safetensors",
    "x.npy": "npy",
    "x.npz": "npz",
    "packed.npz": "npz",
}


def assert_ours(path: Path) -> None:
    """Vetting passes, or raises one line of ours; any other exception is a failure."""
    error = ""
    try:
        vet(path)
    except (InputError, Refused) as caught:
        error = str(caught)
    assert error.isprintable()


@pytest.mark.parametrize("name", KINDS)
def test_valid_files_pass(valid: Mapping[str, bytes], tmp_path: Path, name: str) -> None:
    path = makers.write(tmp_path / name, valid[name])
    start = time.process_time()
    found = vet(path)
    assert makers.soon(start)
    assert (found.kind, found.files, found.trusted) == (KINDS[name], (path,), False)
    assert found.declared_bytes > 0


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"packed.npz"}))
def test_the_content_decides_not_the_name(valid: Mapping[str, bytes], tmp_path: Path, name: str) -> None:
    assert vet(makers.write(tmp_path / "file.dat", valid[name])).kind == KINDS[name]


def test_declared_bytes_are_those_of_the_tensors(valid: Mapping[str, bytes], tmp_path: Path) -> None:
    assert vet(makers.write(tmp_path / "a.safetensors", valid["weights.safetensors"])).declared_bytes == 6 * 4 + 4 * 2
    assert vet(makers.write(tmp_path / "a.npy", valid["x.npy"])).declared_bytes == 6 * 4
    packed = vet(makers.write(tmp_path / "packed.npz", valid["packed.npz"]))
    assert packed.declared_bytes == 12000 * 4 + 999 * 8
    model = vet(makers.write(tmp_path / "a.onnx", valid["net.onnx"]))
    assert model.declared_bytes == 4 * 27 * 4 + 2 * 8 + 1 + 4 * 4


def test_onnx_with_external_data(tmp_path: Path) -> None:
    model = makers.onnx_model()
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    found = vet(path)
    assert found.files == (path, tmp_path / "model.onnx.data")
    onnx.load(path)  # the library agrees


def test_weights_shared_in_external_data(tmp_path: Path) -> None:
    entries = {"location": "w.bin", "offset": "16", "length": "16"}
    makers.write(tmp_path / "w.bin", bytes(32))
    path = makers.external_model(tmp_path, entries, also=entries)
    assert vet(path).files == (path, tmp_path / "w.bin")


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
def test_onnx_exported_by_torch(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNCF_CI", "1")
        program = torch.onnx.export(makers.Small().eval(), (torch.randn(2, 3, 8, 8),), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path), external_data=True)
    assert len(vet(path).files) == 2


def test_other_domains_are_noted(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Gelu", ["x"], ["y"], domain="com.example")
    assert vet(makers.write(tmp_path / "m.onnx", makers.graph_of([node]))).notes == ("operators of com.example",)


def test_vetting_imports_no_library_and_little_memory(valid: Mapping[str, bytes], tmp_path: Path) -> None:
    paths = [str(makers.write(tmp_path / name, data)) for name, data in valid.items()]
    sparse = tmp_path / "sparse.onnx"
    with sparse.open("wb") as file:
        file.truncate(4 << 30)
    code = (
        "import sys, pathlib, re\n"
        "from edgecompile.ingest import vet\n"
        "for name in sys.argv[1:]:\n"
        "    try: vet(pathlib.Path(name))\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "loaded = {'torch', 'onnx', 'numpy', 'safetensors'} & set(sys.modules)\n"
        "peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', pathlib.Path('/proc/self/status').read_text())[1])\n"
        "print(sorted(loaded), peak < 200 * 1024)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths, str(sparse)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
    )
    assert done.stdout.splitlines() == ["InputError", "[] True"], done.stderr


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(KINDS)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.just(1.0) | st.floats(0, 1),
)
def test_damage_gives_an_error_of_ours_or_nothing(
    valid: Mapping[str, bytes], tmp_path: Path, name: str, changes: list[tuple[float, int]], kept: float
) -> None:
    content = bytearray(valid[name])
    for place, byte in changes:
        content[int(place * len(content))] = byte
    assert_ours(makers.write(tmp_path / name, bytes(content[: int(kept * len(content))])))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(["models/model.json", "model_weights_config.json"]),
    changes=st.lists(st.tuples(st.lists(st.integers(0, 999), min_size=1, max_size=12), JUNK), min_size=1, max_size=3),
)
def test_wrong_json_with_a_right_checksum(
    valid: Mapping[str, bytes], tmp_path: Path, suffix: str, changes: list[tuple[list[int], object]]
) -> None:
    """Any value of any JSON member may be anything; each change walks down by its numbers and puts junk there."""

    def change(root: object) -> None:
        for steps, junk in changes:
            value, place = root, None
            for step in steps:
                if not isinstance(value, (dict, list)) or not value:
                    break
                key = sorted(value)[step % len(value)] if isinstance(value, dict) else step % len(value)
                place = (value, key)
                value = value[key]  # type: ignore[index]
            if place is not None:
                place[0][place[1]] = copy.deepcopy(junk)  # type: ignore[index]

    assert_ours(makers.write(tmp_path / "m.pt2", makers.edited(valid["two.pt2"], change, suffix)))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), min_size=1, max_size=5))
def test_wrong_pickles_with_a_right_checksum(
    valid: Mapping[str, bytes], tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        for at, byte in changes:
            changed[at % len(changed)] = byte
        return bytes(changed)

    assert_ours(makers.write(tmp_path / "w.pt", makers.replaced(valid["weights.pt"], "data.pkl", change)))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200),
    suffix=st.sampled_from([".onnx", ".pt", ".pt2", ".npy", ".npz", ".safetensors", ""]),
)
def test_noise_is_an_input_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    with pytest.raises((InputError, Refused)):
        vet(makers.write(tmp_path / f"noise{suffix}", content))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("percent", [0, 25, 50, 75, 99])
def test_truncation_is_said(valid: Mapping[str, bytes], tmp_path: Path, name: str, percent: int) -> None:
    data = valid[name]
    path = makers.write(tmp_path / name, data[: len(data) * percent // 100])
    with pytest.raises(InputError, match="truncated or corrupt") as caught:
        vet(path)
    assert caught.value.exit_code == 2


@given(st.text(max_size=300))
def test_names_are_printable(name: str) -> None:
    shown = text_safe(name)
    assert shown.isprintable() or all(c == " " or c.isprintable() or c.isspace() for c in shown)
    assert not any(c in shown for c in "\n\r\x1b\0\u202e\u2066\u2028")
    assert len(shown) < 80 * 10 + 40


def test_names_keep_their_letters() -> None:
    assert text_safe("modèle 名前.weight") == "modèle 名前.weight"
    assert text_safe("a\nb\x1b[31m\u202e\0\U000e0041") == "a\\x0ab\\x1b[31m\\u202e\\x00\\U000e0041"
    assert text_safe("x" * 1_000_000) == "x" * 80 + "... (1000000 characters)"


def test_every_rule_has_one_line() -> None:
    assert all(text.endswith(".") and "\n" not in text and 20 < len(text) < 160 for text in RULES.values())
    assert sorted(RULES) == list(RULES)


def test_numpy_agrees_on_what_is_an_array(tmp_path: Path) -> None:
    """Every dtype that numpy saves without pickle passes, or is refused by name."""
    for dtype in ("?", "i1", "u2", "<i4", ">f8", "c16", "f2", "S3", "U5"):
        path = tmp_path / "a.npy"
        np.save(path, np.zeros((2, 0, 3) if dtype == "?" else (2, 3), dtype))
        assert vet(path).declared_bytes == np.load(path).nbytes
    np.save(tmp_path / "r.npy", np.zeros(2, [("a", "f4"), ("b", "i4")]))
    with pytest.raises(InputError, match=r"dtype .* is not supported; save plain numbers"):
        vet(tmp_path / "r.npy")
