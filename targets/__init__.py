"""Targets, one file each, and the deployments that `--target` names."""

TARGETS: dict[str, str] = {
    "onnx": "edgecompile.targets.onnx:Onnx",
}
"""Word on the command line -> `module:Class`; imported only when it is asked for."""

DEPLOYMENTS: dict[str, tuple[str, ...]] = {
    "host": ("onnx@host",),
}
"""Name of a deployment -> its artifacts as target@device; the first is primary: budgets bind it."""
