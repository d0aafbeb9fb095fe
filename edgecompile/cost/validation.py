"""The shipped table of validation: what backs a prediction on a device in a dtype, and how far it may be off."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from edgecompile.device import DeviceProfile

_GROUPS = 2
"""With fewer architectures measured than this, nothing says how the law carries over to others."""


@cache
def table() -> dict[str, Any]:
    """`device_profiles/validation.json`, which `edgecompile bench validate --write` makes."""
    path = resources.files("edgecompile.device_profiles") / "validation.json"
    found: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"lines": [], "devices": []}
    )
    return found


def evidence(device: DeviceProfile, dtype: str) -> tuple[bool | str, str, float]:
    """Whether measured latencies back a device in a dtype (or why not), what does, and the factor of the interval."""
    lines = {line["dtype"]: line for line in table()["lines"] if line["fit"] == device.fit}
    whole = lines.get("all") or next(iter(lines.values()), None)
    if whole is None:
        return f"no measured latency of {device.title} is public", "a specification sheet alone", 2.0
    spread = float(whole["spread"])
    line = lines.get(dtype) or (whole if whole["dtype"] == dtype else None)
    if device.name not in table()["devices"]:
        why = f"no measured latency of {device.title} is public: its parameters are those of {device.fit}"
        return why, f"parameters fitted on {whole['n']} latencies of {device.fit}", spread
    if device.mode and device.mode != next(iter(device.modes)):
        why = f"no measured latency in mode {device.mode}: rates and bandwidth are scaled to its clocks"
        return why, f"parameters fitted on {whole['n']} latencies of {device.fit} in {next(iter(device.modes))}", spread
    if line is None:
        return f"no measured latency of {device.title} in {dtype} is public", "parameters of other dtypes", spread
    if line["groups"] < _GROUPS:
        why = f"only one architecture was measured on {device.title} in {dtype} ({line['n']} rows)"
        return why, f"{line['n']} latencies of one architecture", spread
    spread = float(line["spread"])
    said = (
        f"{line['n']} measured latencies of {line['groups']} groups of networks in {dtype}: median error "
        f"{100 * line['median']:.0f} %, 90th percentile {100 * line['p90']:.0f} %, each group left out in turn"
    )
    return True, said, spread
