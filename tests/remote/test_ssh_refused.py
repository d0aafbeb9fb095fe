"""What a board cannot or will not do, through a real sshd on loopback: one line each, and nothing stays there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompile.errors import UNSUPPORTED, DeviceLost, OutputError, TargetError
from edgecompile.remote import profile
from edgecompile.remote.ssh_command import CONFIG
from tests.remote.sshd import Find, Server, free_port, know, start, stop, write_model


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, apt_tool: Find) -> Iterator[Server]:
    tools = Path(sys.executable).parent
    server = start(tmp_path_factory.mktemp("sshd"), apt_tool, f"{tools}:/usr/local/bin:/usr/bin:/bin")
    yield server
    stop(server)


@pytest.fixture
def server(shared: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv(CONFIG, str(shared.folder / "ssh_config"))
    return shared


def test_wrong_host_key(server: Server, tmp_path: Path) -> None:
    """Another key than the known one is refused, an unknown one too: checking is never off."""
    model = write_model(tmp_path / "m.onnx")
    try:
        know(server.folder, server.port, "other")
        with pytest.raises(DeviceLost, match=r"refused: its host key is not the one that is known") as caught:
            profile(model, server.url)
        assert caught.value.exit_code == 6
        (server.folder / "known").write_text("")
        with pytest.raises(DeviceLost, match=r"refused: its host key is not known"):
            profile(model, server.url)
        config = server.folder / "ssh_config"
        before = config.read_text()
        config.write_text(before + "  StrictHostKeyChecking no\n")
        with pytest.raises(DeviceLost, match=r"refused: its host key is not known"):
            profile(model, server.url)
        config.write_text(before)
    finally:
        know(server.folder, server.port, "host")


def test_no_key_is_accepted(server: Server, tmp_path: Path) -> None:
    keys = (server.folder / "authorized").read_text()
    (server.folder / "authorized").write_text("")
    try:
        with pytest.raises(DeviceLost, match=r"it accepted no key; give it yours: ssh-copy-id"):
            profile(write_model(tmp_path / "m.onnx"), server.url)
    finally:
        (server.folder / "authorized").write_text(keys)


def test_unreachable(server: Server, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    with pytest.raises(DeviceLost, match=r"not reachable \(connection refused\)") as caught:
        profile(model, f"ssh://somebody@127.0.0.1:{free_port()}")
    assert caught.value.partial is None
    with pytest.raises(DeviceLost, match=r"no host of that name"):
        profile(model, "ssh://somebody@nowhere.invalid")


def test_disk_is_full(server: Server, tmp_path: Path) -> None:
    """A sparse weights file that is larger than the disk is refused before it is sent."""
    model = write_model(tmp_path / "m.onnx")
    try:
        with (tmp_path / "m.onnx.data").open("wb") as file:
            file.truncate(shutil.disk_usage(server.temporary).free + 10**9)
    except OSError:
        pytest.skip("this file system has no sparse files of that size")
    with pytest.raises(OutputError, match=r"its disk is full: \S+ needs \d+ MB and has \d+ MB"):
        profile(model, server.url)
    assert not list(server.temporary.iterdir())


def test_not_a_model(server: Server, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(TargetError, match=r"ONNX Runtime \S+ there does not load the model") as caught:
        profile(tmp_path / "m.onnx", server.url)
    assert "\n" not in str(caught.value)
    assert not list(server.temporary.iterdir())


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ((), r"python3 is missing there: sudo apt install python3"),
        (("python3",), r"python3 there has no onnxruntime|has no numpy and onnxruntime: python3 -m pip install"),
    ],
)
def test_missing_tools(
    tools: tuple[str, ...], message: str, tmp_path: Path, apt_tool: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board that has only the tools of a small system."""
    few = tmp_path / "bin"
    few.mkdir()
    for name in ("sh", "uname", "mktemp", "df", "tail", "head", "rm", "cat", "grep"):
        (few / name).symlink_to(apt_tool(name, "coreutils"))
    for name in tools:
        bare = few / name  # isolated from every package that is installed
        bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
        bare.chmod(0o755)
    server = start(tmp_path, apt_tool, str(few))
    monkeypatch.setenv(CONFIG, str(server.folder / "ssh_config"))
    try:
        with pytest.raises(TargetError, match=message) as caught:
            profile(write_model(tmp_path / "m.onnx"), server.url)
        assert (caught.value.rule, caught.value.exit_code) == ("toolchain", UNSUPPORTED)
        with pytest.raises(TargetError, match=r"/opt/none/python is not there, or does not run"):
            profile(tmp_path / "m.onnx", server.url + "?python=/opt/none/python")
        assert not list(server.temporary.iterdir())
    finally:
        stop(server)
