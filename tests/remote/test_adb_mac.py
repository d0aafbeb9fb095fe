"""Command lines and readers for Android and the Mac; neither was at hand, so nothing was run on them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompile.errors import DEVICE_LOST, DeviceLost, InputError, OutputError, TargetError
from edgecompile.remote import adb, mac, profile
from edgecompile.remote.address import parse_address
from edgecompile.remote.ssh import Plan

MAC = parse_address("mac://me@studio")


@pytest.fixture
def real_adb(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """adb with a server of its own, which is stopped again."""
    path = shutil.which("adb")
    if path is None:
        pytest.skip("Debian package adb absent")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "15037")
    yield path
    subprocess.run([path, "kill-server"], check=False, capture_output=True)


def test_no_device_of_that_number(real_adb: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(DeviceLost, match=r"adb does not reach it: .*'emulator-9999' not found") as caught:
        profile(tmp_path / "m.onnx", "adb://emulator-9999")
    assert caught.value.exit_code == DEVICE_LOST
    assert "\n" not in str(caught.value)


def test_adb_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"adb is not installed here: sudo apt install adb") as caught:
        profile(tmp_path / "m.onnx", "adb://0123456789ABCDEF")
    assert caught.value.rule == "toolchain"


def test_adb_command_lines(real_adb: str) -> None:
    assert adb.push("XYZ", "/tmp/a b.onnx", "/data/x")[1:] == ["-s", "XYZ", "push", "/tmp/a b.onnx", "/data/x"]
    assert adb.shell("XYZ", "id")[1:] == ["-s", "XYZ", "shell", "-T", "id"]


def test_the_android_benchmark() -> None:
    script = adb.run_script("/data/local/tmp/edgecompile-1", Plan(threads=2, samples=500))
    assert script == (
        "cd /data/local/tmp/edgecompile-1 && /data/local/tmp/onnxruntime_perf_test -e cpu -m times -r 500 -x 2 -y 1 "
        "-I -S 1 /data/local/tmp/edgecompile-1/model.onnx /data/local/tmp/edgecompile-1/times.csv"
    )


def test_android_times() -> None:
    """A sample in the form of ONNX Runtime's source: model, seconds, peak bytes, CPU percent, index."""
    sample = "edgecompile-1,0.00125,50905088,74,0\nedgecompile-1,0.0013,50905088,74,1\n"
    assert adb.read_times(sample) == [0.00125, 0.0013]
    for other in ("", "a,1\n", "m,0.1,5,7,1\n", "m,0,5,7,0\n", "m,x,5,7,0\n"):
        with pytest.raises(TargetError, match=r"a format that is not known"):
            adb.read_times(other)


def test_android_facts() -> None:
    """A sample of getprop and dumpsys thermalservice."""
    sample = "ro.product.model=Pixel 8\nro.soc.model=Tensor G3\nro.product.cpu.abi=arm64-v8a\nThermal Status: 0\n"
    assert adb.read_facts(sample)["ro.product.model"] == "Pixel 8"
    assert adb.read_facts(sample)["thermal_status"] == 0
    assert adb.read_facts("")["thermal_status"] is None


def test_complaints_of_adb() -> None:
    assert isinstance(adb.failure("adb://X", "adb: device 'X' not found"), DeviceLost)
    assert isinstance(adb.failure("adb://X", "error: device unauthorized."), DeviceLost)
    assert isinstance(adb.failure("adb://X", "error: closed"), DeviceLost)
    assert isinstance(adb.failure("adb://X", "adb: error: failed to copy: No space left on device"), OutputError)
    assert isinstance(adb.failure("adb://X", "something"), TargetError)


def test_mac_scripts() -> None:
    assert mac.run_script("/var/folders/x/T/tmp.1", ".mlpackage", "python3") == (
        "cd /var/folders/x/T/tmp.1 && xcrun coremlcompiler compile model.mlpackage . >&2 && python3 mac_script.py; "
        "c=$?; cd /; rm -rf -- /var/folders/x/T/tmp.1; exit $c\n"
    )
    assert "NONCE" not in mac.probe_script("0f", "python3")


def test_what_a_mac_answers() -> None:
    good = "n os Darwin\nn system 15.1\nn cpu Apple M2\nn folder /var/folders/x/T/tmp.1\n"
    assert mac.read_probe(good, "n", MAC)["cpu"] == "Apple M2"
    for text, message in (
        ("n os Linux\n", r"it runs Linux, not macOS"),
        ("n os Darwin\nn missing xcode\n", r"coremlcompiler is missing there: install Xcode"),
        ("n os Darwin\nn missing coremltools\n", r"python3 -m pip install coremltools"),
    ):
        with pytest.raises(TargetError, match=message):
            mac.read_probe(text, "n", MAC)
    with pytest.raises(DeviceLost, match=r"its shell did not run a script"):
        mac.read_probe("go away", "n", MAC)


def test_mac_artifacts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mac:// runs one \.mlpackage or \.mlmodel, found none"):
        profile(tmp_path, "mac://me@studio")
    (tmp_path / "model.mlpackage").mkdir()
    assert mac.find_model(tmp_path) == mac.find_model(tmp_path / "model.mlpackage")
