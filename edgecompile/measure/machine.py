"""The machine that was measured: what a reader needs to judge a number, and what makes two machines alike."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from pathlib import Path

_FLAGS = (  # instruction sets that decide which kernels a runtime picks: x86, then Arm
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def machine() -> dict[str, object]:
    """Facts of this machine at this moment; what cannot be read is None."""
    model, flags = _processor()
    return {
        "cpu": model,
        "flags": flags,
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "governor": _read(_CPU / "scaling_governor"),
        "clock_mhz": _clock_mhz(),
        "temperature_c": _temperature_c(),
        "load_1min": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def fingerprint() -> str:
    """Sixteen hex digits that are the same as long as processor, instruction sets and core count are."""
    model, flags = _processor()
    facts = json.dumps([model, flags, os.cpu_count(), platform.machine()])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def processor(cpuinfo: str) -> tuple[str | None, list[str]]:
    """Model name and the instruction sets that matter, from the text of /proc/cpuinfo (x86 or Arm)."""
    fields: dict[str, str] = {}
    for name, value in re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.*)$", cpuinfo, re.MULTILINE):
        fields.setdefault(name, value)  # the first core stands for all
    model = fields.get("model name")
    if model is None and "CPU part" in fields:
        model = f"implementer {fields.get('CPU implementer')} part {fields['CPU part']}"
    present = set(fields.get("flags", fields.get("Features", "")).split())
    return model, [flag for flag in _FLAGS if flag in present]


def _processor() -> tuple[str, list[str]]:
    model, flags = processor(_read(Path("/proc/cpuinfo")) or "")
    return model or platform.processor() or platform.machine(), flags


def _clock_mhz() -> float | None:
    khz = _read(_CPU / "scaling_cur_freq")
    if khz is not None:
        return int(khz) / 1000
    found = re.search(r"^cpu MHz\s*:\s*([\d.]+)", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return float(found[1]) if found else None


def _temperature_c() -> float | None:
    """The hottest zone that the kernel shows."""
    texts = [_read(path) for path in sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))]
    return max((int(text) / 1000 for text in texts if text is not None), default=None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # not on this system, or not for this user
        return None
