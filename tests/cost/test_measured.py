"""What was measured on the user's devices: returned as such, moves others towards it, and never breaks an estimate."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from edgecompile.cost import measured
from edgecompile.cost.estimate import estimate
from edgecompile.cost.measured import Measurement
from edgecompile.cost.predict import fitted
from edgecompile.cost.reference import works
from edgecompile.cost.result import Estimate
from edgecompile.cost.work import Work, Workload
from edgecompile.device import DeviceProfile

DEVICE = "galaxy-s24"
NAMES = ("resnet18", "resnet50", "mobilenet_v2", "googlenet", "squeezenet1_1", "vit_b_16", "dla102x")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGECOMPILE_DATA", str(tmp_path))
    return tmp_path


def priced(name: str, device: str = DEVICE, batch: int = 1, **options: Any) -> Estimate:
    return estimate(Workload(works(name)), device, options.pop("dtype", "fp16"), batch, **options)


def ms(name: str, device: str = DEVICE, **options: Any) -> float:
    return priced(name, device, **options).latency_ms.value


def store(name: str, latency_ms: float, device: str = DEVICE, dtype: str = "fp16", batch: int = 1) -> Path:
    some = tuple(w.at(batch) for w in works(name))
    low, high = 0.98 * latency_ms, 1.03 * latency_ms
    name = measured.digest(some)
    return measured.add(Measurement(device, dtype, batch, latency_ms, low, high, "2026-01-02", name, some, {"os": "1"}))


def test_without_a_file_nothing_changes(data: Path) -> None:
    assert measured.folder() == data / "measured"
    assert measured.of(DEVICE) == []
    profile = DeviceProfile.load(DEVICE)
    assert measured.parameters(profile) == fitted(profile)
    assert not (data / "measured").exists()


def test_a_measured_network_is_returned_as_measured() -> None:
    before = priced("resnet18")
    store("resnet18", 3 * before.latency_ms.value)
    found = priced("resnet18")
    assert found.latency_ms.kind == "measured"
    assert found.latency_ms.value == pytest.approx(3 * before.latency_ms.value)
    assert found.latency_ms.low == pytest.approx(0.98 * found.latency_ms.value)
    assert found.latency_ms.high == pytest.approx(1.03 * found.latency_ms.value)
    assert found.validated is True
    assert found.evidence == "this network was measured on 2026-01-02"
    assert sum(row.us for row in found.rows) == pytest.approx(1e3 * found.latency_ms.value)


def test_another_dtype_batch_or_network_is_still_predicted() -> None:
    store("resnet18", 1.0)
    assert priced("resnet18", dtype="int8").latency_ms.kind == "predicted"
    assert priced("resnet18", batch=2).latency_ms.kind == "predicted"
    assert priced("resnet50").latency_ms.kind == "predicted"
    store("resnet18", 1.9, batch=2)
    assert priced("resnet18", batch=2).latency_ms.value == pytest.approx(1.9)
    assert priced("resnet18").latency_ms.value == pytest.approx(1.0)


def test_the_latest_measurement_of_a_network_counts() -> None:
    store("resnet18", 1.0)
    path = store("resnet18", 2.0)
    assert len(json.loads(path.read_text())["rows"]) == 1
    assert ms("resnet18") == pytest.approx(2.0)


@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_other_networks_move_towards_what_was_measured(factor: float) -> None:
    before = {name: ms(name) for name in NAMES}
    for name in NAMES[:4]:
        store(name, factor * before[name])
    for name in NAMES[4:]:
        moved = ms(name) / before[name]
        assert abs(math.log(moved / factor)) < 0.5 * abs(math.log(factor))


def test_one_absurd_point_moves_others_by_little() -> None:
    before = {name: ms(name) for name in NAMES}
    for name in NAMES[:4]:
        store(name, before[name])
    store(NAMES[4], 50 * before[NAMES[4]])
    for name in NAMES[5:]:
        assert ms(name) == pytest.approx(before[name], rel=0.3)


def test_devices_do_not_move_each_other() -> None:
    before = ms("resnet50", "iphone-14-pro", dtype="fp16")
    store("resnet18", 100.0)
    assert ms("resnet50", "iphone-14-pro", dtype="fp16") == before


def test_power_modes_are_kept_apart() -> None:
    board = "agx-orin-64gb"
    full, low = ms("resnet18", f"{board}:MAXN"), ms("resnet18", f"{board}:15W")
    store("resnet18", 7.0, device=f"{board}@15W")
    assert ms("resnet18", f"{board}:MAXN") == full
    assert ms("resnet18", board) == full
    found = priced("resnet18", f"{board}:15W")
    assert (found.latency_ms.kind, found.latency_ms.value) == ("measured", pytest.approx(7.0))
    assert low != pytest.approx(7.0)


def test_units_are_kept_apart() -> None:
    store("resnet18", 7.0)
    found = priced("resnet18", unit="CPU")
    assert found.latency_ms.kind == "unvalidated"


BROKEN = {
    "empty": "",
    "cut": None,
    "no JSON": "rows",
    "a list": "[1, 2]",
    "no rows": '{"schema": 1}',
    "a number for rows": '{"rows": 5}',
    "a number for a row": '{"rows": [5]}',
    "a row without fields": '{"rows": [{}]}',
    "a row without works": '{"rows": [{"device": "galaxy-s24"}]}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_ignored(case: str) -> None:
    before = ms("resnet18")
    path = store("resnet18", 3 * before)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2] if BROKEN[case] is None else BROKEN[case])
    assert ms("resnet18") == before
    assert measured.of(DEVICE) == []
    store("resnet18", 3 * before)  # and can be written again
    assert ms("resnet18") == pytest.approx(3 * before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latency_ms", 0),
        ("latency_ms", -1.0),
        ("latency_ms", float("nan")),
        ("latency_ms", float("inf")),
        ("latency_ms", "fast"),
        ("high_ms", float("nan")),
        ("low_ms", None),
        ("works", [{"name": "x", "kind": "no such kind"}]),
        ("works", [{"name": "x", "kind": "conv", "macs": "many"}]),
        ("works", [5]),
        ("works", []),
    ],
)
def test_a_row_that_cannot_be_is_ignored(field: str, value: object) -> None:
    before = ms("resnet50"), ms("resnet18")
    path = store("resnet18", 3 * before[1])
    body = json.loads(path.read_text())
    body["rows"][0][field] = value
    path.write_text(json.dumps(body))
    assert (ms("resnet50"), ms("resnet18")) == before


def test_bytes_that_are_no_text_are_ignored() -> None:
    before = ms("resnet18")
    path = store("resnet18", 3 * before)
    path.write_bytes(b"\xff\xfe\x00" * 50)
    assert ms("resnet18") == before


def test_a_broken_file_is_told_and_set_aside_by_the_next_measurement() -> None:
    device = DeviceProfile.load("galaxy-s24")
    assert measured.damaged(device) == ""
    path = measured.folder() / "galaxy-s24.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"rows": [')
    assert str(path) in measured.damaged(device)
    works = (Work("a", "linear", 1000, 10, 10, 10, reads=100, writes=100, weights=100),)
    found = estimate(Workload(works), device)
    assert any("cannot be read" in note for note in found.notes)
    measured.add(
        measured.Measurement("galaxy-s24", "fp16", 1, 1.0, 0.9, 1.1, "2026-01-01", measured.digest(works), works, {})
    )
    assert measured.damaged(device) == ""
    assert path.with_suffix(".json.damaged").read_text() == '{"rows": ['
    assert len(measured.of("galaxy-s24")) == 1
