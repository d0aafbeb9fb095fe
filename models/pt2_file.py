"""A `.pt2` file of torch.export.save as a Program, read in a child process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecompile.errors import InputError


def parse(path: str, out: Path, trust: bool = False) -> dict[str, Any]:
    """Load a vetted `.pt2` file and save it as a Program in `out`: for `parse_in_child("pt2", ...)`.

    The file's example inputs become the program's; its weights keep their names. Raises `InputError` for
    programs that edgecompile cannot hold (control flow on data, buffers that are written, inputs that are not
    tensors). `trust` changes nothing here: what it lifts is lifted in vetting, and torch decides by itself
    how to load.
    """
    import torch
    from torch import fx

    from edgecompile import program_file
    from edgecompile.program import Program, quiet_export

    with quiet_export():
        exported = torch.export.load(path)
    if exported.example_inputs is None:
        raise InputError(f"{path}: no example inputs in it; save it with torch.export.save from torch 2.13")
    module = exported.module(check_guards=False)
    # a fresh module: torch's own refuses eval() and insists on the original argument names
    graph = fx.GraphModule(module, module.graph, class_name="Loaded")
    args, kwargs = exported.example_inputs
    signature = exported.module_call_graph[0].signature
    names = signature.forward_arg_names if signature is not None else None
    try:
        program = Program.capture(graph, _inputs(path, args, kwargs, names))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    program_file.save(program, out)
    return {"notes": list(program.notes)}


def _inputs(
    path: str, args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str] | None
) -> Sequence[Any] | Mapping[str, Any]:
    """Positional or named example inputs; when a program takes both, all by name."""
    if not kwargs:
        return tuple(args)
    if args and (names is None or len(names) < len(args)):
        raise InputError(f"{path}: its positional inputs have no names; export it with keyword inputs only")
    return dict(zip(names or (), args, strict=False)) | dict(kwargs)
