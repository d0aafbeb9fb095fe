"""Losses of distillation: what holds for all of them, and what each is blind to."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgecompile.errors import SpecError
from edgecompile.pass_manager import parse_one
from edgecompile.passes._terms import parse_losses
from edgecompile.passes.losses import LOSSES
from edgecompile.passes.losses._loss import Loss
from edgecompile.passes.losses.outputs import Kl, Labels
from edgecompile.spec import parse_calls

SHAPES = {
    "classes": [(6, 5)],
    "outputs": [(6, 5), (6, 3, 4)],
    "features": [(4, 6, 5, 5), (4, 3, 5, 5)],
    "attention": [(4, 2, 5, 5)],
}
TOKENS = {
    "classes": [(4, 6, 5)],
    "outputs": [(4, 6, 5)],
    "features": [(4, 6, 8), (4, 6, 8)],
    "attention": [(4, 2, 6, 6)],
}
NAMES = [name for name in LOSSES if name != "labels"]


def loss(text: str) -> Loss:
    one: Loss = parse_one(parse_calls(text)[0], LOSSES, "losses")
    return one


def values(one: Loss, seed: int, shapes: Any = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(s, generator=generator) for s in shapes[one.sees]]
    return [v.softmax(-1) for v in found] if one.sees == "attention" else found


def of(one: Loss, student: list[Tensor], teacher: list[Tensor], mask: Tensor | None = None) -> Tensor:
    return one.of(student, teacher, [mask] * len(student))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost_where_both_agree_and_something_where_they_do_not(name: str) -> None:
    one = loss(name)
    assert float(of(one, values(one, 0), values(one, 0))) == pytest.approx(0, abs=1e-5)
    assert float(of(one, values(one, 0), values(one, 1))) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_leads_to_the_teacher(name: str) -> None:
    one = loss(name)
    logits = name == "attention"  # probabilities are what is seen, and scores what is free
    student = [v.clone().requires_grad_() for v in values(one, 0)]
    teacher = values(one, 1)

    def found() -> Tensor:
        return of(one, [s.softmax(-1) if logits else s for s in student], teacher)

    before = float(found().detach())
    optimizer = torch.optim.Adam(student, 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        found().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(found().detach()) < 0.05 * before


@pytest.mark.parametrize("name", NAMES)
def test_what_is_masked_has_no_gradient_and_padding_changes_nothing(name: str) -> None:
    one = loss(name)
    mask = torch.ones(4, 6)
    mask[:, 4:] = 0
    teacher = values(one, 1, TOKENS)
    student = [v.clone().requires_grad_() for v in values(one, 0, TOKENS)]
    value = of(one, student, teacher, mask)
    value.backward()  # type: ignore[no-untyped-call]
    axis = 2 if one.sees == "attention" else 1
    grads = [s.grad for s in student if s.grad is not None]
    assert grads
    for grad in grads:
        assert float(grad.narrow(axis, 4, 2).abs().max()) == 0
    if one.sees == "attention":
        return  # keys that are padding have no probability in the first place
    short = [v.narrow(axis, 0, 4) for v in values(one, 0, TOKENS)], [v.narrow(axis, 0, 4) for v in teacher]
    assert float(value.detach()) == pytest.approx(float(of(one, *short, mask[:, :4])), rel=1e-4)


@given(st.integers(0, 1000), st.floats(0.2, 5))
@settings(max_examples=20, deadline=None)
def test_what_each_loss_is_blind_to(seed: int, by: float) -> None:
    blind = {
        "kl": lambda v: v + by,
        "cosine": lambda v: v * by,
        "energy": lambda v: v * by,
        "samples": lambda v: v.flip(1) * by,
        "positions": lambda v: v * by,
    }
    for name, change in blind.items():
        one = loss(name)
        student, teacher = values(one, seed), values(one, seed + 1)
        expected = float(of(one, student, teacher))
        assert float(of(one, [change(v) for v in student], teacher)) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    both = {"mse": 1, "l1": 1, "flow": 1, "outputs": 1}  # the scale of both together
    for name in both:
        one = loss(name)
        student, teacher = values(one, seed), values(one, seed + 1)
        expected = float(of(one, student, teacher))
        scaled = [v * by for v in student], [v * by for v in teacher]
        assert float(of(one, *scaled)) == pytest.approx(expected, rel=1e-3)


def test_a_shift_of_all_classes_is_seen_by_bce_and_not_by_kl() -> None:
    teacher = values(loss("kl"), 0)
    shifted = [v + 2 for v in teacher]
    assert float(of(loss("kl"), shifted, teacher)) < 1e-6
    assert float(of(loss("bce"), shifted, teacher)) > 0.1


def test_the_least_of_kl_are_the_teachers_probabilities_at_any_temperature() -> None:
    teacher = torch.tensor([[2.0, -1.0, 0.5]])
    for temperature in (1.0, 4.0):
        free = torch.zeros(1, 3, requires_grad=True)
        optimizer = torch.optim.Adam([free], 0.1)
        for _ in range(400):
            optimizer.zero_grad()
            of(Kl(temperature), [free], [teacher]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert torch.allclose(free.softmax(-1), teacher.softmax(-1), atol=1e-3)


def test_kl_by_its_definition() -> None:
    student, teacher = values(loss("kl"), 0)[0], values(loss("kl"), 1)[0]
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    wanted = float((p * (p / q).log()).sum(1).mean() * 9)
    assert float(of(Kl(3.0), [student], [teacher])) == pytest.approx(wanted, rel=1e-5)


def test_labels_are_the_cross_entropy() -> None:
    student, targets = values(loss("kl"), 0)[0], torch.tensor([0, 1, 2, 3, 4, 0])
    wanted = torch.nn.functional.cross_entropy(student, targets)
    assert float(Labels().of([student], [targets], [None])) == pytest.approx(float(wanted))


def test_losses_are_read_from_text() -> None:
    found = parse_losses("kl(temperature=4), mse(weight=0.5)")
    assert [one.name for one in found] == ["kl", "mse"]
    assert [one.weight for one in found] == [None, 0.5]
    assert dataclasses.asdict(found[0])["temperature"] == 4.0  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kll", "unknown word 'kll'.*did you mean.*kl"),
        ("", "losses: none is named; there are kl, bce"),
        ("kl(temperature=0)", "losses: kl: temperature=0: is above 0"),
        ("mse(weight=-1)", "losses: mse: weight=-1: a weight is above 0"),
        ("kl(temprature=2)", "losses: kl: unknown option 'temprature'.*temperature"),
    ],
)
def test_what_is_wrong_with_a_text_is_said_in_a_line(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_losses(text)
