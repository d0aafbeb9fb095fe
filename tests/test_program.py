"""Program: capture, batch, retrace, text form, tied weights, provenance, and the saved form."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgecompile import program_file
from edgecompile.axes import couple, cut
from edgecompile.errors import InputError
from edgecompile.program import Program
from edgecompile.rewrite import add_weight, aten, nodes, set_weight, weight
from tests.axes.zoo import captured

GOLDEN = """\
program(x: float32[batch, 3, 8, 8])
  %conv2d = conv2d(%x, conv.weight: float32[4, 3, 3, 3], conv.bias: float32[4], [1, 1], [1, 1]) : \
float32[batch, 4, 8, 8]
  %relu = relu(%conv2d) : float32[batch, 4, 8, 8]
  %mean = mean.dim(%relu, [2, 3]) : float32[batch, 4]
  %linear = linear(%mean, head.weight: float32[5, 4], head.bias: float32[5]) : float32[batch, 5]
  return output=%linear"""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu_(self.conv(x)).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(ids) * mask.unsqueeze(-1)
        return {"logits": self.out(hidden), "hidden": hidden}


@pytest.fixture
def small() -> Program:
    torch.manual_seed(0)
    return Program.capture(Small(), (torch.randn(2, 3, 8, 8),))


def tied() -> Program:
    torch.manual_seed(0)
    inputs = {"ids": torch.randint(0, 11, (2, 4)), "mask": torch.ones(2, 4)}
    return Program.capture(Tied(), inputs)


def test_text_form_is_stable(small: Program) -> None:
    torch.manual_seed(0)
    again = Program.capture(Small(), (torch.randn(2, 3, 8, 8),))
    assert str(small) == GOLDEN == str(again)


def test_the_batch_is_dynamic_down_to_one(small: Program) -> None:
    model = Small().eval()
    small_of = Program.capture(model, (torch.randn(2, 3, 8, 8),))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        assert torch.allclose(small_of(x)[0], model(x), atol=1e-6)
    assert small.batch is None


def test_in_place_operators_are_gone(small: Program) -> None:
    assert "relu_" not in str(small)


def test_names_of_inputs_and_outputs() -> None:
    program = tied()
    assert program.interface == (
        "ids: int64[batch, 4]",
        "mask: float32[batch, 4]",
        "-> logits: float32[batch, 4, 11]",
        "-> hidden: float32[batch, 4, 6]",
    )


def test_retrace_is_idempotent(small: Program) -> None:
    for program in (small, tied()):
        once = program.retraced()
        twice = once.retraced()
        assert str(once) == str(twice)
        assert once.interface == program.interface
        assert all(torch.equal(a, b) for a, b in zip(once(*once.inputs), program(*program.inputs), strict=True))


def test_retrace_drops_dead_code_and_weights(small: Program) -> None:
    conv = next(nodes(small, aten.conv2d.default))
    with small.graph.graph.inserting_after(conv):
        small.graph.graph.call_function(aten.neg.default, (conv,))
    add_weight(small, "conv.unread", torch.ones(3), conv)
    small.graph.graph.eliminate_dead_code()
    program = small.retraced()
    assert str(program) == GOLDEN
    assert not any("unread" in name for name, _ in program.graph.named_buffers())


def test_retrace_names_the_node_that_does_not_hold_together(small: Program) -> None:
    head = next(nodes(small, aten.linear.default))
    set_weight(small, head.args[1], torch.randn(5, 3))
    with pytest.raises(Exception, match="linear"):
        small.retraced()


def test_tied_weights_stay_tied_when_set() -> None:
    program = tied()
    assert list(program.weights()) == ["embed.weight"]
    embedding = next(nodes(program, aten.embedding.default))
    set_weight(program, embedding.args[0], torch.full((11, 6), 2.0))
    program = program.retraced()
    logits, hidden = program(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4))
    assert torch.equal(hidden, torch.full((1, 4, 6), 2.0))
    assert torch.equal(logits, torch.full((1, 4, 11), 24.0))


def test_a_clone_shares_nothing(small: Program) -> None:
    clone = small.clone()
    conv = next(nodes(clone, aten.conv2d.default))
    before = weight(small, next(nodes(small, aten.conv2d.default)).args[1]).clone()
    weight(clone, conv.args[1]).data.zero_()
    assert torch.equal(weight(small, next(nodes(small, aten.conv2d.default)).args[1]), before)


def test_specialised_to_a_batch(small: Program) -> None:
    fixed = small.specialised(3)
    assert fixed.batch == 3
    assert fixed.interface[0] == "x: float32[3, 3, 8, 8]"
    assert small.batch is None
    with pytest.raises(InputError, match="fixed at 3, not 1"):
        fixed.specialised(1)


def test_a_batch_that_cannot_be_dynamic_is_static_with_a_note() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(6, 2)

    program = Program.capture(Fixed(), (torch.randn(3, 4),))
    assert program.batch == 3
    assert program.notes[0].startswith("static batch: the model does not export with a dynamic one")


def test_provenance_survives_retrace_and_saving(small: Program, tmp_path: Path) -> None:
    small = dataclasses.replace(small, kept={"conv.weight": {0: (0, 2, 3)}})
    program_file.save(small, tmp_path)
    for program in (small.retraced(), program_file.load(tmp_path)):
        origins = [n.meta["custom"]["origin"] for n in program.graph.graph.nodes if n.op == "call_function"]
        assert origins == ["conv2d", "relu_", "mean", "linear"] or origins == ["conv2d", "relu", "mean", "linear"]
        assert program.kept == {"conv.weight": {0: (0, 2, 3)}}
        assert set(program.origin) == {"conv.weight", "conv.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("make", [tied, lambda: Program.capture(Small(), (torch.randn(2, 3, 8, 8),))])
def test_saved_form_round_trip(make: object, tmp_path: Path) -> None:
    program = make().retraced()  # type: ignore[operator]
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    program_file.save(program, first)
    loaded = program_file.load(first)
    program_file.save(loaded, second)
    assert str(loaded) == str(program)
    assert all(torch.equal(a, b) for a, b in zip(loaded(*program.inputs), program(*program.inputs), strict=True))
    assert {f.name: f.read_bytes() for f in first.iterdir()} == {f.name: f.read_bytes() for f in second.iterdir()}
    assert not any(f.read_bytes()[:4] == b"PK\x03\x04" or b"/torch/" in f.read_bytes() for f in first.iterdir())


def test_saved_form_keeps_training(small: Program, tmp_path: Path) -> None:
    program_file.save(small, tmp_path)
    loaded = program_file.load(tmp_path)
    loaded(torch.randn(4, 3, 8, 8))[0].square().sum().backward()
    assert all(p.grad is not None for p in loaded.graph.parameters())


def test_damaged_saved_forms_are_one_line(small: Program, tmp_path: Path) -> None:
    program_file.save(small, tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(InputError, match="format 99 of a saved program is not known"):
        program_file.load(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="not a saved program or damaged"):
        program_file.load(tmp_path)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


class Listing(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x, 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(), "its control flow depends on the data"),
        (Writing(), "the model writes to count while it runs: return the new value as an output instead"),
        (Listing(), "is a int: only tensors can be compiled"),
        (nn.Linear(3, 3), "the model fails on its example inputs"),
    ],
)
def test_models_that_cannot_be_captured(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Program.capture(model, (torch.randn(2, 4),))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_no_inputs() -> None:
    with pytest.raises(InputError, match="the model has no example inputs"):
        Program.capture(Small(), ())


@pytest.mark.parametrize("name", ["resnet", "bert", "swin", "wav2vec2", "gpt2"])
def test_refreshed_is_what_an_export_gives(name: str) -> None:
    made = captured(name)
    coupling = couple(made)
    keep = {g.name: list(range(max(1, g.size // 2))) for g in coupling.groups[::2]}
    smaller, _ = cut(made, keep, coupling)
    wanted, found = smaller.clone().retraced(), smaller.clone().refreshed()
    assert found.interface == wanted.interface
    assert found.kept == wanted.kept
    assert _shapes(found) == _shapes(wanted)
    for one, two in zip(found(*made.inputs), wanted(*made.inputs), strict=True):
        assert torch.equal(one, two)
    fixed, exported = found.specialised(1), wanted.specialised(1).retraced()
    assert _shapes(fixed) == _shapes(exported)
    assert fixed.interface == exported.interface
    assert made.batch is None
    assert made.interface == captured(name).interface


def _shapes(program: Program) -> list[tuple[str, str]]:
    """Every computed value's type in order, dynamic sizes by their names; views and reshapes are one."""
    from edgecompile.program.text import type_text

    symbols = program.symbols()
    found = []
    for node in program.graph.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            found.append((str(node.target).replace("view", "reshape"), type_text(node.meta["val"], symbols)))
    return found


def test_a_shape_that_hangs_on_the_data_is_left_to_the_export() -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0].sum() + x.mean()

    made = Program.capture(Positive(), (torch.randn(2, 3),))
    fixed = made.specialised(1)
    x = torch.randn(1, 3)
    assert torch.equal(fixed(x)[0], Positive()(x))
