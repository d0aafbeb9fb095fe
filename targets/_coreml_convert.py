"""The child process that converts: a saved program in, an .mlpackage with stable bytes and a JSON status out."""

from __future__ import annotations

import dataclasses
import json
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgecompile.program import Program
from edgecompile.silence import silenced
from edgecompile.targets._coreml_boundary import INTERFACE_KEY, bounded, core_dtype, decomposed, place, without_form
from edgecompile.targets._coreml_image import LABEL, PROBABILITIES, Picture, classifying, pictured, with_probabilities
from edgecompile.targets._mil_read import coremltools, parse_spec, read_package

STATUS = "status.json"
PACKAGE = "model.mlpackage"
RANK = 5
"""Core ML's limit on the axes of a tensor."""
_MODEL = "com.apple.CoreML/model.mlmodel"
_WEIGHTS = "com.apple.CoreML/weights"
_KEPT_OUT = (
    # it moves scales from one side of a sum to the other; the program's own are written as they are
    "common::distributive_quantized_binary_op_scale_normalization",
)
_UNSTABLE = ("com.github.apple.coremltools.conversion_date",)


class _Collected(Exception):
    """The conversion went through to the end, with operators that could not be converted."""


def main(folder: Path) -> int:
    """Convert `folder/program` as `folder/request.json` says; the status is written whatever coremltools raises."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    reasons: list[str] = []
    status: dict[str, Any]
    try:
        with silenced("coremltools", stderr=True):
            status = _convert(folder, request, reasons)
    except _Collected:
        status = {"reasons": reasons}
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        status = {"reasons": reasons} if reasons else {"failed": what}
    (folder / STATUS).write_text(json.dumps(status, sort_keys=True), encoding="utf-8")
    return 0


def _convert(folder: Path, request: Mapping[str, Any], reasons: list[str]) -> dict[str, Any]:
    import torch

    from edgecompile.program_file import load

    ct = coremltools()
    program, interface, more = _prepared(load(folder / "program"), request)
    kinds = {e["core"]: core_dtype(e["dtype"]) for e in interface["outputs"] if "core" in e}
    outputs = [
        ct.TensorType(name=name, dtype=np.dtype(kinds.get(name, "float32")).type) for name in program.output_names
    ]
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(_KEPT_OUT)
    exported = decomposed(program, request.get("shapes", ()))
    if missing := without_form(exported):
        return {"reasons": [f"{place(node)} has no Core ML form" for node in missing]}
    with _collecting(reasons), classifying():
        model = ct.convert(
            exported,
            outputs=outputs,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, f"iOS{request['ios']}"),
            compute_precision=getattr(ct.precision, {"fp16": "FLOAT16", "fp32": "FLOAT32"}[request["dtype"]]),
            pass_pipeline=pipeline,
            skip_model_load=True,
            **more,
        )
    package = folder / PACKAGE
    model.save(str(package))
    metadata = {**request["metadata"], INTERFACE_KEY: json.dumps(interface, sort_keys=True)}
    _settle(package, metadata)
    mil = read_package(package)
    high = [f"{op.name} ({op.kind}) has more than {RANK} axes" for op in mil.ops if op.rank > RANK]
    if high:
        return {"reasons": high}
    return {
        "operations": dict(sorted(Counter(op.kind for op in mil.ops if op.kind != "const").items())),
        "tools": {"coremltools": ct.__version__, "torch": torch.__version__},
    }


def _prepared(program: Program, request: Mapping[str, Any]) -> tuple[Program, dict[str, Any], dict[str, Any]]:
    """The program as Core ML takes it, its interface, and what else coremltools is told: pictures and labels."""
    ct = coremltools()
    more: dict[str, Any] = {}
    name, picture = "", None
    if request.get("image"):
        program, name, picture = pictured(program, Picture(**request["image"]))
    program, interface = bounded(program)
    if request.get("shapes"):
        interface["shapes"] = request["shapes"]
    if picture is not None or request.get("shapes"):
        more["inputs"] = [
            _input_type(ct, entry, entry["name"] == name and picture, request) for entry in interface["inputs"]
        ]
    if request.get("labels"):
        program = with_probabilities(program)
        more["classifier_config"] = ct.ClassifierConfig(request["labels"], LABEL, PROBABILITIES)
        interface["labels"] = LABEL
    return program, interface, more


def _input_type(ct: Any, entry: dict[str, Any], picture: Any, request: Mapping[str, Any]) -> Any:
    shape: Any = tuple(entry["shape"] or (1,))
    if request.get("shapes"):
        shape = ct.EnumeratedShapes([tuple(s) for s in request["shapes"]], default=shape)
    if not picture:
        return ct.TensorType(name=entry["core"], shape=shape, dtype=np.dtype(core_dtype(entry["dtype"])).type)
    entry["image"] = dataclasses.asdict(picture)
    scale, bias = picture.core()
    if len(bias) == 1:
        layout, bias = ct.colorlayout.GRAYSCALE, bias[0]
    else:
        layout = ct.colorlayout.BGR if picture.order == "bgr" else ct.colorlayout.RGB
    return ct.ImageType(name=entry["core"], shape=shape, scale=scale, bias=bias, color_layout=layout)


@contextmanager
def _collecting(reasons: list[str]) -> Iterator[None]:
    """Let the frontend go on behind an operator that it cannot convert, so that all of them are known at once."""
    from coremltools.converters.mil.frontend.torch import converter, ops

    convert_one, convert_all = ops.convert_single_node, converter.convert_nodes

    def one(context: Any, node: Any) -> None:
        try:
            convert_one(context, node)
        except Exception as error:
            reasons.append(_reason(node, error))
            context.add(_stand_in(node.meta["val"], node.name), node.name)

    def every(*args: Any, **kwargs: Any) -> None:
        convert_all(*args, **kwargs)
        if reasons:
            raise _Collected

    ops.convert_single_node, converter.convert_nodes = one, every
    try:
        yield
    finally:
        ops.convert_single_node, converter.convert_nodes = convert_one, convert_all


def _reason(node: Any, error: Exception) -> str:
    stack = (node.meta or {}).get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    origin = (node.meta or {}).get("custom", {}).get("origin", node.name)
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return f"{paths[-1] if paths else origin}: {node.kind} ({origin}): {' '.join(first.split())[:200]}"


def _stand_in(value: Any, name: str) -> Any:
    """A value of the right shape that is no constant, for what reads an operator that was not converted."""
    from coremltools.converters.mil.mil import Builder as mb

    if isinstance(value, (list, tuple)):
        return tuple(_stand_in(v, f"{name}_{i}") for i, v in enumerate(value))
    drawn = mb.random_uniform(shape=[int(n) for n in value.shape] or [1], low=0.0, high=1.0, name=f"{name}_drawn")
    kind = "bool" if str(value.dtype) == "torch.bool" else "fp32" if value.dtype.is_floating_point else "int32"
    return mb.cast(x=drawn, dtype=kind, name=name)


def _settle(package: Path, metadata: Mapping[str, str]) -> None:
    """Take out what differs between two conversions: dates, random identifiers, the order of maps, a debug file."""
    model = package / "Data" / _MODEL
    spec = parse_spec(model.read_bytes())
    for key in _UNSTABLE:
        spec.description.metadata.userDefined.pop(key, None)
    for key, value in sorted(metadata.items()):
        spec.description.metadata.userDefined[key] = value
    model.write_bytes(spec.SerializeToString(deterministic=True))
    items = {_MODEL: "CoreML Model Specification"}
    if (package / "Data" / _WEIGHTS).is_dir():
        items[_WEIGHTS] = "CoreML Model Weights"
    ids = {path: str(uuid.uuid5(uuid.NAMESPACE_URL, f"edgecompile/{path}")) for path in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            ids[path]: {
                "author": "com.apple.CoreML",
                "description": text,
                "name": path.rpartition("/")[2],
                "path": path,
            }
            for path, text in items.items()
        },
        "rootModelIdentifier": ids[_MODEL],
    }
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    for path in package.iterdir():
        if path.is_file() and path.name != "Manifest.json":
            path.unlink()


def converted(program: Program, folder: Path, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
    """Convert in a child process in an empty folder: its status, with `crashed` or `late` where it left none."""
    import os
    import subprocess

    import edgecompile
    from edgecompile.program_file import save

    (folder / "program").mkdir()
    save(program, folder / "program")
    (folder / "request.json").write_text(json.dumps(dict(request), sort_keys=True), encoding="utf-8")
    roots = [str(Path(edgecompile.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "PYTHONHASHSEED": "0"}
    command: Sequence[str] = (sys.executable, "-m", "edgecompile.targets._coreml_convert", str(folder))
    try:
        run = subprocess.run(command, env=environment, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return {"late": limit_s}
    if run.returncode or not (folder / STATUS).exists():
        lines = run.stderr.decode("utf-8", "replace").strip().splitlines()
        return {"crashed": run.returncode, "said": " ".join((lines or [""])[-1].split())[:200]}
    status: dict[str, Any] = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
