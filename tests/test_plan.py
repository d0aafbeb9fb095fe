"""Choosing under a budget: against brute force over every choice."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompile import plan
from edgecompile.errors import PassError
from edgecompile.plan import Item, Part, Problem, fastest, solve


def problem(seed: int, items: int, levels: int, parts: int) -> Problem:
    """Widths, parts between two or three of them, and times that are a staircase."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(items):
        lost = np.sort(rng.random(int(rng.integers(2, levels + 1))))
        made.append(Item(f"item{i}", (0.0, *map(float, lost[1:]))))
    tables = []
    for k in range(parts):
        chosen = tuple(int(i) for i in rng.choice(items, min(items, int(rng.integers(1, 4))), replace=False))
        shape = tuple(len(made[i].lost) for i in chosen)
        times: Any = rng.random() * np.ones(shape)
        for axis, size in enumerate(shape):
            steps = np.ceil(np.linspace(4, 1, size) * rng.random() + 0.2)
            times = times * steps.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        tables.append(Part(f"part{k}", chosen, times))
    return Problem(tuple(made), tuple(tables))


@given(st.integers(0, 10_000), st.floats(0.2, 1.1))
@settings(max_examples=60, deadline=None)
def test_nothing_within_the_budget_loses_less(seed: int, share: float) -> None:
    given_ = problem(seed, items=4, levels=4, parts=5)
    whole = given_.time((0,) * 4)
    budget = share * whole
    every = list(itertools.product(*(range(len(i.lost)) for i in given_.items)))
    fitting = [c for c in every if given_.time(c) <= budget]
    if not fitting:
        least = min(map(given_.time, every))
        with pytest.raises(PassError, match=f"is out of reach: the fastest choice takes {least:.4g}"):
            solve(given_, budget)
        return
    found = solve(given_, budget)
    assert given_.time(found) <= budget
    assert given_.lost(found) <= 1.006 * min(map(given_.lost, fitting)) + 1e-3


def test_what_highs_leaves_open_is_still_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_milp", lambda problem, budget: None)
    ratios = []
    for seed in range(40):
        given_ = problem(seed, items=4, levels=4, parts=5)
        every = list(itertools.product(*(range(len(i.lost)) for i in given_.items)))
        quickest = given_.time(fastest(given_))
        assert quickest <= 1.3 * min(map(given_.time, every))
        budget = 1.2 * quickest
        found = solve(given_, budget)
        assert given_.time(found) <= budget
        ratios.append(given_.lost(found) / min(given_.lost(c) for c in every if given_.time(c) <= budget))
        with pytest.raises(PassError, match="is out of reach"):
            solve(given_, 0.99 * quickest)
    assert np.median(ratios) < 1.1


def test_a_branch_that_is_gone_takes_no_time_whatever_its_widths() -> None:
    width, branch = Item("width", (0.0, 0.4)), Item("branch", (0.0, 0.5))
    times = np.array([[4.0, 0.0], [3.5, 0.0]])
    given_ = Problem((width, branch), (Part("inside", (0, 1), times), Part("rest", (), np.array(1.0))))
    assert solve(given_, 2.0) == (0, 1)
    assert solve(given_, 4.6) == (1, 0)
    assert solve(given_, 5.0) == (0, 0)


def test_times_that_make_no_sense_are_our_own_bug() -> None:
    with pytest.raises(ValueError, match="expected \\(2,\\)"):
        Problem((Item("a", (0.0, 1.0)),), (Part("p", (0,), np.ones(3)),))
    with pytest.raises(ValueError, match="none below 0"):
        Problem((Item("a", (0.0, 1.0)),), (Part("p", (0,), np.array([1.0, -1.0])),))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [50, 200])
def test_a_chain_of_many_groups_is_solved(groups: int) -> None:
    rng = np.random.default_rng(0)
    widths = np.array([1.0, 0.75, 0.5, 0.375, 0.25, 0.125])
    items = tuple(Item(f"g{i}", tuple(float(v) for v in rng.random() * (1 - widths) ** 2)) for i in range(groups))
    table = np.ceil(8 * widths)[:, None] * np.ceil(8 * widths)[None]
    parts = tuple(Part(f"p{i}", (i, i + 1), table * rng.random()) for i in range(groups - 1))
    given_ = Problem(items, parts)
    budget = 0.4 * given_.time((0,) * groups)
    found = solve(given_, budget)
    assert 0.95 * budget < given_.time(found) <= budget
