"""Prices, the table they come from, and what they say where it is missing, damaged or of another machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgecompile.errors import InputError
from edgecompile.hostcost import constants, price, profile
from edgecompile.hostcost.cold import Cold
from edgecompile.hostcost.constants import Constants
from edgecompile.hostcost.cut import take_apart
from edgecompile.hostcost.plain import Plain
from edgecompile.hostcost.table import Table, default_folder, identity, load, load_file, path_for

KNOWN = Constants(2.0, 0.2, 0.25, 16, Cold(((2.0, 0.0), (16.0, 1.0)), {"product float": 30.0}), 0.0, 0.01, False)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder of the user."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return default_folder()


@pytest.fixture
def known(home: Path) -> Table:
    """A table of this machine that has its constants and no node."""
    table = load(home, 1)
    table.constants = KNOWN
    table.save()
    return table


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = Plain()
    out = graph.node("Flatten", [graph.conv(graph.conv("x", 3, 16, 3), 16, 48, 3)])
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.model({"x": (1, 3, 12, 12)}, [graph.product(out, 48 * 144, 10)]))
    return path


def test_rows_add_up_and_the_second_price_measures_nothing(known: Table, model: Path) -> None:
    first = price(model)
    assert first.ms == pytest.approx(first.run_ms + sum(row.ms for row in first.rows))
    assert 0 < first.low < first.ms < first.high
    assert {row.source for row in first.rows} == {"measured"}
    assert len(first.rows) == len(take_apart(model))
    assert sum(row.macs or 0 for row in first.rows) >= 144 * (3 * 16 + 16 * 48) * 9
    before = known.path.read_bytes()
    second = price(model)
    assert known.path.read_bytes() == before
    assert second.ms == pytest.approx(first.ms, rel=1e-3)
    assert second.notes == ()


def test_without_measuring_a_law_is_used_and_said(known: Table, model: Path) -> None:
    found = price(model, measure=False)
    assert "parametric" in {row.source for row in found.rows}
    assert any("by law, not measured" in note for note in found.notes)
    price(model)
    measured = price(model)
    assert found.high / found.low > measured.high / measured.low


def test_without_any_profile_it_says_so(home: Path, model: Path) -> None:
    found = price(model, measure=False)
    assert found.ms > 0
    assert any("no profile of this machine" in note for note in found.notes)
    assert not home.exists()


def test_widths_between_grid_points_are_interpolated(known: Table, tmp_path: Path) -> None:
    def product(wide_in: int, wide_out: int) -> Path:
        graph = Plain()
        path = tmp_path / f"{wide_in}x{wide_out}.onnx"
        path.write_bytes(graph.model({"x": (1, 50, wide_in)}, [graph.product("x", wide_in, wide_out)]))
        return path

    corners = [price(product(a, b)).ms for a in (64, 128) for b in (64, 128)]
    (row,) = price(product(96, 96), measure=False).rows
    assert row.source == "interpolated"
    assert min(corners) - KNOWN.run_us / 1000 <= row.ms <= max(corners)


def test_a_damaged_table_is_moved_aside_and_named(known: Table, model: Path) -> None:
    whole = known.path.read_bytes()
    for damage in (
        whole[: len(whole) // 2],
        b"",
        b"[]",
        b'{"format": 1}',
        whole.replace(b'"run_us":2.0', b'"run_us":NaN'),
    ):
        known.path.write_bytes(damage)
        found = price(model, measure=False)
        assert any("damaged, moved to" in note for note in found.notes)
        assert not known.path.exists()
        assert known.path.with_name(known.path.name + ".damaged").read_bytes() == damage


def test_a_table_of_other_versions_is_ignored_with_a_note(known: Table, model: Path) -> None:
    other = known.path.with_name(known.path.name.replace("ort-", "ort-0."))
    known.path.rename(other)
    assert any("ignored 1 profiles of other versions" in note for note in price(model, measure=False).notes)
    body = json.loads(other.read_bytes())
    body["identity"]["cpu"] = "another"
    other.write_text(json.dumps(body))
    found = price(model, measure=False, table=other)
    assert any("is of ONNX Runtime" in note and "another" in note for note in found.notes)
    assert json.loads(other.read_bytes()) == body


def test_threads_have_tables_of_their_own(home: Path) -> None:
    assert path_for(home, identity(1)) != path_for(home, identity(2))
    assert load(home, 3).constants is None


def test_a_given_table_must_exist(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match="no such table"):
        price(model, table=tmp_path / "absent.json")


def test_two_writers_keep_what_both_measured(known: Table, model: Path, tmp_path: Path) -> None:
    one, two = load_file(known.path, 1), load_file(known.path, 1)
    cuts = list({cut.key: cut for cut in take_apart(model)}.values())
    one.add(cuts[0], 1.0)
    two.add(cuts[1], 2.0)
    one.save()
    two.save()
    assert load_file(known.path, 1).times == {cuts[0].key: 1.0, cuts[1].key: 2.0}


def test_a_noisy_profile_widens_the_interval(known: Table, model: Path) -> None:
    price(model)
    calm = price(model)
    noisy = load(default_folder(), 1)
    noisy.constants = replace(KNOWN, spread=0.4)
    noisy.save()
    found = price(model)
    assert any("noisy" in note for note in found.notes)
    assert found.high / found.low > calm.high / calm.low


def test_an_interrupted_profile_goes_on_where_it_stopped(known: Table) -> None:
    def stop(done: int, total: int) -> None:
        assert done <= total
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(known.path.parent, progress=stop)
    kept = load_file(known.path, 1)
    assert len(kept.done) == 3
    assert kept.times
    profile(known.path.parent, seconds=0.5)
    more = load_file(known.path, 1)
    assert kept.times.items() <= more.times.items()
    assert len(more.done) > 3


@pytest.mark.slow
def test_constants_are_measured_when_there_are_none(home: Path, model: Path) -> None:
    found = price(model)
    assert any("measured the costs of a run now" in note for note in found.notes)
    made = load(home, 1).constants
    assert made is not None
    assert made.quick
    assert 0 < made.node_us < made.run_us
    assert {"product float", "vector int8", "activations"} <= set(made.cold.us_per_mb)
    shares = [share for _, share in made.cold.share]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1


def test_the_block_is_one_that_layouts_have() -> None:
    assert constants.block(1) in (1, 4, 8, 16)
