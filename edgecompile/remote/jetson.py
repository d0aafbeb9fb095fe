"""A Jetson: the command lines of NVIDIA's tools, and readers for what they write. Not run on a Jetson here.

The formats are those of NVIDIA's documentation and of trtexec's published source (8.5 to 10): a version or a format
that is not known is an error or a note, never a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgecompile.errors import InputError, TargetError
from edgecompile.remote.artifact import Parcel
from edgecompile.remote.measured import Heard, Row
from edgecompile.remote.wire import Transcript, printable

NOT_RUN = "the Jetson path was built from NVIDIA's documentation and has not been run on a Jetson"
_BUSY_PERCENT = 20
Version = tuple[int, int, int]


@dataclass(frozen=True)
class Clock:
    """The range that a unit's clock may move in, and where it is, in MHz."""

    min_mhz: float
    max_mhz: float
    now_mhz: float

    @property
    def locked(self) -> bool:
        """Whether `jetson_clocks` holds it at its maximum."""
        return self.min_mhz == self.max_mhz


@dataclass(frozen=True)
class Tegra:
    """One line of tegrastats; what is not in it is None or empty."""

    cpu_mhz: tuple[int, ...] = ()
    gpu_percent: int | None = None
    gpu_mhz: float | None = None
    emc_mhz: float | None = None
    temperatures_c: dict[str, float] = field(default_factory=dict)
    power_mw: dict[str, int] = field(default_factory=dict)


def version(banner: str) -> Version:
    """TensorRT's version in `&&&& RUNNING TensorRT.trtexec [TensorRT v100300] ...`; refuses what is not known."""
    match = re.search(r"\[TensorRT v(\d+)\]", banner)
    digits = match[1] if match else ""
    if len(digits) == 4:  # 8502 is 8.5.2
        found = (int(digits[0]), int(digits[1]), int(digits[2:]))
    elif len(digits) in (5, 6):  # 100300 is 10.3.0
        found = (int(digits[:-4]), int(digits[-4:-2]), int(digits[-2:]))
    else:
        raise TargetError(f"trtexec: no version is known in {banner!r}; versions 8.5 to 10 are", rule="toolchain")
    if not (8, 5, 0) <= found < (11, 0, 0):
        shown = ".".join(map(str, found))
        raise TargetError(f"trtexec {shown}: not one of the known versions, 8.5 to 10", rule="toolchain")
    return found


def job(trtexec: str, banner: str, parcel: Parcel, batch: int, samples: int) -> dict[str, Any]:
    """What the script on the board is told: build an engine, watch, and run it."""
    fixed = parcel.inputs[0][1][0] if parcel.inputs and parcel.inputs[0][1] else 1
    if batch not in (1, fixed):
        raise InputError(f"{parcel.model}: the model's batch is fixed at {fixed}, not {batch}; build it for that batch")
    known = version(banner)
    return {
        "tool": "trtexec",
        "build": build_command(trtexec, known, parcel.quantized),
        "command": run_command(trtexec, samples),
        "watch": ["tegrastats", "--interval", "500"],
        "asks": {"nvpmodel": ["nvpmodel", "-q"], "clocks": ["sudo", "-n", "jetson_clocks", "--show"]},
        "files": ["times.json", "profile.json", "layers.json"],
    }


def build_command(trtexec: str, known: Version, quantized: bool) -> list[str]:
    """The engine: strongly typed from TensorRT 10 on; before, the precisions must be allowed one by one."""
    only = "--skipInference" if known >= (8, 6, 0) else "--buildOnly"
    precision = ["--stronglyTyped"] if known >= (10, 0, 0) else (["--fp16", "--int8"] if quantized else ["--fp16"])
    verbosity = "--profilingVerbosity=detailed"
    return [trtexec, "--onnx=model.onnx", "--saveEngine=model.engine", only, verbosity, *precision]


def run_command(trtexec: str, samples: int) -> list[str]:
    """The timing; layers are profiled in a run of their own, since profiling slows the others down."""
    return [
        trtexec,
        "--loadEngine=model.engine",
        "--warmUp=1000",
        "--duration=10",
        f"--iterations={samples}",
        "--separateProfileRun",
        "--dumpProfile",
        "--dumpLayerInfo",
        "--profilingVerbosity=detailed",
        "--exportTimes=times.json",
        "--exportProfile=profile.json",
        "--exportLayerInfo=layers.json",
    ]


def read_times(text: str) -> list[float]:
    """Seconds of each inference, copies to and from the GPU included, from `--exportTimes`."""
    try:
        seconds = [float(entry["latencyMs"]) * 1e-3 for entry in json.loads(text)]
    except (ValueError, TypeError, KeyError):
        raise TargetError("trtexec: --exportTimes wrote a format that is not known: latencyMs was looked for") from None
    if not seconds or not all(0 < s < 1e4 for s in seconds):
        raise TargetError(f"trtexec: --exportTimes wrote {len(seconds)} times, and not all of them can be times")
    return seconds


def read_profile(text: str, units: dict[str, str]) -> list[Row]:
    """Layers with their average time, from `--exportProfile`; ValueError for an unknown format."""
    try:
        count, *layers = json.loads(text)
        if int(count["count"]) < 1:
            raise ValueError("no iteration was profiled")
        return [
            Row(printable(x["name"]), float(x["averageMs"]) * 1e3, units.get(str(x["name"]), "GPU")) for x in layers
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"--exportProfile wrote a format that is not known ({type(error).__name__})") from None


def read_layers(text: str) -> dict[str, str]:
    """Layer names with the unit that runs them, GPU or DLA, from `--exportLayerInfo`; ValueError when unknown."""
    try:
        layers = json.loads(text)["Layers"]
        found = {}
        for layer in layers:
            if isinstance(layer, str):  # an engine without detailed verbosity has names only
                found[layer] = "GPU"
            else:
                found[str(layer["Name"])] = "DLA" if "DLA" in str(layer.get("LayerType", "")) else "GPU"
        return found
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"--exportLayerInfo wrote a format that is not known ({type(error).__name__})") from None


def read_nvpmodel(text: str) -> str | None:
    """`MAXN (0)` from `nvpmodel -q`; None when there is no such line."""
    match = re.search(r"^NV Power Mode:[ \t]*(\S+)[ \t]*\n(?:[ \t]*(\d+)[ \t]*$)?", text + "\n", re.MULTILINE)
    return None if match is None else match[1] + (f" ({match[2]})" if match[2] else "")


def read_clocks(text: str) -> dict[str, Clock]:
    """Units (cpu0, GPU, EMC, DLA0_CORE, ...) with their clocks, from `jetson_clocks --show`; CPUs count in kHz."""
    found = {}
    for line in text.splitlines():
        head = re.match(r"\s*([A-Za-z][A-Za-z0-9_]*):?\s.*?MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", line)
        if head is None or "Online=0" in line:
            continue
        per_mhz = 1e3 if head[1].startswith("cpu") else 1e6
        found[head[1]] = Clock(*(int(hz) / per_mhz for hz in head.groups()[1:]))
    return found


def read_tegrastats(line: str) -> Tegra:
    """One line of tegrastats; the GPU's and the memory's clocks are shown to root only."""
    cpus = re.search(r"CPU \[([^\]]*)\]", line)
    gpu = re.search(r"GR3D_FREQ (\d+)%(?:@\[?(\d+))?", line)
    emc = re.search(r"EMC_FREQ \d+%@(\d+)", line)
    return Tegra(
        tuple(int(mhz) for mhz in re.findall(r"%@(\d+)", cpus[1])) if cpus else (),
        int(gpu[1]) if gpu else None,
        float(gpu[2]) if gpu and gpu[2] else None,
        float(emc[1]) if emc else None,
        {name: float(c) for name, c in re.findall(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C\b", line) if float(c) > -200},
        {name: int(mw) for name, mw in re.findall(r"\b([A-Z]\w*) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)", line)},
    )


def heard(transcript: Transcript, release: str, banner: str, rounds: int) -> Heard:
    """What the tools wrote, as rounds, layers and surroundings."""
    said = transcript.heard()
    texts, notes = transcript.texts, [*said.notes, NOT_RUN]
    seconds = read_times(texts.get("times.json", ""))
    rows: Sequence[Row] = ()
    try:
        rows = read_profile(texts.get("profile.json", ""), read_layers(texts.get("layers.json", "")))
    except ValueError as error:
        notes.append(f"no layer times: {error}")
    lines = [read_tegrastats(line) for line in transcript.watched]
    busy = [t for t in lines if t.gpu_percent is not None and t.gpu_percent >= _BUSY_PERCENT]
    clocks = read_clocks(texts.get("clocks", ""))
    loose = [name for name in ("GPU", "EMC") if name in clocks and not clocks[name].locked]
    if not clocks:
        notes.append("clocks not known: `sudo -n jetson_clocks --show` gave nothing")
    elif "GPU" in loose:
        notes.append(f"the clocks of {' and '.join(loose)} are not locked: sudo jetson_clocks")
    power = [sum(t.power_mw.values()) if "VDD_IN" not in t.power_mw else t.power_mw["VDD_IN"] for t in busy]
    environment: dict[str, object] = {
        **said.environment,
        "jetson_release": release,
        "tensorrt": ".".join(map(str, version(banner))),
        "power_mode": read_nvpmodel(texts.get("nvpmodel", "")),
        "clocks_now_mhz": {name: clock.now_mhz for name, clock in clocks.items()},
        "power_mw": max(power, default=None),
    }
    size = max(1, len(seconds) // max(rounds, 1))
    return Heard(
        [seconds[i : i + size] for i in range(0, size * (len(seconds) // size), size)],
        [t.gpu_mhz for t in busy if t.gpu_mhz],
        [max(t.temperatures_c.values()) for t in lines if t.temperatures_c],
        rows,
        environment,
        notes,
    )
