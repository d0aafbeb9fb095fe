"""Averaged weights, layers left out by chance, and which positions of a text count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgecompile.axes import couple
from edgecompile.data import Arrays
from edgecompile.errors import PassError, SpecError
from edgecompile.passes import _local, _training
from edgecompile.passes._branches import branches, dropped, separate
from edgecompile.passes._checkpoint import State
from edgecompile.passes._ensemble import Ensemble
from edgecompile.passes._layerdrop import gated
from edgecompile.passes._own_network import own_network
from edgecompile.passes._relevant import relevant
from edgecompile.passes._samples import gather
from edgecompile.passes._setting import Setting
from edgecompile.passes._taps import tapped
from edgecompile.passes._terms import Terms
from edgecompile.passes._trainable import gradients
from edgecompile.passes.distill import Distill
from edgecompile.program import Program
from edgecompile.rewrite import aten
from tests.axes.zoo import captured
from tests.passes.test_distill import Blocks, Small, context, pictures, pruned


@pytest.fixture(scope="module")
def teacher() -> Program:
    torch.manual_seed(0)
    return Program.capture(Small().eval(), (pictures(2).inputs[0],))


def test_averages_are_of_the_steps(teacher: Program) -> None:
    student = pruned(teacher)
    samples = gather(pictures(), Path("."))
    setting = Setting(steps=12, batch=16, rate=1e-3, seed=0, ema=0.7)
    terms = Terms.of(student, teacher, "outputs", False)
    training = _training.Training(student, [teacher], terms, samples, samples.part(0, 16), setting)
    seen: list[dict[str, Tensor]] = [{n: w.detach().clone() for n, w in training.trained.items()}]
    state = State(weights=[1.0], best_loss=-1.0, best={"": torch.zeros(1)})
    wanted = seen[0]
    with gradients(training.trained.values()):
        for step in range(12):
            training._advance(state)
            state.step += 1
            training._averages(state)
            part = 1 - min(0.7, (2 + step) / (11 + step))
            wanted = {n: (1 - part) * wanted[n] + part * w.detach() for n, w in training.trained.items()}
    for name, value in wanted.items():
        torch.testing.assert_close(state.average[name], value)
        with training._averaged(state):
            torch.testing.assert_close(training.trained[name], value)
        assert not torch.equal(training.trained[name], value)


def test_gates_leave_branches_out_and_are_open_as_often_as_asked(teacher: Program) -> None:
    learner = tapped(teacher, [], training=True)
    gates = gated(teacher, learner)
    coupling = couple(teacher)
    chosen = separate(branches(teacher, coupling))
    assert len(gates) == len(chosen) >= 1
    x = pictures().inputs[0][:8]
    with torch.no_grad():
        torch.testing.assert_close(learner(x)[0][0], tapped(teacher, [], training=True)(x)[0][0])
        for i, branch in enumerate(chosen):
            gates.fill_(1)[i] = 0
            wanted = tapped(dropped(teacher, [branch])[0], [], training=True)(x)[0][0]
            torch.testing.assert_close(learner(x)[0][0], wanted)
    samples = gather(pictures(), Path("."))
    setting = Setting(steps=1, batch=16, rate=1e-3, seed=0, layerdrop=0.2)
    terms = Terms.of(teacher, teacher, "outputs", False)
    training = _training.Training(teacher.clone(), [teacher], terms, samples, samples.part(0, 16), setting)
    assert training.gates is not None
    drawn = []
    for step in range(3000):
        training._prepare(step)
        drawn.append(training.gates.clone())
    kept = torch.stack(drawn).double().mean(0)
    assert float((kept - 0.8).abs().max()) < 4 * (0.2 * 0.8 / 3000) ** 0.5
    assert not any("layerdrop" in str(n.target) for n in teacher.graph.graph.nodes)


OTHER = """
import torch
from torch import nn

class Other(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return 3 * self.head(torch.relu(self.conv(x)).mean((2, 3)))

def make():
    return Other().eval()

def wide():
    made = Other()
    made.head = nn.Linear(8, 5)
    return made.eval()
"""


def test_several_teachers_answer_as_one(teacher: Program, tmp_path: Path) -> None:
    file = tmp_path / "other.py"
    file.write_text(OTHER)
    x = pictures().inputs[0]
    other = own_network("distill", f"{file}:make", "", teacher)
    with torch.no_grad():
        (found,), _ = Ensemble([teacher, other], [])(x)
        wanted = (teacher(x)[0].softmax(-1) + other(x)[0].softmax(-1)) / 2
        torch.testing.assert_close(found.softmax(-1), wanted)

    def divergence(student: Program) -> float:
        with torch.no_grad():
            return float(nn.functional.kl_div(student(x)[0].log_softmax(-1), wanted, reduction="batchmean"))

    options: dict[str, Any] = {"steps": 60, "batch": 16, "losses": "kl"}
    alone = Distill(**options).run(pruned(teacher), context(teacher))
    both = Distill(**options, teachers=f"{file}:make").run(pruned(teacher), context(teacher))
    assert divergence(both) < 0.5 * divergence(alone)
    with pytest.raises(PassError, match=r"distill: .*:wide has other inputs or outputs than the teacher"):
        Distill(steps=1, batch=16, teachers=f"{file}:wide").run(pruned(teacher), context(teacher))
    with pytest.raises(SpecError, match="teachers=other: expected module:function"):
        Distill(teachers="other")


def test_layers_are_left_out_only_where_there_are_branches() -> None:
    plain = Program.capture(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval(), (pictures(2).inputs[0],))
    with pytest.raises(PassError, match="layerdrop: this program has no residual branch"):
        Distill(steps=1, batch=16, layerdrop=0.2).run(plain, context(plain))


def test_layers_that_repeat_share_a_gate() -> None:
    made = captured("bert")
    assert len(gated(made, tapped(made, [], training=True))) == 2
    assert len(separate(branches(made, couple(made)))) == 4


def test_padding_does_not_count_and_a_last_layer_has_the_token_that_is_read() -> None:
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 50, (6, 9)), torch.ones(6, 9, dtype=torch.int64)
    for row in range(6):
        mask[row, 3 + row :] = 0
    made = Program.capture(Blocks().eval(), {"ids": ids[:2], "attention_mask": mask[:2]})
    data = Arrays("texts", (ids, mask), batch_size=4)
    found = relevant(made, data)
    layers = [n for n in made.graph.graph.find_nodes(op="call_function", target=aten.linear.default) if n in found]
    assert len(layers) == 8
    for node in layers[:4]:
        assert torch.equal(found[node], mask.bool())
    first = torch.zeros(6, 9, dtype=torch.bool)
    first[:, 0] = True
    for node in layers[5:]:
        assert torch.equal(found[node], first)
    with torch.no_grad():
        other = ids.where(mask.bool(), 7)
        torch.testing.assert_close(made(other, mask)[0], made(ids, mask)[0])
    coupling = couple(made)
    _, moments = _local.statistics(made, coupling, data, 0)
    _, same = _local.statistics(made, coupling, Arrays("texts", (other, mask), batch_size=4), 0)
    for one, two in zip(moments.values(), same.values(), strict=True):
        torch.testing.assert_close(one.second, two.second)


def test_where_nobody_knows_every_position_counts() -> None:
    class Picks(Blocks):
        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(ids, attention_mask).argmax(-1)

    torch.manual_seed(0)
    ids, mask = torch.randint(0, 50, (6, 9)), torch.ones(6, 9, dtype=torch.int64)
    made = Program.capture(Picks().eval(), {"ids": ids[:2], "attention_mask": mask[:2]})
    assert relevant(made, Arrays("texts", (ids, mask))) == {}


def test_without_a_mask_every_position_counts(teacher: Program) -> None:
    assert relevant(teacher, pictures(8)) == {}


def test_shares_lie_between_0_and_1() -> None:
    for options in ({"ema": 1.0}, {"layerdrop": -0.1}):
        with pytest.raises(SpecError, match="ema and layerdrop lie between 0 and 1"):
            Distill(**options)  # type: ignore[arg-type]
