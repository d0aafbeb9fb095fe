"""Addresses of devices and artifacts: what is refused before anything is sent, and how the line reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompile.errors import InputError, SpecError
from edgecompile.remote import parse_address, profile
from edgecompile.remote.artifact import parcel
from edgecompile.remote.ssh_command import CONFIG


def test_parts() -> None:
    found = parse_address("ssh://me@Orin-1.lab:2222?python=/opt/env/bin/python")
    assert (found.user, found.host, found.port, found.python) == ("me", "Orin-1.lab", 2222, "/opt/env/bin/python")
    assert parse_address("ssh://board").destination == "board"
    assert parse_address("mac://me@[fe80::1%en0]").destination == "me@[fe80::1%en0]"
    assert parse_address("adb://192.168.1.7:5555").host == "192.168.1.7:5555"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("ssh://", r"the host is missing"),
        ("ssh://-oProxyCommand=x", r"the host '-oProxyCommand=x' has characters"),
        ("ssh://a;b@host", r"the user 'a;b' has characters"),
        ("ssh://me:secret@host", r"no password belongs into an address"),
        ("ssh://me@host:99999", r"[Pp]ort"),
        ("ssh://me@host/etc", r"nothing may follow the host"),
        ("ssh://me@host?python=$(reboot)", r"python must be an absolute path"),
        ("ssh://me@host?pyhton=/a/b", r"unknown option 'pyhton'; did you mean python"),
        ("shs://me@host", r"did you mean ssh"),
        ("tvm://127.0.0.1:9190", r"the device key is missing"),
        ("tvm://127.0.0.1/key", r"the tracker's port is missing"),
        ("adb://-s", r"the serial number '-s' has characters"),
    ],
)
def test_addresses_that_are_refused(device: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        profile(tmp_path, device)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_artifacts_that_are_refused(tmp_path: Path) -> None:
    for content, message in (((), "found none"), (("a.onnx", "b.onnx"), "found a.onnx, b.onnx")):
        for name in content:
            (tmp_path / name).touch()
        with pytest.raises(InputError, match=message):
            profile(tmp_path, "ssh://me@host")
    with pytest.raises(InputError, match=r"no such file or folder"):
        profile(tmp_path / "none", "ssh://me@host")
    (tmp_path / "lib.so").touch()
    with pytest.raises(InputError, match=r"this device runs \.onnx files"):
        profile(tmp_path / "lib.so", "ssh://me@host")


def test_what_is_sent(tmp_path: Path) -> None:
    """The model under a name of ours, weights beside it under the name that the model gives them."""
    for name in ("m.onnx", "m.onnx.data", "golden.npz", "report.json"):
        (tmp_path / name).write_bytes(b"12")
    found = parcel(tmp_path)
    assert set(found.files) == {"model.onnx", "m.onnx.data", "golden.npz"}
    assert (found.size_bytes, found.quantized, found.inputs) == (6, False, ())
    (tmp_path / "m.onnx").write_bytes(b"x" * (2**20 - 5) + b"QuantizeLinear")
    assert parcel(tmp_path / "m.onnx").quantized
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match=r"not a manifest that `edgecompile build` wrote"):
        parcel(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("threads", 0), ("batch", -1), ("rounds", 0), ("timeout_s", 0), ("rounds", 1001)]
)
def test_numbers_that_are_refused(name: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"--{name.removesuffix('_s')} {value}: "):
        profile(tmp_path, "ssh://me@host", **{name: value})  # type: ignore[arg-type]


def test_a_configuration_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG, str(tmp_path / "none"))
    (tmp_path / "m.onnx").touch()
    with pytest.raises(SpecError, match=r"EDGECOMPILE_SSH_CONFIG=.*: no such file"):
        profile(tmp_path / "m.onnx", "ssh://me@host")
