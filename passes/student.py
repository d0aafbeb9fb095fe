"""Another network in the teacher's place: what a distillation begins with where the teacher's own shape will not do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context, Pass, PassManager, parse
from edgecompile.passes import EXACT, PASSES
from edgecompile.passes._norms import NORMED
from edgecompile.passes._own_network import own_network
from edgecompile.program import Program
from edgecompile.reference import is_function
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
        made = own_network("student", self.model, self.weights, program)
        made = _of_its_own(made)
        return PassManager(parse(", ".join(EXACT), PASSES)).run(made, Context(made))[0]


def _of_its_own(program: Program) -> Program:
    """No node or weight is taken for the teacher's of the same name."""
    for node in program.graph.graph.nodes:
        own = {"origin": f"student:{node.name}"}
        if any(user.target is aten.batch_norm.default for user in node.users):
            own[NORMED] = "yes"
        node.meta["custom"] = own
    return replace(program, origin={name: f"student:{name}" for name in program.weights()})
