"""Profile on an Android device with ONNX Runtime's own benchmark. Not run here: there was no device.

Written from the documentation of `adb` and of `onnxruntime_perf_test`, which an ONNX Runtime build for Android makes
(`./build.sh --android ...`); Android has no package of it, so it must have been pushed to the device once.
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence

from edgecompile.errors import DeviceLost, EdgeCompileError, InputError, OutputError, TargetError
from edgecompile.remote.address import Address
from edgecompile.remote.artifact import Parcel
from edgecompile.remote.measured import Heard, Measured, measured
from edgecompile.remote.ssh import Plan, Progress
from edgecompile.remote.wire import printable

TOOL = "/data/local/tmp/onnxruntime_perf_test"
NOT_RUN = "adb:// was built from the documentation and not run here"
_PLACE = "/data/local/tmp"  # the one folder where a shell user may run programs


def profile_adb(address: Address, parcel: Parcel, plan: Plan, progress: Progress | None = None) -> Measured:
    """Time a model on the device of that serial number (not run here); the folder there is removed again."""
    if plan.batch != 1:
        raise InputError(
            f"{parcel.model}: onnxruntime_perf_test makes its own inputs of batch 1; fix the model's batch"
        )
    folder = f"{_PLACE}/edgecompile-{secrets.token_hex(8)}"
    deadline = time.monotonic() + plan.timeout_s
    facts = _asked(address, shell(address.host, facts_script()), deadline)
    if f"{TOOL}: ok" not in facts:
        raise TargetError(
            f"{address.text}: {TOOL} is not there; build ONNX Runtime for Android and push it: adb push "
            f"onnxruntime_perf_test {_PLACE}/ && adb shell chmod +x {TOOL}",
            rule="toolchain",
        )
    try:
        _asked(address, shell(address.host, f"mkdir {shlex.quote(folder)}"), deadline)
        for name, path in parcel.files.items():
            if name != "golden.npz":
                _asked(address, push(address.host, str(path.absolute()), f"{folder}/{name}"), deadline)
        if progress is not None:
            progress("measuring", 0, plan.rounds)
        _asked(address, shell(address.host, run_script(folder, plan)), deadline)
        seconds = read_times(_asked(address, shell(address.host, f"cat {shlex.quote(folder)}/times.csv"), deadline))
    finally:
        _asked(address, shell(address.host, f"rm -rf {shlex.quote(folder)}"), time.monotonic() + 15, quiet=True)
    size = max(1, len(seconds) // plan.rounds)
    rounds = [seconds[i : i + size] for i in range(0, size * (len(seconds) // size), size)]
    return measured(address.text, "adb", Heard(rounds, environment=read_facts(facts), notes=(NOT_RUN,)))


def shell(serial: str, script: str) -> list[str]:
    """`adb shell`, whose words are joined and parsed once more on the device: `script` is quoted by who made it."""
    return [_adb(), "-s", serial, "shell", "-T", script]


def push(serial: str, source: str, target: str) -> list[str]:
    """`adb push`."""
    return [_adb(), "-s", serial, "push", source, target]


def run_script(folder: str, plan: Plan) -> str:
    """The benchmark: so many single calls, one after the other, each time written down."""
    words = [
        TOOL, "-e", "cpu", "-m", "times", "-r", str(plan.samples), "-x", str(plan.threads), "-y", "1", "-I", "-S", "1",
        f"{folder}/model.onnx", f"{folder}/times.csv",
    ]  # fmt: skip
    return f"cd {shlex.quote(folder)} && {shlex.join(words)}"


def facts_script() -> str:
    """What the device is, and whether the benchmark is there; no word in it comes from a user."""
    return (
        "for p in ro.product.model ro.soc.model ro.build.version.release ro.product.cpu.abi; do "
        'echo "$p=$(getprop $p)"; done; '
        f'test -x {TOOL} && echo "{TOOL}: ok"; dumpsys thermalservice | grep -m 1 "Thermal Status"'
    )


def read_facts(text: str) -> dict[str, object]:
    """The device's properties, and Android's thermal status (0: none, 3 and above: throttled hard)."""
    found: dict[str, object] = {k: printable(v) for k, v in re.findall(r"^(ro\.[\w.]+)=(.*)$", text, re.MULTILINE)}
    status = re.search(r"Thermal Status: (\d+)", text)
    return {**found, "thermal_status": int(status[1]) if status else None}


def read_times(text: str) -> list[float]:
    """Seconds of each call from the result file, `model,seconds,peak bytes,CPU %,index` a line; refuses others."""
    rows = [line.rsplit(",", 4) for line in text.splitlines() if line.count(",") >= 4]
    try:
        seconds = [float(row[1]) for row in rows]
        indices = [int(row[4]) for row in rows]
    except ValueError:
        seconds, indices = [], []
    if not seconds or indices != list(range(len(rows))) or not all(0 < s < 1e4 for s in seconds):
        raise TargetError("onnxruntime_perf_test: its result file has a format that is not known")
    return seconds


def failure(where: str, complaint: str) -> EdgeCompileError:
    """What adb's complaint means."""
    if re.search(r"device (offline|unauthorized)|unauthorized|not found|no devices", complaint):
        return DeviceLost(
            f"{where}: adb does not reach it: {printable(complaint)}; see `adb devices`, and allow debugging on it"
        )
    if "No space left" in complaint:
        return OutputError(f"{where}: its disk is full; free some space there")
    if re.search(r"closed|protocol fault|connection reset", complaint, re.IGNORECASE):
        return DeviceLost(f"{where}: the connection was lost: {printable(complaint)}")
    return TargetError(f"{where}: {printable(complaint) or 'adb failed without a word'}")


def _adb() -> str:
    path = shutil.which("adb")
    if path is None:
        raise TargetError("adb is not installed here: sudo apt install adb", rule="toolchain")
    return path


def _asked(address: Address, command: Sequence[str], deadline: float, quiet: bool = False) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=max(deadline - time.monotonic(), 1),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        if quiet:
            return ""
        raise DeviceLost(f"{address.text}: time was up; nothing was measured") from None
    if done.returncode and not quiet:
        raise failure(address.text, done.stderr or done.stdout)
    return done.stdout
