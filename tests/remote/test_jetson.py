"""What NVIDIA's tools write, read from samples of the documented formats; no Jetson was at hand."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompile.errors import InputError, TargetError
from edgecompile.remote import jetson
from edgecompile.remote.artifact import Parcel
from edgecompile.remote.measured import Row, measured
from edgecompile.remote.wire import Transcript

# Samples: the first three lines as a Jetson AGX Orin and an Orin Nano print them (users' logs), shortened.
CLOCKS = """\
SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit
Online CPUs: 0-11, Offline CPUs:
cpu0:  Governor=schedutil MinFreq=2201600 MaxFreq=2201600 CurrentFreq=2201600 IdleStates: WFI=0 c7=0
cpu10: Online=0 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=729600 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=306000000
Active GPU TPCs: 8
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=0
DLA0_CORE:   Online=1 MinFreq=0 MaxFreq=1600000000 CurrentFreq=1600000000
FAN Dynamic Speed Control=nvfancontrol hwmon2_pwm1=66
NV Power Mode: MAXN
"""
ORIN = (
    "09-24-2026 10:15:32 RAM 2467/7471MB (lfb 2x4MB) SWAP 0/994MB (cached 0MB) "
    "CPU [2%@729,1%@1510,off,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 99%@[612] NVDEC off APE 200 cpu@47.5C soc2@46.8C "
    "gpu@46.2C tj@48C cv0@-256C VDD_IN 4462mW/4400mW VDD_CPU_GPU_CV 480mW/480mW VDD_SOC 1400mW/1400mW"
)
TX2 = (
    "RAM 1690/3825MB (lfb 339x4MB) SWAP 0/1913MB (cached 0MB) CPU [11%@2035,off,off,5%@2035] EMC_FREQ 0% "
    "GR3D_FREQ 0% PLL@50.5C MCPU@50.5C PMIC@50C GPU@50C BCPU@50.5C thermal@50.3C"
)
# Sample in the form that trtexec's published source writes (samples/common/sampleReporting.cpp).
TIMES = """[
  { "startEnqMs" : 1.0, "endEnqMs" : 1.1, "startComputeMs" : 2.0, "endComputeMs" : 4.5, "h2dMs" : 0.25,
    "computeMs" : 2.5, "d2hMs" : 0.25, "latencyMs" : 3.0 }
, { "startEnqMs" : 5.0, "endEnqMs" : 5.1, "computeMs" : 2.75, "latencyMs" : 3.25 }
]
"""
PROFILE = """[
  { "count" : 12 }
, { "name" : "conv1 + relu", "timeMs" : 12.0, "averageMs" : 1.0, "medianMs" : 0.99, "percentage" : 40.0 }
, { "name" : "{ForeignNode[fc]}", "timeMs" : 18.0, "averageMs" : 1.5, "percentage" : 60.0 }
]
"""
LAYERS = '{"Layers": [{"Name": "conv1 + relu", "LayerType": "CaskConvolution"}, {"Name": "{ForeignNode[fc]}", "LayerType": "DLA"}], "Bindings": ["x"]}'  # noqa: E501
BANNER = "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # /usr/src/tensorrt/bin/trtexec --help"


@pytest.mark.parametrize(
    ("digits", "known"),
    [("8502", (8, 5, 2)), ("8601", (8, 6, 1)), ("100300", (10, 3, 0)), ("101600", (10, 16, 0)), ("100800", (10, 8, 0))],
)
def test_versions(digits: str, known: tuple[int, int, int]) -> None:
    assert jetson.version(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{digits}] [b43] # trtexec") == known


@pytest.mark.parametrize(
    "banner", ["", "&&&& RUNNING TensorRT.trtexec # trtexec", "[TensorRT v8201]", "[TensorRT v110000]", "[TensorRT v7]"]
)
def test_unknown_versions_are_not_guessed(banner: str) -> None:
    with pytest.raises(TargetError, match=r"trtexec.*8\.5 to 10") as caught:
        jetson.version(banner)
    assert caught.value.rule == "toolchain"


def test_command_lines() -> None:
    def flags(known: tuple[int, int, int], quantized: bool) -> set[str]:
        return set(jetson.build_command("trtexec", known, quantized)[3:])

    detailed = "--profilingVerbosity=detailed"
    assert flags((10, 3, 0), True) == {"--skipInference", "--stronglyTyped", detailed}
    assert flags((8, 6, 1), True) == {"--skipInference", "--fp16", "--int8", detailed}
    assert flags((8, 5, 2), False) == {"--buildOnly", "--fp16", detailed}
    run = jetson.run_command("/usr/src/tensorrt/bin/trtexec", 1000)
    assert run[0] == "/usr/src/tensorrt/bin/trtexec"
    wanted = {"--exportTimes=times.json", "--exportProfile=profile.json", "--dumpLayerInfo", "--separateProfileRun"}
    assert wanted | {"--exportLayerInfo=layers.json"} <= set(run)


def test_the_batch_is_the_models() -> None:
    parcel = Parcel(Path("model.onnx"), {}, (("x", (4, 3), "float32"),), quantized=False)
    assert jetson.job("trtexec", BANNER, parcel, 4, 10)["tool"] == "trtexec"
    with pytest.raises(InputError, match=r"the model's batch is fixed at 4, not 2"):
        jetson.job("trtexec", BANNER, parcel, 2, 10)


def test_times_and_layers() -> None:
    assert jetson.read_times(TIMES) == pytest.approx([3.0e-3, 3.25e-3])
    rows = jetson.read_profile(PROFILE, jetson.read_layers(LAYERS))
    assert rows == [Row("conv1 + relu", 1000.0, "GPU"), Row("{ForeignNode[fc]}", 1500.0, "DLA")]
    assert jetson.read_layers('{"Layers": ["a", "b"]}') == {"a": "GPU", "b": "GPU"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[1]", '[{"latencyMs": "soon"}]', '[{"latencyMs": 0}]', "[nan]", "null"]
)
def test_unknown_times_are_an_error(text: str) -> None:
    with pytest.raises(TargetError, match=r"--exportTimes wrote"):
        jetson.read_times(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"count": 0}]', '[{"count": 1}, {"name": "a"}]', "null"])
def test_unknown_layers_are_said_to_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"--exportProfile wrote a format that is not known"):
        jetson.read_profile(text, {})
    with pytest.raises(ValueError, match=r"--exportLayerInfo wrote a format that is not known"):
        jetson.read_layers(text)


def test_power_mode() -> None:
    assert jetson.read_nvpmodel("NV Power Mode: MAXN\n0\n") == "MAXN (0)"
    assert jetson.read_nvpmodel("NV Fan Mode:quiet\nNV Power Mode: MODE_15W\n2\n") == "MODE_15W (2)"
    assert jetson.read_nvpmodel("NV Power Mode: 25W") == "25W"
    assert jetson.read_nvpmodel("nvpmodel: command not found") is None


def test_clocks() -> None:
    clocks = jetson.read_clocks(CLOCKS)
    assert set(clocks) == {"cpu0", "GPU", "EMC", "DLA0_CORE"}, "a core that is off has no clock"
    assert clocks["cpu0"].now_mhz == pytest.approx(2201.6)
    assert clocks["GPU"] == jetson.Clock(306.0, 1300.5, 306.0)
    assert clocks["cpu0"].locked
    assert not clocks["GPU"].locked
    assert jetson.read_clocks("Error! unsupported SOC") == {}


def test_tegrastats() -> None:
    orin = jetson.read_tegrastats(ORIN)
    assert orin.cpu_mhz == (729, 1510, 729)
    assert (orin.gpu_percent, orin.gpu_mhz, orin.emc_mhz) == (99, 612.0, 2133.0)
    assert orin.temperatures_c == {"cpu": 47.5, "soc2": 46.8, "gpu": 46.2, "tj": 48.0}, "-256 is a sensor that is off"
    assert orin.power_mw == {"VDD_IN": 4462, "VDD_CPU_GPU_CV": 480, "VDD_SOC": 1400}
    tx2 = jetson.read_tegrastats(TX2)
    assert (tx2.gpu_percent, tx2.gpu_mhz, tx2.emc_mhz, tx2.power_mw) == (0, None, None, {})
    assert tx2.temperatures_c["thermal"] == 50.3
    assert jetson.read_tegrastats("sudo: a password is required") == jetson.Tegra()


def transcript(gpu_mhz: list[int]) -> Transcript:
    """As the script on the board would have sent it."""
    said = Transcript("n")
    texts = {
        "times.json": json.dumps([{"latencyMs": 3.0 + (i % 7) * 0.001} for i in range(1200)]),
        "profile.json": PROFILE,
        "layers.json": LAYERS,
        "nvpmodel": "NV Power Mode: MAXN\n0\n",
        "clocks": CLOCKS,
    }
    for name, text in texts.items():
        said.hear(json.dumps({"nonce": "n", "event": "text", "name": name, "text": text}))
    for mhz in gpu_mhz:
        said.hear(json.dumps({"nonce": "n", "event": "watch", "line": ORIN.replace("[612]", f"[{mhz}]")}))
    return said


def test_a_run_on_a_jetson() -> None:
    heard = jetson.heard(transcript([1300] * 12), "# R36 (release)", BANNER, 30)
    found = measured("ssh://me@orin", "jetson", heard)
    assert len(found.samples_ms) == 30
    assert (found.certified, found.why_noisy) == (True, "")
    assert found.interval is not None
    assert found.interval.value == pytest.approx(3.003)
    assert found.percentiles[99] is not None
    assert found.environment["tensorrt"] == "10.3.0"
    assert found.environment["power_mode"] == "MAXN (0)"
    assert found.environment["power_mw"] == 4462
    assert jetson.NOT_RUN in found.notes
    assert "the clocks of GPU and EMC are not locked: sudo jetson_clocks" in found.notes


def test_a_throttling_jetson_is_not_certified() -> None:
    heard = jetson.heard(transcript([1300] * 6 + [900] * 6), "# R36 (release)", BANNER, 30)
    found = measured("ssh://me@orin", "jetson", heard)
    assert not found.certified
    assert found.why_noisy == "throttling: the clock fell from 1300 to 900 MHz"


def test_without_layer_times_the_rest_counts() -> None:
    said = transcript([])
    said.texts["profile.json"] = '[ { "count" : 1 }, { "name" : "a "b"" } ]'  # trtexec does not escape names
    heard = jetson.heard(said, "", BANNER, 30)
    assert heard.rows == ()
    assert any(note.startswith("no layer times: --exportProfile wrote") for note in heard.notes)


def test_the_script_runs_the_tool(tmp_path: Path) -> None:
    """With a stand-in for trtexec, which installs on a Jetson only: the commands, the files and the clean-up."""
    board = tmp_path / "board"
    board.mkdir()
    tool = tmp_path / "trtexec"
    tool.write_text(f"#!/bin/sh\ncase \"$*\" in *loadEngine*) cat > times.json <<'E'\n{TIMES}E\n;; esac\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    script = Path(jetson.__file__).with_name("board_script.py")
    (board / "board_script.py").write_bytes(script.read_bytes())
    parcel = Parcel(Path("model.onnx"), {}, (), quantized=False)
    job = {"nonce": "n", **jetson.job(str(tool), BANNER, parcel, 1, 10)}
    (board / "job.json").write_text(json.dumps(job))
    reader, writer = os.pipe()  # standard input stays open, as ssh keeps it
    done = subprocess.run(
        [sys.executable, "board_script.py"], cwd=board, stdin=reader, capture_output=True, text=True, timeout=60
    )
    os.close(writer)
    os.close(reader)
    said = Transcript("n")
    for line in done.stdout.splitlines():
        said.hear(line)
    assert (done.returncode, said.ended, said.removed, said.error) == (0, True, True, "")
    assert jetson.read_times(said.texts["times.json"]) == pytest.approx([3.0e-3, 3.25e-3])
    assert not board.exists()
