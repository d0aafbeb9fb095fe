"""The graph edits that passes share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgecompile import rewrite
from edgecompile.program import Program

aten = torch.ops.aten


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)))


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return Program.capture(Tied(), (torch.randn(2, 3),))


def linears(program: Program) -> list[torch.fx.Node]:
    return list(rewrite.nodes(program, aten.linear.default))


def test_argument_by_name_default_and_unknown_name(program: Program) -> None:
    first = linears(program)[0]
    assert rewrite.argument(first, "input").op == "placeholder"
    relu = next(iter(rewrite.nodes(program, aten.relu.default)))
    added = rewrite.call(program, aten.add.Tensor, (relu, 1), relu, {"alpha": 2})
    assert rewrite.argument(added, "alpha") == 2
    bare = rewrite.call(program, aten.linear.default, (first.args[0], first.args[1]), relu)
    assert rewrite.argument(bare, "bias") is None
    with pytest.raises(KeyError, match=r"aten.linear.default has no argument stride"):
        rewrite.argument(first, "stride")


def test_weight_is_none_for_what_is_not_a_weight(program: Program) -> None:
    first = linears(program)[0]
    assert rewrite.weight(program, first.args[1]) is program.graph.a.weight  # type: ignore[union-attr]
    assert [rewrite.weight(program, v) for v in (first, first.args[0], 3, None)] == [None] * 4


def test_tied_weights_have_both_readers_and_change_for_both(program: Program) -> None:
    first, second = linears(program)
    attribute = first.args[1]
    assert isinstance(attribute, torch.fx.Node)
    assert set(rewrite.readers(program, attribute)) == {first, second}
    assert rewrite.weight_readers(program)["a.weight"] == rewrite.readers(program, attribute)
    x = torch.randn(2, 3)
    rewrite.set_weight(program, attribute, torch.zeros(3, 3))
    bias = program.weights()["b.bias"]
    torch.testing.assert_close(program(x)[0], torch.relu(bias).expand(2, 3))
    assert program.retraced().weights().keys() == {"a.weight", "a.bias", "b.bias"}


def test_a_parameter_stays_trainable_and_a_buffer_a_buffer(program: Program) -> None:
    first = linears(program)[0]
    rewrite.set_weight(program, first.args[1], torch.ones(3, 3))  # type: ignore[arg-type]
    assert dict(program.graph.named_parameters())["a.weight"].requires_grad
    constant = rewrite.add_weight(program, "new.constant", torch.ones(3), first)
    assert dict(program.graph.named_buffers())["new.constant"].shape == (3,)
    rewrite.set_weight(program, constant, torch.zeros(2))
    assert tuple(constant.meta["val"].shape) == (2,)


def test_new_weights_get_free_names_origins_and_survive_retracing(program: Program) -> None:
    first = linears(program)[0]
    names = []
    for value in (1.0, 2.0):
        node = rewrite.add_weight(program, "a.bias", torch.full((3,), value), first, origin="teacher.bias")
        first.args = (*first.args[:2], node)
        names.append(node.target)
    assert names == ["a.bias_1", "a.bias_2"]
    after = program.retraced()
    assert after.origin["a.bias_2"] == "teacher.bias"
    assert set(after.weights()) == {"a.weight", "a.bias_2", "b.bias"}
    assert float(after.weights()["a.bias_2"][0]) == 2.0


def test_a_call_inherits_provenance_and_knows_its_shape(program: Program) -> None:
    relu = next(iter(rewrite.nodes(program, aten.relu.default)))
    new = rewrite.call(program, aten.unsqueeze.default, (relu.args[0], 1), relu)
    assert new.meta["custom"] == relu.meta["custom"]
    assert new.meta["custom"] is not relu.meta["custom"]
    assert [str(s) for s in rewrite.shape(new) or ()] == [str(relu.meta["val"].shape[0]), "1", "3"]
    assert rewrite.shape(relu.args[1:]) is None
    assert rewrite.same_type(relu, relu.args[0])
    assert not rewrite.same_type(relu, new)
    assert not rewrite.same_type(relu, 1)
    wide = rewrite.call(program, aten._to_copy.default, (relu,), program.outputs()[0], {"dtype": torch.float64})
    assert not rewrite.same_type(relu, wide)


def test_a_call_with_wrong_shapes_raises_at_once(program: Program) -> None:
    first = linears(program)[0]
    with pytest.raises(RuntimeError, match="same reduction dim"):
        rewrite.call(program, aten.mm.default, (first.args[1], first.args[0]), linears(program)[1])


def test_replace_rewires_every_user_and_the_output(program: Program) -> None:
    relu = next(iter(rewrite.nodes(program, aten.relu.default)))
    source = relu.args[0]
    assert isinstance(source, torch.fx.Node)
    rewrite.replace(program, relu, source)
    assert program.outputs() == (source,)
    assert "relu" not in str(program.retraced())


def test_only_user_and_layer(program: Program) -> None:
    first, second = linears(program)
    assert rewrite.only_user(first) is second
    assert rewrite.layer(second) == "b"
    x = first.args[0]
    assert isinstance(x, torch.fx.Node)
    rewrite.call(program, aten.relu.default, (x,), second)
    assert rewrite.only_user(x) is None
    second.meta.pop("nn_module_stack")
    assert rewrite.layer(second) == second.meta["custom"]["origin"]


def test_map_weights_changes_tied_weights_once(program: Program) -> None:
    seen: list[str] = []

    def double(name: str, value: Tensor) -> Tensor:
        seen.append(name)
        return value.double()

    rewrite.map_weights(program, double)
    assert sorted(seen) == ["a.bias", "a.weight", "b.bias"]
    assert {w.dtype for w in program.weights().values()} == {torch.float64}
