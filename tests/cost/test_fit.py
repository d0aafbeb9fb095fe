"""The fit gives known parameters back, shrugs off a wild row, and the shipped tables are what the commands print."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompile.cost import tables, validation
from edgecompile.cost.fit import PARENTS, calibration, fit, fit_names, point, predicted_ms, profile, solve
from edgecompile.cost.laws import PARAMETERS
from edgecompile.cost.predict import SHARED, Fitted, fits
from edgecompile.cost.reference import Row, rows, works
from edgecompile.cost.validate import Line, _spread, as_rows, grouped, left_out, pooled_coverage, validate
from edgecompile.errors import SpecError
from tests import warm

GOALS = {
    # fit: the most that the median and the 90th percentile of the errors may be, the least rank correlation
    "a100": (0.15, 0.40, 0.95),
    "galaxy-s24": (0.15, 0.40, 0.92),
    "iphone-14-pro": (0.15, 0.40, 0.92),
    "agx-orin": (0.20, None, 0.95),
}


def shipped() -> list[Line]:
    return [
        Line(**{k: float("nan") if v is None else v for k, v in row.items()}) for row in validation.table()["lines"]
    ]


def leading(name: str) -> Line:
    """The line of all dtypes of a fit."""
    of = {line.dtype: line for line in shipped() if line.fit == name}
    return of.get("all") or next(iter(of.values()))


def test_the_shipped_table_holds_the_goals() -> None:
    for name, (median, p90, rank) in GOALS.items():
        line = leading(name)
        assert line.median <= median, line
        assert p90 is None or line.p90 <= p90, line
        assert line.spearman >= rank, line
        assert line.median < min(line.macs_median, line.bytes_median), line
    assert 0.85 <= pooled_coverage(shipped()) <= 0.95


def test_the_shipped_table_is_of_all_calibration_rows() -> None:
    for name in fit_names():
        assert leading(name).n == len(calibration(fit=name))
    assert validation.table()["devices"] == sorted({r.device for r in calibration()})
    assert set(fits()) == set(fit_names())


def test_the_shipped_tables_are_plain_json() -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for name in ("validation.json", "fits.json"):
        json.loads((tables.folder() / name).read_text(), parse_constant=refuse)


def cli(folder: Path, *arguments: str) -> Any:
    ended = warm.cli(folder, "bench", *arguments).wait()
    assert (ended.code, ended.err) == (0, "")
    return json.loads(ended.out)


def near(found: Any, wanted: Any) -> None:
    """Equal, figures within what another processor's rounding may change."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert sorted(found) == sorted(wanted)
        for key in wanted:
            near(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, two in zip(found, wanted, strict=True):
            near(one, two)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=5e-3, abs=5e-4)
    else:
        assert found == wanted


@pytest.mark.parametrize("device", ["galaxy-s24", "iphone-14-pro"])
def test_bench_fit_prints_what_is_shipped(tmp_path: Path, device: str) -> None:
    body = cli(tmp_path, "fit", "--json", "--device", device)
    near(body["fits"], {device: fits()[device]})


@pytest.mark.parametrize("device", ["galaxy-s24"])
@pytest.mark.slow
def test_bench_validate_prints_what_is_shipped(tmp_path: Path, device: str) -> None:
    lines = cli(tmp_path, "validate", "--json", "--device", device)
    near(lines, [line for line in validation.table()["lines"] if line["fit"] == device])


def test_bench_names_the_fits_where_a_device_has_none(tmp_path: Path) -> None:
    for verb, device in (("fit", "rpi5"), ("validate", "rpi5")):
        ended = warm.cli(tmp_path, "bench", verb, "--device", device).wait()
        assert ended.code == 2
        assert ended.err.splitlines() == [
            "edgecompile: --device rpi5: no published latency to fit; fits are a100, galaxy-s24, iphone-12, "
            "iphone-14-pro, agx-orin"
        ]


@pytest.mark.slow
def test_the_whole_table_is_reproduced() -> None:
    found: dict[str, Fitted] = {}
    for name in fit_names():
        found[name] = fit(calibration(fit=name), found.get(PARENTS.get(name, "")))
    near(json.loads(json.dumps(found)), {name: fits()[name] for name in fit_names()})
    near(as_rows(validate()), validation.table()["lines"])


def synthetic(name: str, parameters: Fitted) -> list[Row]:
    """The calibration rows of a fit with the latencies that these parameters give."""
    return [replace(r, latency_ms=predicted_ms(r, parameters)) for r in calibration(fit=name)]


@pytest.mark.parametrize("name", ["a100", "galaxy-s24", "iphone-14-pro", "iphone-12"])
@pytest.mark.slow
def test_known_parameters_come_back(name: str) -> None:
    law = profile(calibration(fit=name)[0].device).law
    known = {k: v * f for (k, v), f in zip(PARAMETERS[law].items(), (0.8, 1.25, 1.15), strict=True)}
    data = synthetic(name, {SHARED: known})
    # from anywhere near, nothing but the rows decides
    free = solve([point(r) for r in data], PARAMETERS[law], deviation=50.0)
    assert free == pytest.approx(known, rel=0.02)
    # what shrinking towards where the law starts leaves of it: the latencies, and whatever the rows tell much about
    shrunk = fit(data)
    assert max(abs(predicted_ms(r, shrunk) / r.latency_ms - 1) for r in data) < 0.03
    for found in shrunk.values():
        assert found == pytest.approx(known, rel=0.25)


@pytest.mark.parametrize("name", ["a100", "galaxy-s24", "iphone-12"])
@pytest.mark.slow
def test_one_wild_row_moves_little(name: str) -> None:
    data = calibration(fit=name)
    before = fit(data)
    for factor in (0.05, 20.0):
        wild = [replace(data[0], latency_ms=data[0].latency_ms * factor), *data[1:]]
        after = fit(wild)
        moved = [abs(predicted_ms(r, after) / predicted_ms(r, before) - 1) for r in data]
        assert np.median(moved) < (0.05 if len(data) > 40 else 0.2)
        assert max(moved) < 0.5


def test_every_row_has_a_network_and_its_group_is_left_out() -> None:
    data = calibration(fit="iphone-12")
    seen: list[set[str]] = []

    def spy(some: Iterable[Row]) -> Any:
        seen.append({grouped(data)(r) for r in some})
        return lambda row: 1.0

    assert left_out(data, spy).tolist() == [1.0] * len(data)
    groups = {grouped(data)(r) for r in data}
    assert sorted(map(sorted, seen)) == sorted(sorted(groups - {g}) for g in groups)
    assert all(works(r.network) for r in rows())
    with pytest.raises(SpecError, match=r"networks.csv: no network 'nothing'"):
        works("nothing")


def test_an_interval_holds_its_share_of_new_errors() -> None:
    """The conformal quantile: nine in ten of further draws, whatever the distribution."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        errors = np.abs(rng.standard_t(2, 21)) / 10
        held.append(errors[-1] <= np.log(_spread(errors[:-1])))
    assert 0.87 <= np.mean(held) <= 0.96


def pairs(fit_name: str, *dtypes: str) -> dict[tuple[str, str, int], dict[str, Row]]:
    """Rows of one network, runtime and batch in all of `dtypes`, in every split."""
    found: dict[tuple[str, str, int], dict[str, Row]] = defaultdict(dict)
    for row in rows():
        if profile(row.device).fit == fit_name and not row.sparse:
            found[row.network, row.runtime, row.batch].setdefault(row.dtype, row)
    return {key: of for key, of in found.items() if all(d in of for d in dtypes)}


def test_the_gain_of_integers_is_that_measured() -> None:
    some = {key: of for key, of in pairs("a100", "int8", "fp16").items() if key[0].startswith("bert_base")}
    assert len(some) >= 10
    ratios = []
    for of in some.values():
        measured = of["fp16"].latency_ms / of["int8"].latency_ms
        ratios.append(predicted_ms(of["fp16"], fits()["a100"]) / predicted_ms(of["int8"], fits()["a100"]) / measured)
    assert abs(float(np.median(ratios)) - 1) <= 0.15


def test_whether_integers_win_on_a_phone_is_as_measured() -> None:
    some = pairs("galaxy-s24", "int8", "fp16")
    parameters = fits()["galaxy-s24"]
    right = [
        (predicted_ms(of["int8"], parameters) < predicted_ms(of["fp16"], parameters))
        == (of["int8"].latency_ms < of["fp16"].latency_ms)
        for of in some.values()
    ]
    assert len(right) >= 20
    assert {of["int8"].split for of in some.values()} == {"calibration", "check"}
    assert sum(right) / len(right) >= 0.9
