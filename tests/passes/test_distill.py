"""Distillation: it heals, goes on where it was killed, keeps what did best, and refuses what it lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.axes import couple, shrink
from edgecompile.data import Arrays
from edgecompile.errors import PassError, SpecError
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import EXACT, PASSES, _checkpoint, _norms, _training
from edgecompile.passes._samples import augmentation, gather
from edgecompile.passes._taps import attentions, features, survivors, tapped
from edgecompile.passes.distill import Distill
from edgecompile.passes.prune import Prune
from edgecompile.program import Program


class Small(nn.Module):
    """A residual net with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.one, self.norm1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.two, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.two(F.relu(self.norm1(self.one(x))))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Blocks(nn.Module):
    """Two transformer blocks over tokens of which a mask says which count."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            shape = (x.shape[0], -1, 4, 4)
            y = block.norm1(x)
            q, k, v = F.linear(y, block.self_attn.in_proj_weight, block.self_attn.in_proj_bias).chunk(3, -1)
            q, k, v = (t.reshape(shape).transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, attention_mask[:, None, None, :] > 0)
            x = x + block.self_attn.out_proj(y.transpose(1, 2).flatten(2))
            x = x + block.linear2(F.gelu(block.linear1(block.norm2(x))))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


def pictures(count: int = 96, classes: int = 4) -> Arrays:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, classes, (count,), generator=generator)
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.5
    images += torch.eye(4)[targets][:, None, :, None].repeat(1, 1, 2, 8)
    return Arrays("stripes", (images,), targets)


@pytest.fixture(scope="module")
def teacher() -> Program:
    """Trained for a moment, so that its batch norms remember something."""
    torch.manual_seed(0)
    model = Small()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    data = pictures()
    assert data.targets is not None
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(data.inputs[0]), data.targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Program.capture(model.eval(), (torch.randn(2, 1, 8, 8),))


def exact(program: Program) -> Program:
    return PassManager(parse(", ".join(EXACT), PASSES)).run(program, Context(program))[0]


def context(teacher: Program, **given: Any) -> Context:
    return Context(teacher, **{"calib": pictures(), "train": pictures(), **given})


def pruned(teacher: Program) -> Program:
    return Prune(macs=0.4, method="random", block=4).run(exact(teacher), context(teacher))


def calls(program: Program) -> list[Any]:
    return [n.target for n in program.graph.graph.nodes if n.op == "call_function"]


def distance(a: Program, b: Program) -> float:
    (x,) = pictures().inputs
    with torch.no_grad():
        return float((a(x)[0] - b(x)[0]).pow(2).mean())


def test_what_was_pruned_is_healed_and_has_the_same_layers(teacher: Program) -> None:
    student = pruned(teacher)
    ctx = context(teacher)
    healed = Distill(losses="outputs", steps=120, batch=16, precision="float32").run(student.clone(), ctx).retraced()
    assert distance(healed, teacher) < 0.6 * distance(student, teacher)
    assert ctx.stats["loss_after"] < 0.6 * ctx.stats["loss"]
    assert ctx.stats["batch_norms"] == 3
    assert calls(healed) == calls(student)
    assert {k: v.shape for k, v in healed.weights().items()} == {k: v.shape for k, v in student.weights().items()}
    assert healed.interface == student.interface
    assert not any(w.requires_grad and w.grad is not None for w in healed.weights().values())


@pytest.mark.parametrize("make", [exact, lambda program: program])
def test_without_steps_the_outputs_are_those_of_before(teacher: Program, make: Callable[[Program], Program]) -> None:
    student = make(teacher)
    same = Distill(losses="kl", steps=0, batch=16).run(student.clone(), context(teacher))
    assert distance(same, student) < 1e-9


def test_batch_norms_put_in_and_folded_again_change_nothing(teacher: Program) -> None:
    student = exact(teacher).clone()
    before = student.clone()
    layers = _norms.candidates(student, teacher)
    assert len(layers) == 3
    (x,) = pictures().inputs
    inserted = _norms.insert(student, layers, [(x[:32],), (x[32:64],)])
    assert distance(student, before) < 1e-9
    outputs = tapped(student, [one.layer for one in inserted])(x)[1]
    for value in outputs:
        assert torch.allclose(value.transpose(0, 1).flatten(1).std(1), torch.ones(16), atol=0.3)
    _norms.fold(student, inserted)
    assert distance(student, before) < 1e-9
    assert calls(student.retraced()) == calls(before)


def test_a_network_with_other_norms_gets_no_batch_norms() -> None:
    class Layered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.LayerNorm([8, 6, 6]), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]

    program = Program.capture(Layered(), (torch.randn(2, 1, 8, 8),))
    assert _norms.candidates(program, program) == []
    plain = Program.capture(
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), (torch.randn(2, 1, 8, 8),)
    )
    assert [n.name for n in _norms.candidates(plain, plain)] == ["conv2d"]  # the other one is the output


class Killed(Exception):
    """In place of kill -9: nothing is put in order on the way out."""


@pytest.mark.parametrize(
    ("augment", "options"), [("flip,shift=2", {}), ("", {}), ("", {"ema": 0.98, "layerdrop": 0.3})]
)
def test_a_run_that_is_killed_ends_with_the_same_weights(
    teacher: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(_checkpoint, "KEEP_S", 0.0)
    one = Distill(steps=90, batch=16, augment=augment, **options)
    whole = one.run(pruned(teacher), context(teacher))

    def kill(at: int) -> Callable[[str, int, int], None]:
        def tell(what: str, done: int, total: int) -> None:
            if done == at:
                raise Killed

        return tell

    for at in (37, 61, 62):
        with pytest.raises(Killed):
            one.run(pruned(teacher), context(teacher, work=tmp_path, tell=kill(at)))
    assert (tmp_path / "checkpoint.pt").is_file()
    assert (tmp_path / "answers.safetensors").is_file() == (not augment)
    again = one.run(pruned(teacher), context(teacher, work=tmp_path))
    for name, value in again.weights().items():
        assert torch.equal(value, whole.weights()[name]), name


def test_a_teacher_that_is_asked_once_teaches_the_same(
    teacher: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Distill(steps=30, batch=16, losses="kl, labels(weight=0.5)")
    told: list[str] = []
    once = one.run(pruned(teacher), context(teacher, work=tmp_path, tell=lambda what, done, total: told.append(what)))
    assert told.count("asking the teacher") == 6  # 92 samples, the last batch whole
    (tmp_path / "answers.safetensors").write_bytes(b"torn")
    again = one.run(pruned(teacher), context(teacher, work=tmp_path))
    monkeypatch.setattr(_training, "pays", lambda seen, samples: False)
    always = one.run(pruned(teacher), context(teacher))
    for name, value in once.weights().items():
        assert torch.equal(value, again.weights()[name])
        torch.testing.assert_close(value, always.weights()[name], rtol=1e-3, atol=1e-4)
    few = Distill(steps=5, batch=16, losses="kl")
    told.clear()
    few.run(pruned(teacher), context(teacher, tell=lambda what, done, total: told.append(what)))
    assert "asking the teacher" not in told


def test_a_damaged_checkpoint_is_begun_anew(teacher: Program, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    one = Distill(steps=5, batch=16)
    ctx = context(teacher, work=tmp_path)
    found = one.run(pruned(teacher), ctx)
    assert any(n.startswith("a checkpoint could not be read (") for n in ctx.notes)
    whole = one.run(pruned(teacher), context(teacher))
    assert all(torch.equal(v, whole.weights()[k]) for k, v in found.weights().items())


_CALLS = [0]


def explodes(student: Any, teacher: Any, targets: Any) -> Tensor:
    """Mean squares, once not a number."""
    _CALLS[0] += 1
    value: Tensor = (student[0] - teacher[0]).pow(2).mean()
    return value * float("nan") if _CALLS[0] == 60 else value


def test_a_loss_that_is_not_finite_goes_back_and_says_where(teacher: Program) -> None:
    ctx = context(teacher)
    _CALLS[0] = 0
    healed = Distill(losses=f"{__file__}:explodes", steps=60, batch=16).run(pruned(teacher), ctx)
    (note,) = [n for n in ctx.notes if "not finite" in n]
    assert note.startswith("the loss was not finite at step ")
    assert note.endswith("at half the rate")
    assert all(torch.isfinite(w).all() for w in healed.weights().values() if w.is_floating_point())
    assert ctx.stats["steps"] == 60


def test_weights_that_training_made_worse_are_not_kept(teacher: Program) -> None:
    student = exact(teacher)
    ctx = context(teacher)
    same = Distill(losses="kl", steps=20, batch=16, rate=100.0).run(student.clone(), ctx)
    assert distance(same, student) < 1e-9
    assert "training made nothing better on the samples held out: the weights are those of before" in ctx.notes


def test_batch_norms_that_nothing_folds_are_trained_too() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.next, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            x = x + self.next(F.relu(self.norm(x)))
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    program = Program.capture(Before().eval(), (torch.randn(2, 1, 8, 8),))
    student = exact(program).clone()
    before = {k: v.clone() for k, v in student.weights().items()}
    for name, value in student.weights().items():
        if name.endswith("conv.weight"):
            value.data.mul_(0.3)
    with pytest.raises(PassError, match="distill: labels go from 0 to 3, and the model has classes 0 to 2"):
        Distill(steps=60, batch=16).run(student.clone(), context(program))
    made = Distill(steps=60, batch=16).run(student, context(program, train=pictures(classes=3)))
    after = made.weights()
    assert not torch.equal(after["norm.running_mean"], before["norm.running_mean"])
    assert all(n.args[5] is False for n in made.graph.graph.nodes if "batch_norm" in str(n.target))


def test_the_teachers_channels_are_picked_where_the_student_was_cut(teacher: Program) -> None:
    group = next(g for g in couple(teacher).groups if g.name.startswith("one.weight"))
    keep = [1, 2, 5, 8, 13]
    student = shrink(teacher, {group.name: keep})
    pairs = {p.student.name: p for p in _all_pairs(student, teacher)}
    assert pairs
    assert next(iter(survivors(student, couple(teacher)).values())).tolist() == keep
    (x,) = pictures(8).inputs
    mine = tapped(student, [p.student for p in pairs.values()])(x)[1]
    theirs = tapped(teacher, [p.teacher for p in pairs.values()])(x)[1]
    for (name, pair), a, b in zip(pairs.items(), mine, theirs, strict=True):
        if name == "relu_1":  # behind the layer that was cut
            assert pair.kept[0][1].tolist() == keep
            assert torch.allclose(a, pair.of(b), atol=1e-5)
        assert a.shape == pair.of(b).shape


def _all_pairs(student: Program, teacher: Program) -> list[Any]:
    from edgecompile.passes import _taps

    return _taps._pairs(student, teacher, _taps.ACTIVATIONS)


@pytest.fixture(scope="module")
def encoder() -> Program:
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (2, 7))
    return Program.capture(Blocks().eval(), {"ids": ids, "attention_mask": torch.ones(2, 7, dtype=torch.int64)})


def texts(count: int = 48) -> Arrays:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 50, (count, 7), generator=generator)
    mask = (torch.arange(7)[None] < torch.randint(3, 8, (count, 1), generator=generator)).long()
    return Arrays("texts", (ids, mask))


def test_attention_and_tokens_are_compared_where_they_count(encoder: Program) -> None:
    heads = next(g for g in couple(encoder).groups if g.size == 4 and "in_proj" in g.name)
    student = shrink(encoder, {heads.name: [0, 3]})
    (first, *_) = attentions(student, encoder, 4)
    assert [(axis, index.tolist()) for axis, index in first.kept] == [(1, [0, 3])]
    assert len(features(student, encoder, 3)) == 3
    inputs = texts(6).inputs
    a = tapped(student, [first.student])(*inputs)[1][0]
    b = tapped(encoder, [first.teacher])(*inputs)[1][0]
    assert torch.allclose(a, first.of(b), atol=1e-5)
    assert float((a * (inputs[1][:, None, None, :] == 0)).detach().abs().max()) == 0
    ctx = Context(encoder, train=texts())
    losses = "kl, mse, cosine, samples, positions, flow, attention, energy, l1, outputs, bce"
    made = Distill(losses=losses, steps=30, batch=16, rate=1e-3).run(student.clone(), ctx)
    assert ctx.stats["loss_after"] < ctx.stats["loss"]
    assert ctx.stats["batch_norms"] == 0
    assert made.interface == encoder.interface


def test_time_is_made_a_number_of_steps_once(teacher: Program) -> None:
    asked: list[tuple[str, str]] = []

    def decide(name: str, find: Callable[[], str]) -> str:
        asked.append((name, find()))
        return "3"

    ctx = context(teacher, decide=decide)
    student = pruned(teacher)
    one = Distill(time="20s", batch=16).settled(student, ctx)
    assert one == dataclasses.replace(Distill(batch=16), steps=3)
    assert asked[0][0].startswith("steps:20s:")
    assert int(asked[0][1]) > 1
    assert Distill(time="20s", batch=16).run(student.clone(), ctx) is not None
    assert ctx.stats["steps"] == 3


@pytest.mark.parametrize(
    ("options", "data", "says"),
    [
        ({}, {"train": None}, "distill: needs training data: give --train"),
        ({"losses": "labels"}, {"train": Arrays("x", pictures().inputs)}, "labels: needs one class a sample"),
        ({"losses": "attention"}, {}, "attention: teacher and student have no attention in common"),
        ({"augment": "flip"}, {"train": Arrays("x", (torch.randn(9, 8),))}, ""),
        ({}, {"train": pictures(1)}, "distill: stripes has 1 samples, of which some are held out"),
    ],
)
def test_what_is_missing_is_said(teacher: Program, options: Any, data: Any, says: str) -> None:
    if not says:
        with pytest.raises(PassError, match="augment: pictures are"):
            _training.augmented(lambda p, g: p, list(data["train"].inputs), torch.Generator())
        return
    with pytest.raises(PassError, match=says):
        Distill(**options).run(exact(teacher).clone(), context(teacher, **data))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 3, "time": "1m"}, "give one of epochs, steps and time"),
        ({"time": "soon"}, "time 'soon': expected a time such as 20m"),
        ({"augment": "flp"}, "augment='flp': expected flip, shift=4 or module:function; did you mean flip"),
        ({"batch": 1}, "batch=1: 2 is the least"),
        ({"rate": 0.0}, "rate=0: a learning rate is above 0"),
        ({"losses": "mes"}, "losses: unknown word 'mes'"),
    ],
)
def test_options_that_make_no_sense(options: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        Distill(**options)


def test_pictures_are_mirrored_and_shifted() -> None:
    apply = augmentation("flip, shift=2")
    assert apply is not None
    x = torch.arange(64.0).view(1, 1, 8, 8).repeat(200, 1, 1, 1)
    made = apply(x, torch.Generator().manual_seed(0))
    assert made.shape == x.shape
    assert set(made.flatten().tolist()) <= set(x.flatten().tolist())
    corners = {tuple(p.flatten()[[0, -1]].tolist()) for p in made}
    assert len(corners) > 20
    assert torch.equal(made, apply(x, torch.Generator().manual_seed(0)))
    assert augmentation("") is None


def test_samples_that_memory_should_not_hold_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecompile.passes import _samples

    data = pictures(90)
    monkeypatch.setattr(_samples, "_MEMORY", 3000)
    found = gather(data, tmp_path)
    assert (tmp_path / "input0.bin").stat().st_size == data.inputs[0].numel() * 4
    assert torch.equal(found.inputs[0], data.inputs[0])
    assert torch.equal(found.at(torch.tensor([3, 70]))[0][0], data.inputs[0][[3, 70]])
    assert found.targets is not None
    assert len(found.part(10, 20)) == 10
