"""Profile an artifact on the device that an address names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType

from edgecompile.errors import DeviceLost, SpecError
from edgecompile.remote.address import parse_address
from edgecompile.remote.artifact import parcel
from edgecompile.remote.measured import Measured
from edgecompile.remote.ssh import Plan, Progress

_MOST_ROUNDS = 1000


def profile(
    artifact: Path,
    device: str,
    *,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 30,
    timeout_s: float = 600,
    progress: Progress | None = None,
    date: str | None = None,
) -> Measured:
    """Time an artifact on `host` (this machine), `ssh://user@host`, `tvm://tracker:port/key`, `adb://serial` or `mac://user@host`.

    `progress(stage, done, total)` is called as it goes on; `date` is put into the environment, no clock is read here.
    Raises `DeviceLost` (exit code 6), with what was measured until then in `partial`, and other one-line errors.
    """
    for name, value in (("threads", threads), ("batch", batch), ("rounds", rounds), ("timeout", timeout_s)):
        if value <= 0:
            raise SpecError(f"--{name} {value}: must be above 0")
    if rounds > _MOST_ROUNDS:
        raise SpecError(f"--rounds {rounds}: more than {_MOST_ROUNDS} tell nothing new; give fewer")
    plan = Plan(threads, batch, rounds, float(timeout_s))
    if device == "host":
        from edgecompile.remote.local import profile_local

        return _dated(profile_local(parcel(artifact), plan, progress), date)
    address = parse_address(device)
    try:
        match address.kind:
            case "ssh":
                from edgecompile.remote.ssh import profile_ssh

                found = profile_ssh(address, parcel(artifact), plan, progress)
            case "tvm":
                from edgecompile.remote.tvm_rpc import profile_tvm

                found = profile_tvm(address, parcel(artifact, ".so"), plan, progress)
            case "adb":
                from edgecompile.remote.adb import profile_adb

                found = profile_adb(address, parcel(artifact), plan, progress)
            case _:
                from edgecompile.remote.mac import profile_mac

                found = profile_mac(address, artifact, plan, progress)
    except DeviceLost as lost:
        if isinstance(lost.partial, Measured):
            lost.partial = _dated(lost.partial, date)
        raise
    return _dated(found, date)


def _dated(found: Measured, date: str | None) -> Measured:
    return dataclasses.replace(found, environment=MappingProxyType({**found.environment, "date": date}))
