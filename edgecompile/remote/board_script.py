"""Runs on the device and times one model, a JSON line a round: needs Python 3.8 and nothing of edgecompile.

`python3 board_script.py` in a folder with job.json. It ends and removes the folder when its standard input closes,
which is when the connection is gone.
"""

from __future__ import annotations

import gc
import glob
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
CPUS = "/sys/devices/system/cpu"
SPEAKING = threading.Lock()


def main() -> int:
    with open(os.path.join(HERE, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    os.environ["TMPDIR"] = HERE  # onnxruntime leaves a file there
    children: list[subprocess.Popen[bytes]] = []
    threading.Thread(target=leave_when_cut, args=(children,), daemon=True).start()
    code = 1
    try:
        time_trtexec(job, children) if job["tool"] == "trtexec" else time_onnxruntime(job)
        code = 0
    except Failed as failed:
        say(job, "error", text=str(failed))
    except MemoryError:
        say(job, "error", text="the device has too little memory for this model")
    except OSError as error:
        say(job, "error", text=f"{error.strerror} ({error.filename})", errno=error.errno)
    finally:
        shutil.rmtree(HERE, ignore_errors=True)
    say(job, "end", removed=not os.path.exists(HERE))
    return code


class Failed(Exception):
    """What the user should read on one line."""


def say(job: dict[str, Any], event: str, **fields: object) -> None:
    """One line to whoever asked; a reader that is gone ends the run."""
    try:
        with SPEAKING:
            print(json.dumps({"nonce": job["nonce"], "event": event, **fields}), flush=True)
    except OSError:
        shutil.rmtree(HERE, ignore_errors=True)
        os._exit(3)


def leave_when_cut(children: list[subprocess.Popen[bytes]]) -> None:
    """Clean up as soon as the connection is gone, in the middle of whatever runs."""
    while os.read(0, 4096):
        pass
    for child in children:
        child.kill()
    shutil.rmtree(HERE, ignore_errors=True)
    os._exit(3)


def time_onnxruntime(job: dict[str, Any]) -> None:
    try:
        import numpy  # noqa: F401
        import onnxruntime as ort
    except ImportError as error:
        raise Failed(f"{sys.executable} cannot import what it needs: {first_line(error)}") from None
    session = opened(ort, job, None)
    feeds, origin = inputs(session, job)
    say(job, "environment", facts={**facts(), "onnxruntime": ort.__version__, "inputs": origin})
    call, outputs = bound(ort, session, feeds)
    compare(job, session, outputs())
    rounds = job["rounds"]
    affordable = int(job["budget_s"] / (rounds * fastest(call)))
    per_round = max(3, min(math.ceil(job["samples"] / rounds), affordable))
    gc.disable()
    for index in range(rounds):
        call()  # untimed: brings back into the caches what reading the clocks has pushed out
        seconds = [timed(call) for _ in range(per_round)]
        say(job, "round", index=index, seconds=seconds, clock_mhz=clock_mhz(), temperature_c=temperature_c())
    say(job, "operators", rows=operators(ort, job, feeds))


def opened(ort: Any, job: dict[str, Any], profile: str | None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
    options.log_severity_level = 4
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    try:
        return ort.InferenceSession(os.path.join(HERE, "model.onnx"), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Failed(f"ONNX Runtime {ort.__version__} there does not load the model: {first_line(error)}") from None


def golden(prefix: str) -> dict[str, Any]:
    """The arrays of golden.npz whose names begin so; none where it did not come along."""
    import numpy as np

    path = os.path.join(HERE, "golden.npz")
    if not os.path.exists(path):
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name[len(prefix) :]: file[name] for name in file.files if name.startswith(prefix)}


def inputs(session: Any, job: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Golden inputs, else zeros; the batch that was asked for where it is free."""
    import numpy as np

    known, feeds = golden("input:"), {}
    for wanted in session.get_inputs():
        shape, value = list(wanted.shape), known.get(wanted.name)
        if shape and not isinstance(shape[0], int):
            shape[0] = job["batch"]
        elif shape and shape[0] != job["batch"] and job["batch"] != 1:
            raise Failed(f"the model's batch is fixed at {shape[0]}, not {job['batch']}; build it for that batch")
        if value is not None:
            feeds[wanted.name] = np.resize(value, (shape[0], *value.shape[1:])) if shape else value
            continue
        free = [str(n) for n in shape if not isinstance(n, int)]
        if free:
            raise Failed(f"input {wanted.name} has a free dimension {free[0]}; profile a folder with its golden.npz")
        feeds[wanted.name] = np.zeros(shape, numpy_type(wanted.type))
    return feeds, "golden" if known else "zeros"


def numpy_type(name: str) -> str:
    inner = name[len("tensor(") : -1]
    plain = {"float": "float32", "double": "float64"}.get(inner, inner)
    if not re.fullmatch(r"float(16|32|64)|u?int(8|16|32|64)|bool", plain):
        raise Failed(f"inputs of type {name} cannot be made up; profile a folder with golden.npz")
    return plain


def bound(ort: Any, session: Any, feeds: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], list[Any]]]:
    """A call that copies nothing, and one that gives its outputs."""
    binding = session.io_binding()
    held = [ort.OrtValue.ortvalue_from_numpy(value) for value in feeds.values()]
    for name, value in zip(feeds, held):  # noqa: B905 - Python 3.8
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)

    def call(_held: list[Any] = held) -> None:
        session.run_with_iobinding(binding)

    try:
        call()
    except Exception as error:
        raise Failed(f"the model does not run there: {first_line(error)}") from None
    return call, binding.copy_outputs_to_cpu


def compare(job: dict[str, Any], session: Any, values: list[Any]) -> None:
    """How far the outputs are from the golden ones, which a wrong kernel on the device would show."""
    known = golden("output:")
    worst = 0.0
    for output, value in zip(session.get_outputs(), values):  # noqa: B905 - Python 3.8
        wanted = known.get(output.name)
        if wanted is not None and wanted.shape == value.shape and value.size:
            worst = max(worst, float(abs(wanted.astype("f8") - value.astype("f8")).max()))
    if known:
        say(job, "note", text=f"largest difference to the golden outputs: {worst:.3g}")


def operators(ort: Any, job: dict[str, Any], feeds: dict[str, Any]) -> list[list[Any]]:
    """(node, median us, provider) from ONNX Runtime's own profile, in a session of its own."""
    session = opened(ort, job, os.path.join(HERE, "operators"))
    for _ in range(12):
        session.run(None, feeds)
    with open(session.end_profiling(), encoding="utf-8") as file:
        events = json.load(file)
    found: dict[str, tuple[list[float], str]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            provider = str(event.get("args", {}).get("provider", "")).replace("ExecutionProvider", "")
            found.setdefault(name[: -len("_kernel_time")], ([], provider))[0].append(float(event["dur"]))
    return [[name, sorted(us[2:] or us)[len(us[2:] or us) // 2], unit] for name, (us, unit) in found.items()]


def time_trtexec(job: dict[str, Any], children: list[subprocess.Popen[bytes]]) -> None:
    """Run the given commands; what they print is sent as it is, and read at the other end."""
    say(job, "environment", facts=facts())
    run_tool(job["build"], children)
    for name, command in job["asks"].items():
        say(job, "text", name=name, text=output_of(command))
    watcher = None  # tegrastats, where it is
    if shutil.which(job["watch"][0]):
        watcher = subprocess.Popen(job["watch"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        children.append(watcher)
        threading.Thread(target=forward, args=(job, watcher.stdout), daemon=True).start()
    try:
        run_tool(job["command"], children)
    finally:
        if watcher is not None:
            watcher.kill()
    for name in job["files"]:
        say(job, "text", name=name, text=read(os.path.join(HERE, name)))


def run_tool(command: list[str], children: list[subprocess.Popen[bytes]]) -> None:
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    tool = subprocess.Popen(command, cwd=HERE, stdin=null, stdout=pipe, stderr=subprocess.STDOUT)
    children.append(tool)
    tail: list[str] = []
    assert tool.stdout
    for raw in tool.stdout:
        tail = [*tail[-200:], raw.decode("utf-8", "replace").strip()]
    if code := tool.wait():
        wrong = [line for line in tail if "[E]" in line or "rror" in line] or tail or ["it printed nothing"]
        raise Failed(f"trtexec ended with {code}: {wrong[0][:300]}")


def forward(job: dict[str, Any], stream: Any) -> None:
    for raw in stream:
        say(job, "watch", line=raw.decode("utf-8", "replace").strip())


def output_of(command: list[str]) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def facts() -> dict[str, object]:
    model = re.search(r"^model name\s*:\s*(.+)$", read("/proc/cpuinfo"), re.MULTILINE)
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', read("/etc/os-release"), re.MULTILINE)
    return {
        "os": system.group(1) if system else platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "board": read("/proc/device-tree/model").strip("\0\n") or None,
        "cpu": model.group(1) if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "governor": read(CPUS + "/cpu0/cpufreq/scaling_governor").strip() or None,
        "python": platform.python_version(),
        "load_1min": os.getloadavg()[0],
    }


def clock_mhz() -> float | None:
    """The fastest core's clock at this moment."""
    khz = map(read, glob.glob(CPUS + "/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    found = [int(text) / 1000 for text in khz if text]
    shown = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", "" if found else read("/proc/cpuinfo"), re.MULTILINE)
    return max([*found, *map(float, shown)], default=None)


def temperature_c() -> float | None:
    """The hottest zone that the kernel shows."""
    texts = map(read, glob.glob("/sys/class/thermal/thermal_zone*/temp"))
    return max((int(text) / 1000 for text in texts if text), default=None)


def read(path: str) -> str:
    """A file of the kernel's; "" where it is not on this device, or its sensor is asleep."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls, after two that may allocate and fault pages in."""
    call()
    call()
    return max(min(timed(call) for _ in range(5)), 1e-6)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) * 1e-9


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


if __name__ == "__main__":
    sys.exit(main())
