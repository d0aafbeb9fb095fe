"""Run the .mlpackage beside this file with Core ML: `python run.py inputs.npz outputs.npz`. macOS only.

Needs numpy and coremltools (`pip install coremltools`), and pillow for a package that takes a picture. In Python:
`load(folder)` gives a callable from a dictionary of arrays to a dictionary of arrays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = "model.mlpackage"
INTERFACE_KEY = "edgecompile.interface"


def load(folder: str, threads: int = 1) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The package in `folder` as a callable: {input name: array} -> {output name: array}."""
    if sys.platform != "darwin":
        raise SystemExit("run.py: Core ML runs on macOS only; here `edgecompile verify` interprets the package instead")
    try:
        import coremltools
        import numpy as np
    except ImportError as error:
        raise SystemExit(f"run.py: {error}: pip install coremltools numpy") from error
    package = Path(folder) / PACKAGE
    if not package.is_dir():
        raise SystemExit(f"run.py: {package}: no such package")
    model = coremltools.models.MLModel(str(package))
    interface = json.loads(model.user_defined_metadata[INTERFACE_KEY])

    def call(inputs: dict[str, Any]) -> dict[str, Any]:
        found = model.predict(core_inputs(interface, inputs, np))
        return program_outputs(interface, inputs, found, np)

    return call


def core_inputs(interface: Any, inputs: dict[str, Any], np: Any) -> dict[str, Any]:
    """Arrays as Core ML takes them: float32 or int32, with at least one axis."""
    feed = {}
    for entry in interface["inputs"]:
        name = entry["name"]
        if name not in inputs:
            raise SystemExit(f"run.py: input {name} is missing")
        value = np.asarray(inputs[name])
        allowed = interface.get("shapes") or [entry["shape"]]
        if list(value.shape) not in allowed:
            raise SystemExit(
                f"run.py: input {name} has shape {list(value.shape)}, not {' or '.join(map(str, allowed))}"
            )
        kind = np.float32 if "float" in entry["dtype"] else np.int32
        if kind is np.int32 and value.size and (value.max() > 2**31 - 1 or value.min() < -(2**31)):
            raise SystemExit(f"run.py: input {name} has integers beyond 32 bits")
        if "image" in entry:
            feed[entry["core"]] = picture(entry["image"], value, np)
            continue
        feed[entry["core"]] = value.astype(kind).reshape(value.shape or (1,))
    return feed


def picture(said: Any, value: Any, np: Any) -> Any:
    """The picture that a prepared array was made of, which is what the package takes."""
    from PIL import Image

    mean, std = (np.asarray(said[k], dtype=np.float64).reshape(1, -1, 1, 1) for k in ("mean", "std"))
    whole = np.clip(np.rint((value * std + mean) / said["scale"]), 0, 255).astype(np.uint8)[0]
    if len(whole) == 1:
        return Image.fromarray(whole[0])
    return Image.fromarray(np.ascontiguousarray((whole[::-1] if said["order"] == "bgr" else whole).transpose(1, 2, 0)))


def program_outputs(interface: Any, inputs: dict[str, Any], found: dict[str, Any], np: Any) -> dict[str, Any]:
    """Arrays with the names, dtypes and shapes that the model had before it became a Core ML package."""
    outputs = {}
    for entry in interface["outputs"]:
        value = inputs[entry["input"]] if "input" in entry else found[entry["core"]]
        kind = "float32" if entry["dtype"] == "bfloat16" else entry["dtype"]
        value = np.asarray(value).astype(kind)
        outputs[entry["name"]] = value if interface.get("shapes") else value.reshape(entry["shape"])
    return outputs


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: python run.py inputs.npz outputs.npz")
    call = load(str(Path(__file__).resolve().parent))
    import numpy as np

    stored = np.load(sys.argv[1], allow_pickle=False)
    given = {n[len("input:") :]: stored[n] for n in stored.files if n.startswith("input:")}
    inputs = given or {n: stored[n] for n in stored.files}
    np.savez(sys.argv[2], **call(inputs))


if __name__ == "__main__":
    main()
