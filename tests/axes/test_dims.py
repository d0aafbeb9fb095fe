"""Terms of axes against brute force: every index is followed by itself through views, slices and concatenations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompile.axes.dims import Dim, concatenation, kept, product, regrouped, split, unify, units

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def chosen(dim: Dim, seed: int) -> dict[Dim, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Some units of every atom."""
    generator = np.random.default_rng(seed)
    found = {}
    for atom in dict.fromkeys(dim.atoms()):
        count = generator.integers(1, atom.size + 1)
        found[atom] = np.sort(generator.choice(atom.size, count, replace=False))
    return found


@given(SIZES, st.data())
def test_a_reshape_keeps_the_same_elements(sizes: list[int], data: st.DataObject) -> None:
    total = int(np.prod(sizes))
    factors = data.draw(st.permutations(sizes))
    cut = data.draw(st.integers(1, len(factors)))
    shape = [int(np.prod(factors[:cut])), *factors[cut:]]
    old = [Dim(s) for s in sizes]
    new = regrouped(old, shape, "test")
    atoms = [a for d in old for a in d.atoms()]
    assert all(atom.fixed or any(atom is b for d in new for b in d.atoms()) for atom in atoms)
    pick = {a: units for d in old for a, units in chosen(d, 7).items() if not a.fixed or a.size == 1}
    numbers = np.arange(total)
    before = numbers.reshape(sizes)[np.ix_(*(kept(d, pick) for d in old))].reshape(-1)
    after = numbers.reshape(shape)[np.ix_(*(kept(d, pick) for d in new))].reshape(-1)
    assert np.array_equal(before, after)


@given(SIZES, SIZES, st.integers(0, 1000))
def test_concatenations_of_products(first: list[int], second: list[int], seed: int) -> None:
    parts = [product([Dim(s) for s in sizes]) for sizes in (first, second)]
    dim = concatenation([*parts, parts[0]])
    pick = chosen(dim, seed)
    one, two = (kept(p, pick) for p in parts)
    wanted = np.concatenate([one, parts[0].size + two, parts[0].size + parts[1].size + one])
    assert np.array_equal(kept(dim, pick), wanted)


@given(SIZES, st.integers(0, 1000))
def test_the_units_of_an_index_are_those_that_keep_it(sizes: list[int], seed: int) -> None:
    dim = concatenation([product([Dim(s) for s in sizes]), Dim(3)])
    pick = chosen(dim, seed)
    alive = np.ones(dim.size, bool)
    for atom, left in pick.items():
        unit = units(dim, atom)
        alive &= (unit < 0) | np.isin(unit, left)
    assert np.array_equal(np.flatnonzero(alive), kept(dim, pick))


def test_two_readings_of_one_axis_are_split_until_they_agree() -> None:
    axis = Dim(64)
    heads, groups = (split(axis, sizes, "product", "") for sizes in ((4, 16), (8, 8)))
    assert heads is not None
    assert groups is not None
    assert [a.size for a in axis.atoms()] == [4, 2, 8]
    assert [a.size for a in heads[1].atoms()] == [2, 8]


def test_what_does_not_fit_is_fixed_with_the_reason() -> None:
    axis = Dim(6)
    split(axis, (2, 3), "product", "first")
    split(axis, (3, 2), "product", "second")
    assert {a.fixed for a in axis.atoms()} == {"second"}


def test_three_parts_and_a_factor_of_three() -> None:
    axis = Dim(24)
    parts = split(axis, (8, 8, 8), "sum", "")
    views = split(axis, (3, 2, 4), "product", "")
    assert parts is not None
    assert views is not None
    heads = views[1].found()
    assert all([a.size for a in p.atoms()] == [2, 4] for p in parts)
    assert np.array_equal(kept(axis, {heads: np.array([1])}), np.r_[4:8, 12:16, 20:24])


def test_sizes_that_differ_are_our_mistake() -> None:
    with pytest.raises(ValueError, match="axes of 3 and 4 cannot be the same"):
        unify(Dim(3), Dim(4))
