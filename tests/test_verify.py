"""Bundles looked at again: `verify`, `run`, and the self-test that needs nothing of edgecompile."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompile import errors
from edgecompile.building.check import check, read_manifest
from edgecompile.building.feed import feed
from edgecompile.errors import InputError
from tests import warm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("verify")
    warm.write_user_files(made)
    ended = warm.cli(made, "build", "net.py:net", "--pipeline", "", "--out", "out", "--max-latency", "900s").wait()
    assert ended.code == errors.OK, ended
    return made


@pytest.fixture
def bundle(folder: Path, tmp_path: Path) -> Path:
    """A copy of the bundle far from where it was built."""
    return shutil.copytree(folder / "out/host", tmp_path / "copied")


def alone(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script of the bundle, without edgecompile on its path and outside the repository."""
    command = [sys.executable, "-P", "-X", "importtime", *arguments]
    return subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=60, check=False)


def test_a_copied_bundle_verifies(bundle: Path) -> None:
    found = check(bundle)
    assert [(f.what, f.state) for f in found.findings] == [("hashes", "ok"), ("outputs", "ok"), ("latency", "ok")]
    assert found.exit_code == errors.OK
    assert found.findings[2].said.endswith("within the budget of 900s")


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "run.py", "README.md"])
def test_one_flipped_byte_is_named_and_nothing_is_loaded(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    found = check(bundle)
    assert found.exit_code == errors.MISMATCH
    assert [f.said for f in found.findings] == [f"{name} is not the file that was built"]
    done = alone(bundle, "selftest.py")
    assert (done.returncode, done.stdout) == (9, f"FAIL: not the files that were built: {name}\n")


def forged(bundle: Path, **changes: Any) -> None:
    """Change the manifest, and its hashes to those of the files as they are now."""
    from edgecompile.store import file_hash

    body = json.loads((bundle / "manifest.json").read_text()) | changes
    for name, fact in body["files"].items():
        if (bundle / name).is_file():
            fact["sha256"] = file_hash(bundle / name)
    (bundle / "manifest.json").write_text(json.dumps(body))


def test_outputs_that_no_longer_come_out(bundle: Path) -> None:
    with np.load(bundle / "golden.npz") as stored:
        arrays = {n: stored[n] for n in stored.files}
    arrays |= {n: v * 1.01 for n, v in arrays.items() if n.startswith("output:")}
    np.savez(bundle / "golden.npz", **arrays)
    forged(bundle)
    found = check(bundle)
    assert found.exit_code == errors.ACCURACY
    assert "differs by" in found.findings[1].said
    done = alone(bundle, "selftest.py", "3")
    assert done.returncode == 4
    assert not json.loads((bundle / "result.json").read_text())["passed"]


def test_a_budget_that_this_machine_misses(bundle: Path) -> None:
    forged(bundle, max_latency="1ns")
    found = check(bundle, rounds=8)
    assert found.exit_code == errors.LATENCY
    assert found.findings[2].said.endswith("over the budget of 1ns")


def test_an_artifact_without_a_runtime_here_is_not_run(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecompile.targets.onnx.Onnx.load", lambda *_: None)
    found = check(bundle)
    assert [f.state for f in found.findings] == ["ok", "not run"]
    assert found.exit_code == errors.OK


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a manifest"),
        ('{"schema": 1}', "not a manifest"),
        ('{"schema": 99, "files": {}, "kind": "onnx", "artifact": "m"}', "schema 99, this edgecompile knows"),
        ('{"schema": 1, "files": {"../x": {"sha256": ""}}, "kind": "onnx", "artifact": "m"}', "not below the folder"),
        ('{"schema": 1, "files": {"/etc/x": {"sha256": ""}}, "kind": "onnx", "artifact": "m"}', "not below the folder"),
        ("[" * 100_000, "not a manifest"),
    ],
)
def test_manifests_that_nobody_wrote(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)


def test_folders_without_a_manifest(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json"):
        read_manifest(folder / "out")
    with pytest.raises(InputError, match="no such folder"):
        read_manifest(tmp_path / "none")


def test_the_selftest_needs_neither_torch_nor_edgecompile(bundle: Path) -> None:
    done = alone(bundle, "selftest.py", "5")
    assert done.returncode == 0
    assert done.stdout.startswith("PASS: ")
    assert json.loads((bundle / "result.json").read_text())["rounds"] == 5
    modules = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "onnxruntime" in modules
    assert not modules & {"torch", "edgecompile"}


def test_run_gives_the_golden_outputs(folder: Path, bundle: Path) -> None:
    ended = warm.cli(
        folder, "run", str(bundle), "--input", str(bundle / "golden.npz"), "--output", str(bundle / "y.npz")
    ).wait()
    assert ended.code == errors.OK
    with np.load(bundle / "golden.npz") as golden, np.load(bundle / "y.npz") as found:
        for name in found.files:
            assert np.array_equal(found[name], golden[f"output:{name}"])
            assert name in ended.out
    done = alone(bundle, "run.py", "golden.npz", "z.npz")
    assert done.returncode == 0
    assert (bundle / "z.npz").is_file()
    wrong = warm.cli(folder, "verify", str(bundle.parent)).wait()
    assert wrong.code == errors.USAGE


WANTED = [{"name": "a", "shape": [1, 2], "dtype": "float32"}, {"name": "b", "shape": [1], "dtype": "int64"}]


def test_inputs_are_matched_by_name_or_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(a, np.ones(2, np.float64))
    np.save(b, np.array([3], np.int32))
    for texts in ([f"b={b}", f"a={a}"], [str(a), str(b)]):
        first, second = feed(texts, WANTED)
        assert (first.shape, str(first.dtype), second.tolist(), str(second.dtype)) == (
            (1, 2),
            "torch.float32",
            [3],
            "torch.int64",
        )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a={a}"], "nothing for b"),
        (["c={a}"], "no input 'c'"),
        (["a={a}", "b={a}"], "b: shape 2, the artifact takes 1"),
        (["a={a}", "b={f}"], "b: float64, the artifact takes int64"),
        (["a={none}"], "cannot be read"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, texts: list[str], message: str) -> None:
    np.save(tmp_path / "a.npy", np.ones(2))
    np.save(tmp_path / "f.npy", np.ones(1))
    paths = {"a": tmp_path / "a.npy", "f": tmp_path / "f.npy", "none": tmp_path / "none.npy"}
    with pytest.raises(InputError, match=message):
        feed([t.format(**paths) for t in texts], WANTED)
