"""student: another network learns what the teacher knows, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgecompile.errors import PassError, SpecError
from edgecompile.passes._norms import candidates
from edgecompile.passes._taps import features
from edgecompile.passes.distill import Distill
from edgecompile.passes.student import Student
from edgecompile.program import Program
from edgecompile.rewrite import aten
from tests.passes import test_distill
from tests.passes.test_distill import context, distance

teacher = test_distill.teacher


class Tiny(nn.Module):
    """Two convolutions with batch norms, the names as the teacher's."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.norm1(self.one(x))).mean((2, 3)))  # type: ignore[no-any-return]


def make() -> nn.Module:
    torch.manual_seed(3)
    return Tiny()


def wide() -> nn.Module:
    return Tiny(5)


def other() -> nn.Module:
    class Renamed(Tiny):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels)

    return Renamed()


def number() -> int:
    return 3


def test_a_network_of_your_own_learns(teacher: Program) -> None:
    ctx = context(teacher)
    student = Student(model=f"{__file__}:make").run(teacher.clone(), ctx)
    assert student.interface == teacher.interface
    assert not student.graph.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    assert len(candidates(student, teacher)) == 2  # training has the norms back
    assert features(student, teacher, 4) == []  # names are the teacher's by chance
    before = distance(student, teacher)
    healed = Distill(steps=200, batch=16).run(student, ctx)
    assert ctx.stats["batch_norms"] == 2
    assert distance(healed, teacher) < 0.5 * before
    with pytest.raises(PassError, match="teacher and student have no value between layers in common"):
        Distill(losses="mse", steps=1).run(Student(model=f"{__file__}:make").run(teacher.clone(), ctx), ctx)


def test_weights_are_its_own(teacher: Program, tmp_path: Path) -> None:
    model = Tiny()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "own.safetensors")
    one = Student(model=f"{__file__}:make", weights=str(tmp_path / "own.safetensors"))
    made = one.run(teacher.clone(), context(teacher))
    torch.testing.assert_close(made(*teacher.inputs)[0], model.eval()(*teacher.inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            "wide",
            r"has other inputs or outputs than the teacher: -> output: float32\[batch, 5\], not -> output: float32",
        ),
        ("other", "the model fails on its example inputs: TypeError"),
        ("number", "returned a int, not a torch.nn.Module"),
    ],
)
def test_what_does_not_fit_is_refused(teacher: Program, function: str, says: str) -> None:
    with pytest.raises(PassError, match=says):
        Student(model=f"{__file__}:{function}").run(teacher.clone(), context(teacher))


def test_what_is_missing_is_said(teacher: Program, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected module:function"):
        Student(model="small")
    with pytest.raises(PassError, match=r"give model=file\.py:function"):
        Student().run(teacher.clone(), context(teacher))
    for content, says in ((None, "does not exist"), (b"torn", "torn.safetensors: ")):
        path = tmp_path / "torn.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PassError, match=says):
            Student(model=f"{__file__}:make", weights=str(path)).run(teacher.clone(), context(teacher))
