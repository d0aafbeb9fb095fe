"""Another network in the teacher's place: what a distillation begins with where the teacher's own shape will not do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import nn

from edgecompile.errors import InputError, PassError, SpecError
from edgecompile.pass_manager import Context, Pass, PassManager, parse
from edgecompile.passes import EXACT, PASSES
from edgecompile.passes._norms import NORMED
from edgecompile.program import Program
from edgecompile.reference import is_function, load_function
from edgecompile.rewrite import aten


@dataclass(frozen=True)
class Student(Pass):
    """Go on with a network of your own that has the teacher's inputs and outputs; `distill` then teaches it.

    Before: the teacher

    After: what `model` returns, a `torch.nn.Module`: `student(model=small.py:make), distill, quantize`

    `model` is `file.py:function` or `module:function`; `weights` is a .safetensors file for it. Its inputs are called
    as the teacher's are, and its exact passes have run. Nothing of it comes from the teacher, so that losses compare
    outputs. `fit` behind it brings it down to a latency, of which `ms` is absolute and `latency` a share of the
    student's own.

    Refuses: inputs or outputs of other shapes or types, a model that cannot be exported, weights that do not fit.
    """

    name: ClassVar[str] = "student"
    shapes: ClassVar[bool] = True

    model: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if self.model and not is_function(self.model):
            raise SpecError(f"model={self.model}: expected module:function or file.py:function")

    def run(self, program: Program, ctx: Context) -> Program:
        """The student; see the class."""
        if not self.model:
            raise PassError("student: give model=file.py:function, which returns the network")
        module = load_function(self.model)()
        if not isinstance(module, nn.Module):
            raise PassError(f"student: {self.model} returned a {type(module).__name__}, not a torch.nn.Module")
        if self.weights:
            _fill(module, self.weights)
        try:
            made = Program.capture(module, dict(zip(program.input_names, program.inputs, strict=True)))
        except InputError as error:
            raise PassError(f"student: {self.model}: {error}") from error
        made = replace(made, output_names=program.output_names) if _as_many(made, program) else made
        if made.interface != program.interface:
            other = "; ".join(
                f"{a}, not {b}" for a, b in zip(made.interface, program.interface, strict=False) if a != b
            )
            raise PassError(f"student: {self.model} has other inputs or outputs than the teacher: {other}")
        made = _of_its_own(made)
        return PassManager(parse(", ".join(EXACT), PASSES)).run(made, Context(made))[0]


def _as_many(one: Program, other: Program) -> bool:
    return len(one.output_names) == len(other.output_names)


def _of_its_own(program: Program) -> Program:
    """No node or weight is taken for the teacher's of the same name."""
    for node in program.graph.graph.nodes:
        own = {"origin": f"student:{node.name}"}
        if any(user.target is aten.batch_norm.default for user in node.users):
            own[NORMED] = "yes"
        node.meta["custom"] = own
    return replace(program, origin={name: f"student:{name}" for name in program.weights()})


def _fill(module: nn.Module, path: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise PassError(f"student: {path} does not exist")
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise PassError(f"student: {path}: {'; '.join(lines[:3])[:300]}") from error
