"""The one saved form of a Program: torch's export JSON, safetensors, and provenance. Neither pickle nor code."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantize and dequantize operators
from safetensors.torch import load_file, save_file
from torch import nn
from torch._export.serde import serialize

from edgecompile.errors import InputError
from edgecompile.program import Program, drop_dead, quiet_export, unlift

_serde: Any = serialize  # untyped in torch

FORMAT = 1
_UNSTABLE = ("stack_trace", "from_node")  # absolute paths, object addresses


def save(program: Program, folder: Path) -> None:
    """Write `graph.json`, `weights.safetensors`, `inputs.safetensors` and `meta.json` into an existing folder."""
    exported = program.exported()
    bare = copy.copy(exported)
    nothing = nn.Parameter(torch.empty(0))  # serde would pickle the values; it only checks that the names are there
    bare._state_dict = {
        name: nothing if isinstance(value, nn.Parameter) else nothing.detach()
        for name, value in exported.state_dict.items()
    }
    bare._constants = {name: nothing.detach() for name in exported.constants}
    bare._example_inputs = None
    with quiet_export():
        graph = _serde._dataclass_to_dict(_serde.ExportedProgramSerializer().serialize(bare).exported_program)
    for node in graph["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {k: v for k, v in node["metadata"].items() if k not in _UNSTABLE}
    text = json.dumps(graph, cls=_serde.EnumEncoder, sort_keys=True, allow_nan=False)
    (folder / "graph.json").write_text(text, encoding="utf-8")

    state = {f"state:{k}": v for k, v in exported.state_dict.items()}
    state |= {f"constant:{k}": v for k, v in exported.constants.items() if isinstance(v, torch.Tensor)}
    save_file({k: v.detach().contiguous().clone() for k, v in state.items()}, folder / "weights.safetensors")
    inputs = {f"{i:03d}": t.detach().contiguous() for i, t in enumerate(program.inputs)}
    save_file(inputs, folder / "inputs.safetensors")
    meta = {
        "format": FORMAT,
        "parameters": sorted(k for k, v in exported.state_dict.items() if isinstance(v, nn.Parameter)),
        "dynamic_shapes": [{str(axis): name for axis, name in axes.items()} for axes in program.dynamic_shapes or ()],
        "static": program.dynamic_shapes is None,
        "output_names": list(program.output_names),
        "origin": dict(program.origin),
        "kept": {w: {str(a): list(i) for a, i in axes.items()} for w, axes in program.kept.items()},
        "notes": list(program.notes),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True), encoding="utf-8")


def load(folder: Path) -> Program:
    """Read what `save` wrote; raises `InputError` when a file is missing, damaged or of another format.

    Only for files of our own making: torch evaluates the symbolic sizes in the JSON, so a foreign file must have been
    vetted and parsed by `ingest` first.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        graph = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "weights.safetensors")
        inputs = load_file(folder / "inputs.safetensors")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: not a saved program or damaged: {error}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise InputError(f"{folder}: not a saved program or damaged: {error}") from error
    if meta.get("format") != FORMAT:
        raise InputError(
            f"{folder}: format {meta.get('format')!r} of a saved program is not known (this version reads {FORMAT})"
        )
    parameters = set(meta["parameters"])
    state: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(":")
        if kind == "constant":
            constants[name] = value
        else:
            state[name] = nn.Parameter(value, value.is_floating_point()) if name in parameters else value
    with quiet_export():
        exported = _serde.ExportedProgramDeserializer().deserialize(
            _serde._dict_to_dataclass(_serde.ExportedProgram, graph), state, constants, None
        )
    shapes = tuple({int(a): n for a, n in axes.items()} for axes in meta["dynamic_shapes"])
    program = Program(
        unlift(exported),
        tuple(inputs[key] for key in sorted(inputs)),
        None if meta["static"] else shapes,
        tuple(meta["output_names"]),
        meta["origin"],
        {w: {int(a): tuple(i) for a, i in axes.items()} for w, axes in meta["kept"].items()},
        tuple(meta["notes"]),
    )
    drop_dead(program.graph)
    # reading names the nodes anew; one retrace gives the shapes and names that every other program has
    return replace(program.retraced(), notes=program.notes)
