"""build.sh against stand-ins for trtexec that print what real versions print; run.py without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompile.targets.tensorrt import TensorRT

# First lines as recorded: 8601 from NVIDIA/TensorRT issue 3734, 101602 from OE4T/meta-tegra pull
# request 2243 (an Orin NX); the others in the same form with the digits that NV_TENSORRT_MAJOR, MINOR and PATCH give.
BANNERS = {
    "8.5.2": "&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help",
    "8.6.1": "&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec --help",
    "8.6.2": "&&&& RUNNING TensorRT.trtexec [TensorRT v8602] # trtexec --help",
    "10.3.0": "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help",
    "10.7.0": "&&&& RUNNING TensorRT.trtexec [TensorRT v100700] [b23] # trtexec --help",
    "10.16.2": "&&&& RUNNING TensorRT.trtexec [TensorRT v101602] [b10] # trtexec --help",
    "11.0.0": "&&&& RUNNING TensorRT.trtexec [TensorRT v110000] [b1] # trtexec --help",
}
# Which options the help of a version has: read in samples/common/sampleOptions.cpp of NVIDIA/TensorRT at its tags.
COMMON = ("--onnx=", "--saveEngine=", "--loadEngine=", "--timingCacheFile=", "--skipInference", "--exportTimes=")
TIMED = ("--sparsity=", "--warmUp=", "--duration=", "--iterations=", "--useDLACore=", "--allowGPUFallback")
WEAK = ("--fp16", "--int8", "--calib=", "--precisionConstraints=", "--layerPrecisions=")
OPTIONS = {
    "8": (*COMMON, *TIMED, *WEAK),
    "10": (*COMMON, *TIMED, *WEAK, "--stronglyTyped"),
    "11": (*COMMON, *TIMED, "--stronglyTyped"),
}
# The form that exportJSONTrace in sampleReporting.cpp writes.
TIMES = "[\n" + "".join(
    f'{"  " if i == 0 else ", "}{{ "startEnqMs" : 1, "h2dMs" : 0.1, "latencyMs" : {1 + i / 100:.2f} }}\n'
    for i in reversed(range(100))
)
STAND_IN = """#!{python}
import sys
banner, options, times = {banner!r}, {options!r}, {times!r}
with open({calls!r}, "a") as file:
    file.write(repr(sys.argv[1:]) + "\\n")
print(banner)
if "--help" in sys.argv:
    print("=== Model Options ===")
    for option in options:
        print("  " + option + ("<file>" if option.endswith("=") else "") + "    see the documentation")
    sys.exit(0)
unknown = [a for a in sys.argv[1:] if not any(a == o or (o.endswith("=") and a.startswith(o)) for o in options)]
if unknown:
    print("[11/26/2026-10:00:00] [E] Unknown option: " + unknown[0])
    sys.exit(1)
given = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
{fault}
if "--saveEngine" in given:
    open(given["--saveEngine"], "wb").write(b"plan")
if "--exportTimes" in given:
    open(given["--exportTimes"], "w").write(times + "]\\n")
"""


def stand_in(folder: Path, version: str, fault: str = "") -> Path:
    path = folder / "trtexec"
    options = OPTIONS[version.partition(".")[0]]
    text = STAND_IN.format(
        python=sys.executable,
        banner=BANNERS[version],
        options=options,
        times=TIMES,
        calls=str(folder / "calls"),
        fault=fault,
    )
    path.write_text(text)
    path.chmod(0o755)
    return path


def bundle(folder: Path, **options: Any) -> Path:
    """The scripts of a bundle, without a model: what build.sh reads of it is its name."""
    folder.mkdir()
    settings = {"quantized": False, "opset": 17, "sparse": False}
    settings |= {k: v for k, v in options.items() if k in settings}
    target = TensorRT(**{k: v for k, v in options.items() if k not in settings})
    target._scripts(folder, settings["quantized"], settings["opset"], settings["sparse"])
    (folder / "model.onnx").write_bytes(b"model")
    (folder / "scales.txt").write_text("x: 3c010a14\n")
    (folder / "fp32_layers.txt").write_text("node_softmax\nnode_layer_norm\n")
    return folder


def built(
    folder: Path, trtexec: Path | None, *arguments: str, path: str = "/usr/bin:/bin"
) -> tuple[int, dict[str, Any], str]:
    env = {"PATH": path, **({"TRTEXEC": str(trtexec)} if trtexec is not None else {})}
    done = subprocess.run(
        ["/bin/sh", str(folder / "build.sh"), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    result = json.loads((folder / "build_result.json").read_text())
    return done.returncode, result, done.stderr


WEAK_FP16 = "--fp16 --precisionConstraints=prefer --layerPrecisions=node_softmax:fp32,node_layer_norm:fp32"
WEAK_INT8 = "--fp16 --int8 --precisionConstraints=prefer --layerPrecisions=node_softmax:fp32,node_layer_norm:fp32"


@pytest.mark.parametrize(
    ("version", "options", "flags"),
    [
        ("8.6.2", {}, WEAK_FP16),
        ("8.6.1", {"quantized": True}, WEAK_INT8),
        ("8.6.2", {"dtype": "fp32"}, ""),
        ("10.3.0", {}, "--stronglyTyped"),
        ("10.3.0", {"quantized": True}, "--stronglyTyped"),
        ("10.3.0", {"dtype": "bf16"}, "--stronglyTyped"),
        ("10.3.0", {"opset": 18}, "--stronglyTyped"),
        ("10.16.2", {}, "--stronglyTyped"),
        ("11.0.0", {}, ""),
        ("10.3.0", {"dla": 0}, "--fp16 --useDLACore=0"),
        ("8.6.2", {"dla": 1, "allow_gpu_fallback": True}, "--fp16 --useDLACore=1 --allowGPUFallback"),
        ("10.7.0", {"dla": 0, "quantized": True}, "--fp16 --useDLACore=0 --int8 --calib=calibration.cache"),
    ],
)
def test_flags_follow_the_version(version: str, options: dict[str, Any], flags: str, tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle", **options)
    code, result, _ = built(folder, stand_in(tmp_path, version))
    assert code == 0, result
    assert result == {
        "status": "built",
        "reason": "",
        "trtexec": str(tmp_path / "trtexec"),
        "tensorrt": version,
        "flags": flags,
        "latency_ms": {"median": 1.49, "p90": 1.89, "p99": 1.98, "count": 100},
    }
    assert (folder / "model.plan").read_bytes() == b"plan"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3
    assert "--skipInference" in calls[1]
    assert "--exportTimes=times.json" in calls[2]
    assert ("--useDLACore" in calls[2]) == ("dla" in options)
    if options.get("quantized") and "dla" in options:
        head = {"10.7.0": "TRT-100700-EntropyCalibration2"}[version]
        assert (folder / "calibration.cache").read_text() == f"{head}\nx: 3c010a14\n"


@pytest.mark.parametrize(
    ("version", "options", "reason"),
    [
        ("8.5.2", {}, "TensorRT 8.5.2 (JetPack 5 and older) reads ONNX up to opset 17"),
        ("8.6.2", {"opset": 18}, "needs opset 18: install JetPack 6.1"),
        ("8.6.2", {"dtype": "bf16"}, "has no BF16"),
        ("10.16.2", {"dla": 0}, "does not support the DLA (10.7 was the last)"),
        ("11.0.0", {"dla": 0}, "does not support the DLA"),
    ],
)
def test_versions_that_cannot_are_refused_with_the_reason(
    version: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = bundle(tmp_path / "bundle", **options)
    code, result, said = built(folder, stand_in(tmp_path, version))
    assert (code, result["status"]) == (5, "refused")
    assert reason in result["reason"]
    assert said.count("\n") == 1
    assert not (folder / "model.plan").exists()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            "print('[I] fine')\nprint('[11/26/2026] [E] Error[4]: no \"kernel\" for \\\\ this')\nsys.exit(1)",
            "no kernel for",
        ),
        ("given.clear()", "did not build the plan"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "did not build the plan"),
        ("if '--loadEngine' in given: sys.exit(1)", "built the plan and did not run it"),
        ("times = '[ { \"hostLatency\" : 1 }\\n'", "a format that is not known"),
    ],
)
def test_a_failure_is_one_line_and_keeps_the_older_plan(fault: str, reason: str, tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle")
    (folder / "model.plan").write_bytes(b"older")
    code, result, said = built(folder, stand_in(tmp_path, "10.3.0", fault))
    assert (code, result["status"]) == (1, "failed")
    assert reason in result["reason"]
    assert said.count("\n") == 1
    run = "did not build" not in result["reason"]
    assert (folder / "model.plan").read_bytes() == (b"plan" if run else b"older")
    assert not list(folder.glob("*.part"))


def test_no_trtexec_no_version_wrong_argument_and_no_timing(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle")
    code, result, said = built(folder, None)
    assert code == 2
    assert "trtexec is not found" in said
    assert result["trtexec"] == "none"
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\necho usage\n")
    mute.chmod(0o755)
    code, result, _ = built(folder, mute)
    assert code == 5
    assert "no version of TensorRT that is known" in result["reason"]
    code, result, _ = built(folder, stand_in(tmp_path, "10.3.0"), "--fast")
    assert code == 2
    code, result, _ = built(folder, tmp_path / "trtexec", "--no-timing")
    assert (code, result["latency_ms"]) == (0, None)


def test_the_tool_is_found_on_the_path_and_the_folder_may_have_spaces(tmp_path: Path) -> None:
    tools = tmp_path / "to ols"
    tools.mkdir()
    stand_in(tools, "10.3.0")
    folder = bundle(tmp_path / "a bundle; with 'signs'")
    code, result, said = built(folder, None, path=f"{tools}:/usr/bin:/bin")
    assert code == 0, said
    assert result["trtexec"] == str(tools / "trtexec")


def test_shellcheck_finds_nothing(tmp_path: Path, apt_tool: Callable[[str, str], str]) -> None:
    shellcheck = apt_tool("shellcheck", "shellcheck")
    done = subprocess.run(
        [shellcheck, str(bundle(tmp_path / "bundle") / "build.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("shell", ["dash", "busybox"])
def test_other_shells_run_it(shell: str, tmp_path: Path) -> None:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    folder = bundle(tmp_path / "bundle", quantized=True)
    command = [found, "sh"] if shell == "busybox" else [found]
    env = {"PATH": "/usr/bin:/bin", "TRTEXEC": str(stand_in(tmp_path, "8.6.2"))}
    done = subprocess.run([*command, str(folder / "build.sh")], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_py(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    return subprocess.run(
        [sys.executable, str(folder / "run.py"), *arguments], env=env, capture_output=True, text=True, check=False
    )


def test_run_py_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle")
    np.savez(tmp_path / "in.npz", x=np.zeros(3, np.float32))
    given = (str(tmp_path / "in.npz"), str(tmp_path / "out.npz"))
    for arguments, reason in (((), "usage: python run.py"), (given, "model.plan is not built yet: run `sh build.sh`")):
        done = run_py(folder, *arguments)
        assert done.returncode == 1
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
    (folder / "model.plan").write_bytes(b"plan")
    done = run_py(folder, *given)
    assert "the Python module tensorrt is not installed" in done.stderr
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tensorrt.py").write_text("__version__ = '10.3.0'\n")
    done = run_py(folder, *given, path=str(modules))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "run.py: " in done.stderr
    for options, reason in (({"dla": 0}, "is built by sh build.sh"),):
        other = bundle(tmp_path / "other", **options)
        assert reason in run_py(other, "--build", path=str(modules)).stderr
