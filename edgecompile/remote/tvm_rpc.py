"""Profile over TVM's RPC: a tracker on loopback hands out a server, which runs a library that TVM exported.

The protocol has no authentication and runs what it is sent, so nothing but loopback (or an ssh tunnel that ends
there) is spoken to.
"""

from __future__ import annotations

import importlib
import ipaddress
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from edgecompile.errors import DeviceLost, InputError, Refused, TargetError
from edgecompile.remote.address import Address
from edgecompile.remote.artifact import Parcel
from edgecompile.remote.measured import Heard, Measured, measured
from edgecompile.remote.ssh import Plan, Progress
from edgecompile.remote.wire import printable

T = TypeVar("T")
_ATTEMPTS = 3
_FREE_WITHIN_S = 10.0
_TUNNEL = "reach it through a tunnel: ssh -L 9190:127.0.0.1:9190 -L 9090:127.0.0.1:9090 user@host"
_NOTE = "TVM's RPC tells nothing of the device's clock or temperature, and cannot time single functions"


class _Gone(Exception):
    """The server that was handed out is there no longer."""


def profile_tvm(address: Address, parcel: Parcel, plan: Plan, progress: Progress | None = None) -> Measured:
    """Time a library on a server of the tracker, on the next one when a server is lost in the middle."""
    if not _is_loopback(address.host):
        raise _refused(f"the tracker {address.host}")
    inputs, origin = _inputs(parcel)
    if plan.batch not in (1, *(shape[0] for _, shape, _ in parcel.inputs if shape)):
        raise InputError(f"{parcel.model}: its batch is fixed at {parcel.inputs[0][1][:1]}, not {plan.batch}")
    _listening(address)
    tvm = _tvm()
    deadline = time.monotonic() + plan.timeout_s
    notes = [_NOTE]
    heard = Heard()
    for _ in range(_ATTEMPTS):
        rounds: list[tuple[float, ...]] = []  # what two servers measured is never mixed
        session = _session(tvm, address, deadline, heard)
        environment = {"tvm": tvm.__version__, "threads": plan.threads, "inputs": origin}
        heard = Heard(rounds, environment=environment, notes=notes)
        timed = partial(_timed, tvm, session, parcel, inputs, plan, rounds, progress)
        try:
            _within(deadline, timed)
            return measured(address.text, "tvm", heard)
        except _Gone:
            if not rounds:  # and another server would go the same way
                raise DeviceLost(
                    f"{address.text}: the server was lost before the first round; does the library crash it "
                    "(another architecture, a broken file)?"
                ) from None
            notes.append(f"a server was lost after {len(rounds)} of {plan.rounds} rounds")
        except TimeoutError:
            raise _lost(address, plan, heard, "time was up") from None
    raise _lost(address, plan, heard, f"{_ATTEMPTS} servers were lost")


def _session(tvm: Any, address: Address, deadline: float, heard: Heard) -> Any:
    """A session on a free server; TVM itself would wait without end for a key that nobody serves."""
    try:
        tracker = _within(deadline, lambda: tvm.rpc.connect_tracker(address.host, address.port))
        listed = [i for i in tracker.summary()["server_info"] if i["key"] == f"server:{address.key}"]
        hosts = [str(i["addr"][0]) for i in listed]
    except (RuntimeError, OSError, ValueError, KeyError, TimeoutError) as error:
        raise DeviceLost(f"{address.text}: what listens there is not TVM's tracker: {printable(error)}") from None
    for host in hosts:
        if not _is_loopback(host):
            raise _refused(f"the server {printable(host)}, which the tracker names,")
    why = f"the server was lost after {len(heard.rounds)} rounds, and no other is free"
    kept = measured(address.text, "tvm", heard, why) if heard.rounds else None
    start = "start one: python -m tvm.exec.rpc_server"
    if not hosts:
        raise DeviceLost(f"{address.text}: no server is registered for {address.key}; {start}", kept)
    until = min(deadline, time.monotonic() + _FREE_WITHIN_S)
    seconds = max(1, math.ceil(deadline - time.monotonic()))
    try:
        return _within(until, lambda: tracker.request(address.key, session_timeout=seconds, max_retry=2))
    except (RuntimeError, OSError, ValueError, TimeoutError):
        raise DeviceLost(
            f"{address.text}: no server of {address.key} was free within {_FREE_WITHIN_S:.0f} s; {start}", kept
        ) from None
    finally:
        tracker.close()


def _timed(
    tvm: Any,
    session: Any,
    parcel: Parcel,
    inputs: list[Any],
    plan: Plan,
    rounds: list[tuple[float, ...]],
    progress: Progress | None,
) -> None:
    """Fill `rounds`; `_Gone` when the server is lost, one line when the library does not run."""
    name = f"edgecompile-{secrets.token_hex(8)}.so"
    try:
        session.upload(bytearray(parcel.model.read_bytes()), target=name)  # given a path, it leaks the file
        session.get_function("runtime.config_threadpool")(1, plan.threads)
        module, device = session.load_module(name), session.cpu(0)
        machine = tvm.runtime.vm.VirtualMachine(module, device)
        arity = int(machine._get_function_arity("main"))
        if arity != len(inputs):
            raise InputError(f"{parcel.model}: main takes {arity} inputs, and {len(inputs)} are known")
        machine.set_input("main", *(tvm.runtime.tensor(value, device) for value in inputs))
        first = machine.time_evaluator("invoke_stateful", device, number=1, repeat=5)("main").results
        affordable = int(min(60.0, plan.timeout_s / 2) / (plan.rounds * max(min(first), 1e-6)))
        repeat = max(3, min(math.ceil(plan.samples / plan.rounds), affordable))
        evaluator = machine.time_evaluator("invoke_stateful", device, number=1, repeat=repeat)
        for index in range(plan.rounds):
            rounds.append(tuple(float(s) for s in evaluator("main").results))
            if progress is not None:
                progress("measuring", index + 1, plan.rounds)
        session.remove(name)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # TVM has one error for a lost server and for a library that does not load
        if not _alive(session):
            raise _Gone from error
        raise TargetError(f"{parcel.model}: the server does not run it: {_reason(error)}") from error


def _alive(session: Any) -> bool:
    try:
        session.get_function("tvm.rpc.server.workpath")
    except Exception:  # whatever it says: nobody answers
        return False
    return True


def _reason(error: Exception) -> str:
    """The line of TVM's long report that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for word in ("wrong ELF", "invalid ELF", "cannot open shared", "undefined symbol", "no function", "ismatch"):
        for line in lines:
            if word in line:
                hint = "wrong architecture? " if "ELF" in word or "shared" in word else ""
                return hint + printable(line)
    return printable(lines[-1]) if lines else type(error).__name__


def _within(deadline: float, call: Callable[[], T]) -> T:
    """The call's result; TimeoutError when it is not back in time, and it is left alone."""
    box: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            box.append(call())
        except BaseException as error:  # raised again below, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    if not box:
        raise TimeoutError
    return box[0]


def _inputs(parcel: Parcel) -> tuple[list[Any], str]:
    """Golden inputs in the manifest's order, zeros where there are none; and which they are."""
    import numpy as np

    if not parcel.inputs:
        raise InputError(
            f"{parcel.model}: a library does not say its input shapes; give the folder with its manifest.json"
        )
    golden: dict[str, Any] = {}
    if "golden.npz" in parcel.files:
        with np.load(parcel.files["golden.npz"], allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
    found = [golden.get(f"input:{name}") for name, _, _ in parcel.inputs]
    zeros = [np.zeros(shape, dtype) for _, shape, dtype in parcel.inputs]
    if any(value is None for value in found):
        return zeros, "zeros"
    return found, "golden"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may resolve to anything
        return False


def _refused(what: str) -> Refused:
    return Refused(
        "EC-RE-001", "--device", "loopback only: TVM's RPC has no authentication", f"{what} is not on loopback", _TUNNEL
    )


def _listening(address: Address) -> None:
    """TVM would retry for a minute where nobody listens."""
    try:
        socket.create_connection((address.host, address.port), 5).close()
    except OSError as error:
        why = printable(error.strerror or error)
        raise DeviceLost(
            f"{address.text}: not reachable ({why}); start a tracker: python -m tvm.exec.rpc_tracker"
        ) from None


def _tvm() -> Any:
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")  # else it compiles a bridge to torch
    try:
        for name in ("tvm.rpc", "tvm.runtime.vm"):
            importlib.import_module(name)
    except ImportError as error:
        raise TargetError(
            f"tvm://: {error.name} is not installed: pip install 'edgecompile[tvm]'", rule="toolchain"
        ) from None
    return sys.modules["tvm"]


def _lost(address: Address, plan: Plan, heard: Heard, why: str) -> DeviceLost:
    done = len(heard.rounds)
    partial = measured(address.text, "tvm", heard, f"{why} after {done} of {plan.rounds} rounds")
    return DeviceLost(
        f"{address.text}: {why} after {done} of {plan.rounds} rounds; what arrived is kept, measure again", partial
    )
