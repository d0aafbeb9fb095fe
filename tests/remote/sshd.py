"""A real sshd on loopback with keys of its own, and small artifacts to send there."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper

Find = Callable[[str, str], str]


@dataclass(frozen=True)
class Server:
    """A running sshd, and the folder of its keys; `temporary` is where it makes its folders."""

    port: int
    folder: Path
    temporary: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(folder: Path, apt_tool: Find, path: str) -> Server:
    """An sshd with keys of its own; its sessions find programs in `path`."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    sshd, keygen = apt_tool("sshd", "openssh-server"), apt_tool("ssh-keygen", "openssh-client")
    apt_tool("scp", "openssh-client")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd drops its privileges to
    for name in ("host", "client", "other"):
        command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    shutil.copy(folder / "client.pub", folder / "authorized")
    temporary, port = folder / "tmp", free_port()
    temporary.mkdir()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"SetEnv HOME={folder} PATH={path} TMPDIR={temporary}\nSubsystem sftp internal-sftp\n"
    )
    know(folder, port, "host")
    (folder / "ssh_config").write_text(
        f"Host 127.0.0.1\n  IdentityFile {folder}/client\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile /dev/null\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stdout=log, stderr=log)
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return Server(port, folder, temporary, process)
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.05)
    raise AssertionError("sshd does not listen")


def stop(server: Server) -> None:
    for child in server.children():
        with suppress(psutil.NoSuchProcess):
            child.kill()
    server.process.kill()
    server.process.wait()


def know(folder: Path, port: int, name: str) -> None:
    kind, key, *_ = (folder / f"{name}.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")


def write_model(path: Path, width: int = 64, batch: int | str = 1) -> Path:
    """A matrix product and a ReLU with the weights inside."""
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((width, width)).astype("f4"), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"], "product"), helper.make_node("Relu", ["h"], ["y"], "relu")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def write_artifact(folder: Path, width: int = 64) -> Path:
    """A folder as a build leaves it: model, golden inputs and outputs, manifest."""
    folder.mkdir()
    model = onnx.load(write_model(folder / "model.onnx", width))
    x = np.random.default_rng(1).standard_normal((1, width)).astype("f4")
    y = np.maximum(x @ onnx.numpy_helper.to_array(model.graph.initializer[0]), 0)
    np.savez(folder / "golden.npz", **{"input:x": x, "output:y": y})  # type: ignore[arg-type]
    inputs = [{"name": "x", "shape": [1, width], "dtype": "float32"}]
    (folder / "manifest.json").write_text(json.dumps({"artifact": "model.onnx", "inputs": inputs}))
    return folder
