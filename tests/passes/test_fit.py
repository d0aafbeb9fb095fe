"""fit: the latency holds and is used, whatever it is that takes time, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.axes import couple, macs
from edgecompile.data import Arrays
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context, Pass
from edgecompile.passes._candidates import Candidates, _found_again
from edgecompile.passes._timing import fitted
from edgecompile.passes.fit import Fit
from edgecompile.passes.prune import Prune
from edgecompile.program import Program


class Residual(nn.Module):
    """A stem, three residual blocks with a depthwise layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(16, 32, 1) for _ in range(3))
        self.deep = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1, groups=32) for _ in range(3))
        self.down = nn.ModuleList(nn.Conv2d(32, 16, 1) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for up, deep, down in zip(self.up, self.deep, self.down, strict=True):
            x = x + down(F.relu(deep(F.relu(up(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def data(count: int = 64) -> Arrays:
    generator = torch.Generator().manual_seed(1)
    return Arrays("noise", (torch.randn(count, 1, 8, 8, generator=generator),))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return Program.capture(Residual(), (torch.randn(2, 1, 8, 8),))


def by_macs(program: Program) -> float:
    return macs(couple(program)) + 3000.0


def by_operators(program: Program) -> float:
    return float(sum(n.op == "call_function" for n in program.graph.graph.nodes))


def by_steps(program: Program) -> float:
    """As kernels do: whole blocks of 8, and a start for each."""
    total = 0.0
    for node in program.graph.graph.nodes:
        if "conv2d" in str(node.target):
            out, each, *_ = node.args[1].meta["val"].shape
            total += 500 + 64 * 9 * (-(-out // 8) * 8) * (-(-each // 8) * 8)
    return total + 1000


def context(program: Program, cost: Callable[[Program], float], **given: Any) -> Context:
    return Context(
        program, calib=data(), share=lambda one, of: cost(one) / cost(of), ms=lambda one: cost(one) / 1e5, **given
    )


def small(**given: Any) -> Fit:
    return Fit(**{"block": 8, "samples": 48, "tries": 4, "built": 8, **given})


@pytest.mark.parametrize("cost", [by_macs, by_steps])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_the_latency_holds_and_is_used(program: Program, cost: Callable[[Program], float], share: float) -> None:
    before = program(*program.inputs)[0]
    ctx = context(program, cost)
    made = small(latency=share).run(program.clone(), ctx)
    found = cost(made) / cost(program)
    assert 0.85 * share < found <= share
    assert ctx.stats["latency"] == pytest.approx(found, abs=1e-3)
    assert made.interface == program.interface
    assert torch.equal(program(*program.inputs)[0], before)
    again = small(latency=share).run(program.clone(), context(program, cost))
    assert all(torch.equal(v, again.weights()[k]) for k, v in made.weights().items())


def test_what_is_taken_was_timed_twice_and_holds_by_both(program: Program) -> None:
    seen: list[float] = []

    def lucky(one: Program, of: Program) -> float:
        seen.append(share := by_macs(one) / by_macs(of))
        return share * (0.8 if seen.count(share) == 1 else 1.0)

    ctx = dataclasses.replace(context(program, by_macs), share=lucky)
    made = small(latency=0.5).run(program.clone(), ctx)
    found = by_macs(made) / by_macs(program)
    assert seen.count(found) == 2
    assert ctx.stats["latency"] == pytest.approx(0.9 * found, abs=1e-3)
    assert ctx.stats["latency"] <= 0.5


def test_where_operators_take_the_time_branches_go(program: Program) -> None:
    ctx = context(program, by_operators)
    made = small(latency=0.75).run(program.clone(), ctx)
    adds = [n for n in made.graph.graph.nodes if "add" in str(n.target)]
    assert len(adds) == 2
    assert any(note.startswith("without up.") for note in ctx.notes)
    with pytest.raises(PassError, match=r"fit: 0\.75 of the latency is out of reach: the fastest one tried takes"):
        small(latency=0.75, depth=False).run(program.clone(), context(program, by_operators))


def test_milliseconds_are_of_the_program_as_it_is(program: Program) -> None:
    ms = 0.6 * by_macs(program) / 1e5
    made = small(ms=ms).run(program.clone(), context(program, by_macs))
    assert 0.8 * ms < by_macs(made) / 1e5 <= ms


def test_it_is_nearer_than_what_is_pruned_to_the_same_time(program: Program) -> None:
    (x,) = data().inputs
    found = []
    for one in (small(latency=0.5, tries=8), Prune(latency=0.5, method="fisher", samples=48)):
        made = one.run(program.clone(), context(program, by_steps))
        assert by_steps(made) <= 0.5 * by_steps(program)
        difference = made(x)[0].softmax(1) - program(x)[0].softmax(1)
        found.append(float(difference.detach().pow(2).mean()))
    assert found[0] <= found[1]


def test_what_a_faster_runtime_gains_is_used(program: Program) -> None:
    asked = []

    def contest(one: Program, of: Program) -> float:
        asked.append(by_macs(one) / by_macs(of))
        return 0.6 * asked[-1] if asked[-1] < 0.5 else 0.7 * asked[-1]

    ctx = context(program, by_macs, contest=contest)
    made = small(latency=0.4).run(program.clone(), ctx)
    left = by_macs(made) / by_macs(program)
    assert len(asked) >= 2
    assert left > 0.5
    assert 0.9 * 0.4 <= 0.7 * left <= 0.4
    assert ctx.stats["latency"] == pytest.approx(0.7 * left, abs=2e-3)


def test_a_runtime_that_gains_nothing_changes_nothing(program: Program) -> None:
    plain, other = (
        small(latency=0.5).run(program.clone(), context(program, by_macs, contest=contest))
        for contest in (None, lambda one, of: by_macs(one) / by_macs(of))
    )
    assert all(torch.equal(v, other.weights()[k]) for k, v in plain.weights().items())


class Halves(Pass):
    """Stands for quantization in a pipeline: marks the program, which the cost below takes for integers."""

    name = "halves"
    integers = True

    def run(self, program: Program, ctx: Context) -> Program:
        ctx.count("halved")
        program.graph.register_buffer("halved", torch.zeros(1))
        with program.graph.graph.inserting_before(next(iter(program.graph.graph.nodes))):
            node = program.graph.graph.get_attr("halved")
        output = next(n for n in reversed(program.graph.graph.nodes) if n.op == "output")
        with program.graph.graph.inserting_before(output):
            zero = program.graph.graph.call_function(torch.ops.aten.add.Tensor, (output.args[0][0], node))
        output.args = ((zero,),)
        program.graph.recompile()
        return program


def test_the_passes_behind_are_part_of_the_time(program: Program) -> None:
    def cost(one: Program) -> float:
        return by_macs(one) * (0.5 if "halved" in one.weights() else 1.0)

    ctx = context(program, cost, rest=(Halves(),))
    made = small(latency=0.45).run(program.clone(), ctx)
    assert "planned in integers" in ctx.notes
    assert 0.8 < by_macs(made) / by_macs(program) <= 0.9  # the other half is not cut away
    assert "halved" not in made.weights()


def test_a_plan_in_floats_leaves_out_what_would_round_and_one_that_must_round_is_never_in_floats(
    program: Program,
) -> None:
    ctx = context(program, by_macs, rest=(Halves(),))
    small(latency=0.6).run(program.clone(), ctx)
    assert "planned in floats" in ctx.notes  # halving gains nothing here and loses something
    assert ctx.without == {"halves": "not run: the plan fits in floats, which lose less"}
    ctx = context(program, by_macs, rest=(Halves(keep="always"),))
    small(latency=0.6).run(program.clone(), ctx)
    assert "planned in integers" in ctx.notes
    assert not ctx.without
    ctx = context(program, by_macs, rest=(Halves(),), sized=True)
    small(latency=0.6).run(program.clone(), ctx)
    assert not ctx.without  # what is not faster may be smaller


def test_times_of_parts_are_found_from_a_few_wholes(program: Program) -> None:
    found = Candidates.of(program, context(program, by_steps), "magnitude", 8, depth=True, samples=32)
    rng = np.random.default_rng(0)
    chosen = [(0,) * len(found.items), *(found.random(rng) for _ in range(12))]
    model = fitted(found.layout, chosen, [found.share(c, False) for c in chosen])
    for _ in range(10):
        choice = found.random(rng)
        assert model.time(choice) == pytest.approx(found.share(choice, False), rel=0.15)


def test_what_is_kept_is_found_again_when_a_branch_is_gone(program: Program) -> None:
    from edgecompile.passes._branches import branches, dropped

    coupling = couple(program)
    (first, *_) = branches(program, coupling)
    keep = {g.name: list(range(g.size // 2)) for g in coupling.groups}
    smaller = dropped(program, [first])[0].retraced()
    left = _found_again(coupling, couple(smaller), keep)
    assert 0 < len(left) == len(couple(smaller).groups) < len(keep)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"latency": 0.5, "ms": 1.0}, r"give latency \(a share\) or ms, not both"),
        ({"latency": 1.5}, "latency=1.5: the share of the time"),
        ({"ms": -1.0}, "ms=-1: milliseconds above 0"),
        ({"latency": 0.5, "tries": 0}, "are 1 or more"),
    ],
)
def test_options_that_make_no_sense(options: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        Fit(**options)


def test_what_is_missing_is_said(program: Program) -> None:
    with pytest.raises(PassError, match="fit: needs calibration data: give --calib"):
        small(latency=0.5).run(program.clone(), Context(program))
    with pytest.raises(PassError, match="fit: needs a target that is timed or predicted"):
        small(latency=0.5).run(program.clone(), Context(program, calib=data()))
    with pytest.raises(PassError, match="out of reach: the fastest one tried takes"):
        small(latency=0.001).run(program.clone(), context(program, by_macs))
    fixed = Program.capture(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (torch.randn(2, 1, 8, 8),))
    with pytest.raises(PassError, match="fit: nothing of this program can go: it is an axis of"):
        small(latency=0.5).run(fixed.clone(), context(fixed, by_macs))


@dataclasses.dataclass(frozen=True)
class Taught(Pass):
    """Stands for training: programs with all their branches are perfect after it, the others are as they were."""

    name: ClassVar[str] = "taught"
    heals: ClassVar[bool] = True
    steps: int | None = None
    time: str | None = None
    epochs: float | None = None
    whole: ClassVar[list[int]] = []

    def run(self, program: Program, ctx: Context) -> Program:
        adds = sum("add" in str(n.target) for n in program.graph.graph.nodes)
        self.whole.append(adds)
        assert self.steps == 120
        if adds < 3:
            weights = program.weights()
            weights["head.weight"].data.mul_(100)
        return program


def test_plans_are_compared_as_they_are_after_training(program: Program) -> None:
    def cost(one: Program) -> float:
        return by_operators(one) + by_macs(one) / 1e5

    kept = []
    for rest in ((), (Taught(),)):
        Taught.whole.clear()
        ctx = context(program, cost, rest=rest, train=data())
        found = small(latency=0.8, tries=9, heal=120).run(program.clone(), ctx)
        kept.append(sum("add" in str(n.target) for n in found.graph.graph.nodes))
    assert kept[1] == max(Taught.whole, default=kept[1])
    assert kept[1] >= kept[0]
