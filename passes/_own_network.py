"""Networks of the user's own that stand beside the teacher: with its inputs and outputs, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from edgecompile.errors import InputError, PassError
from edgecompile.program import Program
from edgecompile.reference import load_function


def own_network(who: str, model: str, weights: str, program: Program) -> Program:
    """What `model`, a `module:function` or `file.py:function`, returns, captured as the program was.

    Raises `PassError`, in the name of the pass `who`, for what is no module, cannot be exported, has other inputs or
    outputs, or does not take the weights of a .safetensors file.
    """
    module = load_function(model)()
    if not isinstance(module, nn.Module):
        raise PassError(f"{who}: {model} returned a {type(module).__name__}, not a torch.nn.Module")
    if weights:
        _fill(who, module, weights)
    try:
        made = Program.capture(module, dict(zip(program.input_names, program.inputs, strict=True)))
    except InputError as error:
        raise PassError(f"{who}: {model}: {error}") from error
    if len(made.output_names) == len(program.output_names):
        made = replace(made, output_names=program.output_names)
    if made.interface != program.interface:
        other = "; ".join(f"{a}, not {b}" for a, b in zip(made.interface, program.interface, strict=False) if a != b)
        raise PassError(f"{who}: {model} has other inputs or outputs than the teacher: {other}")
    return made


def _fill(who: str, module: nn.Module, path: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise PassError(f"{who}: {path} does not exist")
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise PassError(f"{who}: {path}: {'; '.join(lines[:3])[:300]}") from error
