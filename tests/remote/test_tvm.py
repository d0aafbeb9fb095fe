"""TVM's own tracker and servers on loopback: a library is timed, and a server is lost in the middle."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from edgecompile.errors import DEVICE_LOST, DeviceLost, InputError, Refused, TargetError
from edgecompile.remote import Measured, profile
from edgecompile.remote.address import parse_address

pytestmark = pytest.mark.slow
SIZE = 1024
_BUILD = """
import sys
import numpy as np, tvm
from tvm import relax
n = int(sys.argv[1])
bb = relax.BlockBuilder()
x = relax.Var("x", relax.TensorType((1, n), "float32"))
w = relax.const(np.random.default_rng(0).random((n, n), "f4"))
with bb.function("main", [x]):
    with bb.dataflow():
        out = bb.emit_output(relax.op.nn.relu(bb.emit(relax.op.matmul(x, w))))
    bb.emit_func_output(out)
tvm.compile(bb.get(), target=tvm.target.Target({"kind": "llvm"})).export_library(sys.argv[2])
"""


class Farm:
    """A tracker, and servers that can be started and killed one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.servers: list[subprocess.Popen[bytes]] = []
        self.tracker = self._start("rpc_tracker", f"--port={self.port}", f"--port-end={self.port + 1}")

    def serve(self, key: str) -> None:
        port = _free_port()
        where = (f"--tracker=127.0.0.1:{self.port}", f"--key={key}", f"--port={port}", f"--port-end={port + 9}")
        self.servers.append(self._start("rpc_server", *where))

    def _start(self, module: str, *options: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1", "TVM_NUM_THREADS": "1"}
        with (self.folder / f"{module}{len(self.servers)}.log").open("wb") as log:
            command = [sys.executable, "-m", f"tvm.exec.{module}", "--host=127.0.0.1", *options]
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def ready(self, key: str, count: int) -> None:
        """Wait until so many servers of the key are free."""
        from tvm import rpc

        for _ in range(600):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            time.sleep(0.1)
        tracker = rpc.connect_tracker("127.0.0.1", self.port)
        for _ in range(600):
            if tracker.summary()["queue_info"].get(key, {}).get("free", 0) >= count:
                tracker.close()
                return
            time.sleep(0.1)
        raise AssertionError(f"no {count} servers of {key}")

    def kill_busy(self) -> int:
        """Kill the server that has a client; how many were found."""
        busy = [s for s in self.servers if s.poll() is None and _has_client(s.pid)]
        for server in busy:
            os.killpg(server.pid, signal.SIGKILL)
        return len(busy)

    def close(self) -> None:
        for process in (*self.servers, self.tracker):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _has_client(pid: int) -> bool:
    """Whether something other than the tracker is connected to a process of this server."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    connections = [c for p in family for c in _connections(p)]
    ports = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return any(c.status == psutil.CONN_ESTABLISHED and c.laddr.port in ports for c in connections)


def _connections(process: psutil.Process) -> list[psutil._common.pconn]:
    with suppress(psutil.NoSuchProcess):  # a child that has just ended
        return process.net_connections(kind="tcp")
    return []


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    pytest.importorskip("tvm", reason="the extra [tvm] is not installed")
    pytest.importorskip("tornado", reason="tornado, which TVM's tracker needs, is not installed")
    started = Farm(tmp_path_factory.mktemp("farm"))
    try:
        started.serve("one")
        started.ready("one", 1)
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def artifact(farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    command = [sys.executable, "-W", "ignore", "-c", _BUILD, str(SIZE), str(folder / "lib.so")]
    subprocess.run(command, check=True, env={**os.environ, "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1"})
    inputs = [{"name": "x", "shape": [1, SIZE], "dtype": "float32"}]
    (folder / "manifest.json").write_text(json.dumps({"artifact": "lib.so", "inputs": inputs}))
    return folder


def test_a_library_on_a_server(farm: Farm, artifact: Path) -> None:
    found = profile(artifact, f"tvm://127.0.0.1:{farm.port}/one", rounds=10, date="today")
    assert (found.kind, found.complete, len(found.samples_ms)) == ("tvm", True, 10)
    assert found.interval is not None
    assert 0 < found.interval.low <= found.interval.value <= found.interval.high
    assert found.percentiles[99] is not None
    assert found.environment["date"] == "today"
    assert found.rows == ()


def test_a_server_is_killed_in_the_middle(farm: Farm, artifact: Path) -> None:
    """The job still ends, on the other server, and with rounds of that one alone."""
    farm.serve("pair")
    farm.serve("pair")
    farm.ready("pair", 2)
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if done == 3 and not killed:
            killed.append(farm.kill_busy())

    found = profile(artifact, f"tvm://127.0.0.1:{farm.port}/pair", rounds=10, progress=kill)
    assert killed == [1]
    assert found.complete
    assert len(found.samples_ms) == 10
    (note,) = [n for n in found.notes if "was lost" in n]
    assert note.startswith("a server was lost after 3 of 10 rounds")


def test_the_only_server_is_killed(farm: Farm, artifact: Path) -> None:
    farm.serve("single")
    farm.ready("single", 1)
    with pytest.raises(DeviceLost) as caught:
        profile(
            artifact,
            f"tvm://127.0.0.1:{farm.port}/single",
            rounds=10,
            progress=lambda stage, done, total: farm.kill_busy() if done == 3 else None,
        )
    assert caught.value.exit_code == DEVICE_LOST
    assert "\n" not in str(caught.value)
    partial = caught.value.partial
    assert isinstance(partial, Measured)
    assert (partial.complete, len(partial.samples_ms)) == (False, 3)


def test_nobody_serves_the_key(farm: Farm, artifact: Path) -> None:
    """TVM itself would wait without end."""
    with pytest.raises(DeviceLost, match=r"no server is registered for nobody"):
        profile(artifact, f"tvm://127.0.0.1:{farm.port}/nobody")


def test_a_library_for_another_processor(farm: Farm, artifact: Path, tmp_path: Path) -> None:
    content = bytearray((artifact / "lib.so").read_bytes())
    content[18:20] = (21).to_bytes(2, "little")  # e_machine: 64-bit PowerPC
    (tmp_path / "lib.so").write_bytes(content)
    (tmp_path / "manifest.json").write_text((artifact / "manifest.json").read_text())
    with pytest.raises(TargetError, match=r"the server does not run it: wrong architecture\?") as caught:
        profile(tmp_path, f"tvm://127.0.0.1:{farm.port}/one")
    assert "\n" not in str(caught.value)


def test_a_library_that_crashes_the_server(farm: Farm, artifact: Path, tmp_path: Path) -> None:
    """Only one server is given to it."""
    farm.serve("victims")
    farm.serve("victims")
    farm.ready("victims", 2)
    (tmp_path / "lib.so").write_bytes((artifact / "lib.so").read_bytes()[:4000])
    (tmp_path / "manifest.json").write_text((artifact / "manifest.json").read_text())
    with pytest.raises(DeviceLost, match=r"the server was lost before the first round"):
        profile(tmp_path, f"tvm://127.0.0.1:{farm.port}/victims")
    farm.ready("victims", 1)


def test_no_tracker(artifact: Path) -> None:
    with pytest.raises(DeviceLost, match=r"not reachable \(Connection refused\); start a tracker"):
        profile(artifact, f"tvm://127.0.0.1:{_free_port()}/one")


@pytest.mark.parametrize("host", ["192.168.1.5", "board.example", "[2001:db8::1]"])
def test_only_loopback(host: str, tmp_path: Path) -> None:
    (tmp_path / "lib.so").touch()
    with pytest.raises(Refused, match=r"TVM's RPC has no authentication") as caught:
        profile(tmp_path / "lib.so", f"tvm://{host}:9190/key")
    assert "\n" not in str(caught.value)


def test_shapes_must_be_known(tmp_path: Path) -> None:
    (tmp_path / "lib.so").touch()
    with pytest.raises(InputError, match=r"a library does not say its input shapes"):
        profile(tmp_path / "lib.so", "tvm://127.0.0.1:9190/key")


def test_address() -> None:
    found = parse_address("tvm://[::1]:9190/orin-nano")
    assert (found.host, found.port, found.key) == ("::1", 9190, "orin-nano")
