"""PassManager: order, retrace, interface, keep or undo, errors that say where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context, Pass, PassManager, Price, parse, show
from edgecompile.passes import EXACT, PASSES
from edgecompile.program import Program
from edgecompile.reference import load_function
from edgecompile.rewrite import aten, nodes, replace, set_weight, weight


@dataclass(frozen=True)
class DropRelu(Pass):
    """Removes every relu: lossy, and changes the graph."""

    name: ClassVar[str] = "drop_relu"

    def run(self, program: Program, ctx: Context) -> Program:
        for node in nodes(program, aten.relu.default):
            replace(program, node, node.args[0])
            ctx.count("dropped")
        return program


@dataclass(frozen=True)
class Halve(Pass):
    """Halves the weights of linear layers: changes values only."""

    name: ClassVar[str] = "halve"
    times: int = 1

    def run(self, program: Program, ctx: Context) -> Program:
        for node in nodes(program, aten.linear.default):
            set_weight(program, node.args[1], weight(program, node.args[1]) / 2**self.times)
        return program


@dataclass(frozen=True)
class Nothing(Pass):
    """Does nothing."""

    name: ClassVar[str] = "nothing"
    exact: ClassVar[bool] = True

    def run(self, program: Program, ctx: Context) -> Program:
        ctx.note("looked")
        return program


@dataclass(frozen=True)
class Widen(Pass):
    """Changes the interface, which no pass may."""

    name: ClassVar[str] = "widen"

    def run(self, program: Program, ctx: Context) -> Program:
        linear = list(nodes(program, aten.linear.default))[-1]
        set_weight(program, linear.args[1], torch.randn(7, 4))
        set_weight(program, linear.args[2], torch.randn(7))
        return program


@dataclass(frozen=True)
class Fails(Pass):
    """Raises what its option says."""

    name: ClassVar[str] = "fails"
    how: Literal["user", "bug"] = "user"

    def run(self, program: Program, ctx: Context) -> Program:
        raise PassError("fails: cannot") if self.how == "user" else ZeroDivisionError("oops")


KNOWN: dict[str, str | type[Pass]] = {
    "drop_relu": DropRelu,
    "halve": Halve,
    "nothing": Nothing,
    "widen": Widen,
    "fails": Fails,
}


@dataclass
class Prices:
    """A pricer that says what it is told, and remembers what it was asked."""

    pays: bool
    asked: list[tuple[int, int, bool]] = field(default_factory=list)

    def price(self, before: Program, after: Program, lossy: bool) -> tuple[Price, Price, bool, str]:
        self.asked.append((len(before.graph.graph.nodes), len(after.graph.graph.nodes), lossy))
        return Price(None, 10, None), Price(None, 5, None), self.pays, "because"


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return Program.capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 3),))


def _run(program: Program, text: str, pricer: Prices | None = None, **how: object):
    return PassManager(parse(text, KNOWN), **how).run(program, Context(program), pricer)


def test_passes_run_in_order_and_the_caller_keeps_his_program(program: Program) -> None:
    before = str(program), [w.clone() for w in program.weights().values()]
    result, steps = _run(program, "drop_relu, halve")
    assert "relu" not in str(result)
    assert [s.passes[0].name for s in steps] == ["drop_relu", "halve"]
    assert steps[0].stats == {"dropped": 1}
    assert str(program) == before[0]
    assert all(torch.equal(a, b) for a, b in zip(program.weights().values(), before[1], strict=True))


def test_a_change_of_values_alone_is_seen(program: Program) -> None:
    result, steps = _run(program, "halve(times=2)")
    assert steps[0].changed
    x = torch.randn(5, 3)
    first = torch.relu(torch.nn.functional.linear(x, program.weights()["0.weight"] / 4, program.weights()["0.bias"]))
    expected = torch.nn.functional.linear(first, program.weights()["2.weight"] / 4, program.weights()["2.bias"])
    assert torch.allclose(result(x)[0], expected, atol=1e-6)


def test_exact_passes_share_a_step_and_no_change_is_not_priced(program: Program) -> None:
    prices = Prices(True)
    _, steps = _run(program, "nothing, nothing, drop_relu, nothing", prices)
    assert [len(s.passes) for s in steps] == [2, 1, 1]
    assert [s.changed for s in steps] == [False, True, False]
    assert steps[0].reason == "nothing to do"
    assert steps[0].notes == ("looked", "looked")
    assert prices.asked == [(9, 8, True)]


def test_a_lossy_pass_that_does_not_pay_is_undone(program: Program) -> None:
    result, steps = _run(program, "drop_relu", Prices(False))
    assert (steps[0].kept, steps[0].reason) == (False, "because")
    assert str(result) == str(program)


def test_unless_it_is_to_be_kept_always(program: Program) -> None:
    result, steps = _run(program, "drop_relu(keep=always)", Prices(False))
    assert (steps[0].kept, steps[0].reason) == (True, "kept although because")
    assert "relu" not in str(result)


@dataclass(frozen=True)
class LeavesOut(Pass):
    """Says that a later pass is not wanted."""

    name = "leaves_out"

    def run(self, program: Program, ctx: Context) -> Program:
        ctx.without["halve"] = "not run: enough"
        return program


def test_a_pass_can_leave_out_those_behind_it_but_not_what_is_to_be_kept_always(program: Program) -> None:
    ctx = Context(program)
    result, steps = PassManager((LeavesOut(), Nothing(), Halve(), DropRelu())).run(program, ctx)
    assert [(s.passes[0].name, s.kept, s.reason) for s in steps if not s.kept] == [("halve", False, "not run: enough")]
    assert torch.equal(result.weights()["0.weight"], program.weights()["0.weight"])
    _, steps = PassManager((LeavesOut(), Halve(keep="always"))).run(program, ctx)
    assert all(step.kept for step in steps)
    assert not ctx.without


def test_the_interface_is_held(program: Program) -> None:
    with pytest.raises(RuntimeError, match="changed the interface from"):
        _run(program, "widen")


def test_a_users_error_says_where_and_how_to_go_on(program: Program) -> None:
    with pytest.raises(PassError) as caught:
        _run(program, "drop_relu, fails, halve(times=3)")
    assert str(caught.value) == "fails: cannot (in pass 2 of 3; --pipeline 'fails, halve(times=3)' runs from there)"


def test_a_bug_keeps_its_own_type_and_says_where(program: Program) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        _run(program, "nothing, fails(how=bug)")
    assert caught.value.__notes__ == ["in pass 2 of 2; --pipeline 'fails(how=bug)' runs from there"]


def test_observers_see_every_pass(program: Program) -> None:
    seen: list[tuple[int, str, bool]] = []
    observer = lambda index, one, p: seen.append((index, one.name, "relu" in str(p)))  # noqa: E731
    _run(program, "nothing, drop_relu", observers=(observer,))
    assert seen == [(1, "nothing", True), (2, "drop_relu", False)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold_bm", "pipeline: unknown word 'fold_bm' at character 1; did you mean fold_bn? (known: "),
        (
            "fold_bn, quantize(weight=int8)",
            "pipeline: quantize: unknown option 'weight'; did you mean weights? (known: ",
        ),
        (
            "quantize(calibration=percentil)",
            "pipeline: quantize.calibration: 'percentil' is not one of the choices; did you mean percentile?",
        ),
    ],
)
def test_pipeline_text_errors(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text, PASSES)
    assert str(caught.value).startswith(message)


@given(st.lists(st.sampled_from(sorted(PASSES)), max_size=5))
def test_every_pass_shows_and_parses(names: list[str]) -> None:
    passes = parse(", ".join(names), PASSES)
    assert parse(show(passes), PASSES) == passes
    assert [p.name for p in passes] == names


def test_the_table_is_true() -> None:
    """Each class has the table's name and a docstring whose first line stands alone; EXACT names exact passes."""
    for name, where in PASSES.items():
        cls = load_function(where)
        assert cls.name == name
        assert where.split(":")[0].endswith(f".{name}")
        first = (cls.__doc__ or "").splitlines()[0]
        assert first.endswith(".")
        assert len(first) <= 110
    assert all(load_function(PASSES[name]).exact for name in EXACT)
