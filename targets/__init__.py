"""Targets, one file each, and the deployments that `--target` names."""

TARGETS: dict[str, str] = {
    "onnx": "edgecompile.targets.onnx:Onnx",
}
"""Word on the command line -> `module:Class`; imported only when it is asked for."""

PLANNED = ("tensorrt", "coreml")
"""Artifacts that deployments name and that are still to come."""

DEPLOYMENTS: dict[str, tuple[str, ...]] = {
    "host": ("onnx@host",),
    "a100": ("tensorrt@a100-sxm-80gb",),
    "orin": ("tensorrt@agx-orin-64gb",),
    "mobile": ("onnx@galaxy-s24", "coreml@iphone-15-pro"),
}
"""Name of a deployment -> its artifacts as target@device; the first is primary: budgets bind it."""


def device_of(name: str) -> str:
    """The device that a name on the command line means: a deployment stands for that of its primary artifact."""
    return DEPLOYMENTS[name][0].rpartition("@")[2] if name in DEPLOYMENTS else name
