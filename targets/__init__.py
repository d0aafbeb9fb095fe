"""Targets, one file each, and the deployments that `--target` names."""

from __future__ import annotations

from edgecompile.errors import SpecError, near

TARGETS: dict[str, str] = {
    "onnx": "edgecompile.targets.onnx:Onnx",
    "coreml": "edgecompile.targets.coreml:CoreMl",
    "executorch": "edgecompile.targets.executorch:ExecuTorch",
    "tensorrt": "edgecompile.targets.tensorrt:TensorRT",
    "tvm": "edgecompile.targets.tvm:Tvm",
}
"""Word on the command line -> `module:Class`; imported only when it is asked for."""

PRIMARY = {"mobile": 2, "all": 5}
"""How many artifacts of a deployment its budgets bind, where it is not the first alone."""

DEPLOYMENTS: dict[str, tuple[str, ...]] = {
    "host": ("onnx|tvm@host",),
    "a100": ("tensorrt(sm=80)@a100-sxm-80gb", "tvm(arch=sm_80)@a100-sxm-80gb"),
    "orin": ("tensorrt@agx-orin-64gb", "tvm(arch=sm_87)@agx-orin-64gb"),
    "mobile": ("onnx(npu=qnn)@galaxy-s24", "coreml@iphone-15-pro", "tvm(arch=android)@galaxy-s24"),
    "all": (
        "onnx|tvm@host",
        "tensorrt(sm=80)@a100-sxm-80gb",
        "tensorrt@agx-orin-64gb",
        "onnx(npu=qnn)@galaxy-s24",
        "coreml@iphone-15-pro",
        "tvm(arch=sm_80)@a100-sxm-80gb",
        "tvm(arch=sm_87)@agx-orin-64gb",
        "tvm(arch=android)@galaxy-s24",
    ),
}
"""Name of a deployment -> its artifacts as target@device; the first is primary: budgets bind it.

Of targets joined by `|` the faster is the artifact.
"""


def device_of(name: str) -> str:
    """The device that a name on the command line means: a deployment stands for that of its primary artifact."""
    from edgecompile.device import DeviceProfile

    base, colon, mode = name.partition(":")
    if base in DEPLOYMENTS:
        return DEPLOYMENTS[base][0].rpartition("@")[2] + colon + mode
    if not base.endswith(".toml") and base not in (known := DeviceProfile.names()):
        raise SpecError(f"unknown device {base!r}{near(base, {*DEPLOYMENTS, *known})}")
    return name
