"""estimate(): rows that add up, intervals, what backs them, fallbacks and errors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.cost.estimate import estimate
from edgecompile.cost.fuse import workload
from edgecompile.cost.reference import works
from edgecompile.cost.result import Estimate, as_json
from edgecompile.cost.work import Work, Workload
from edgecompile.device import DeviceProfile
from edgecompile.errors import SpecError, Unsupported
from edgecompile.program import Program

NAMES = ("resnet50", "mobilenet_v2", "vit_b_16", "yolov8n", "efficientvit_b1_224", "bert_base_128")
PROFILES = {name: DeviceProfile.load(name) for name in DeviceProfile.names()}
PRICED = [name for name, profile in PROFILES.items() if profile.law != "none"]
EXAMPLES = settings(max_examples=40, derandomize=True)


@pytest.fixture(autouse=True)
def no_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECOMPILE_DATA", str(tmp_path / "data"))


def network(name: str = "resnet50") -> Workload:
    return Workload(works(name), peak_elements=10**6)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def captured(module: nn.Module, batch: int = 2, dynamic: bool = True) -> Program:
    torch.manual_seed(0)
    return Program.capture(module.eval(), (torch.randn(batch, 6, 16),), dynamic)


@given(data=st.data())
@EXAMPLES
def test_rows_add_up_and_intervals_hold_their_value(data: st.DataObject) -> None:
    profile = PROFILES[data.draw(st.sampled_from(PRICED))]
    dtype = data.draw(st.sampled_from([None, *profile.units[profile.unit].rates]))
    load = network(data.draw(st.sampled_from(NAMES)))
    found = estimate(load, profile, dtype, batch=data.draw(st.sampled_from([1, 2, 8])))
    latency = found.latency_ms
    assert sum(row.us for row in found.rows) == pytest.approx(1e3 * latency.value)
    assert 0 < latency.low <= latency.value <= latency.high
    for row in found.rows:
        assert 0 <= row.low_us <= row.us <= row.high_us
        assert row.bound in ("compute", "memory", "launch")
        assert row.unit in profile.units
        assert math.isfinite(row.share)
        assert row.share >= 0
    assert found.rows[-1].name == "start"
    assert len(found.rows) == len(load.works) + 1
    assert sum(row.macs for row in found.rows) == load.macs * found.batch
    assert found.memory_mb > 0
    assert (latency.kind == "predicted") == (found.validated is True)


@pytest.mark.parametrize("device", PRICED)
def test_every_device_has_a_figure_in_every_dtype(device: str) -> None:
    profile = PROFILES[device]
    for name in NAMES:
        for unit, of in profile.units.items():
            for dtype in of.rates:
                found = estimate(network(name), profile, dtype, unit=unit)
                assert math.isfinite(found.latency_ms.high)
                assert found.latency_ms.low > 0
                assert found.evidence


def test_json_has_the_documented_keys() -> None:
    body = json.loads(json.dumps(as_json(estimate(captured(Attention()), "galaxy-s24"))))
    assert {"device", "dtype", "batch", "latency_ms", "validated", "evidence", "memory_mb", "rows"} <= set(body)
    assert body["device"] == "galaxy-s24"
    assert set(body["latency_ms"]) == {"value", "low", "high", "kind"}
    assert body["validated"] is True
    for row in body["rows"]:
        assert {"name", "op", "dtype", "us", "bound", "unit", "macs", "bytes"} <= set(row)
    assert sum(row["us"] for row in body["rows"]) == pytest.approx(1e3 * body["latency_ms"]["value"], rel=1e-3)
    assert json.loads(json.dumps(body), parse_constant=lambda word: pytest.fail(f"{word} is no JSON")) == body


def width(found: Estimate) -> float:
    return found.latency_ms.high / found.latency_ms.low


@pytest.mark.parametrize(
    ("device", "options", "reason"),
    [
        ("agx-orin-64gb", {"dtype": "int8"}, "only one architecture was measured on NVIDIA Jetson AGX Orin"),
        ("agx-orin-64gb:15W", {"dtype": "fp16"}, "no measured latency in mode 15W"),
        ("agx-orin-64gb", {"dtype": "bf16"}, "in bf16 is public"),
        ("h100", {"dtype": "fp16"}, "no measured latency of NVIDIA H100"),
        ("orin-nano-8gb", {"dtype": "fp16"}, "its parameters are those of agx-orin"),
        ("rpi5", {"dtype": "fp32"}, "no measured latency of Raspberry Pi 5"),
        ("a100-sxm-40gb", {"dtype": "int8", "sparse": True}, "2:4 sparsity is no part of the validation"),
        ("galaxy-s24", {"dtype": "int8", "unit": "CPU"}, "no measured latency of Samsung Galaxy S24"),
    ],
)
def test_what_nothing_backs_says_why_and_has_a_wider_interval(
    device: str, options: dict[str, Any], reason: str
) -> None:
    found = estimate(network(), device, **options)
    assert found.latency_ms.kind == "unvalidated"
    assert isinstance(found.validated, str)
    assert reason in found.validated
    assert width(found) >= 4
    for backed in ("a100-sxm-40gb", "agx-orin-64gb", "galaxy-s24", "iphone-14-pro"):
        known = estimate(network(), backed, "fp16")
        assert (known.validated, known.latency_ms.kind) == (True, "predicted")
        assert "each group left out in turn" in known.evidence
        assert width(known) < width(found)


def test_smaller_power_modes_are_slower() -> None:
    for device in PRICED:
        modes = list(PROFILES[device].modes)
        times = [estimate(network(), f"{device}:{mode}").latency_ms.value for mode in modes]
        assert times == sorted(times), (device, modes)
        assert len(set(times)) == len(times)
        if modes:
            assert estimate(network(), device).device == f"{device}:{modes[0]}"


def test_a_larger_batch_takes_longer_and_less_a_sample() -> None:
    for device in ("a100-sxm-40gb", "galaxy-s24", "iphone-14-pro"):
        times = {b: estimate(network(), device, "fp16", batch=b).latency_ms.value for b in (1, 4, 16)}
        assert times[1] < times[4] < times[16]
        assert times[16] / 16 < times[4] / 4 < times[1]


def test_a_fixed_batch_is_priced_as_it_stands() -> None:
    dynamic, fixed = captured(Attention()), captured(Attention(), 3, dynamic=False)
    found = estimate(fixed, "galaxy-s24")
    assert found.batch == 3
    assert found.latency_ms == estimate(dynamic, "galaxy-s24", batch=3).latency_ms


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "galaxy-s23"}, "unknown device 'galaxy-s23'; did you mean galaxy-s2"),
        ({"device": "agx-orin-64gb:60W"}, "'60W' is not one of its power modes; did you mean 50W?"),
        ({"device": "galaxy-s24", "dtype": "int9"}, "--dtype int9: not a dtype; did you mean int8?"),
        ({"device": "galaxy-s24", "dtype": "tf32"}, "galaxy-s24 does not compute in tf32; it has int8, fp16"),
        ({"device": "agx-orin-64gb", "unit": "DAL"}, "agx-orin-64gb has no unit 'DAL'; did you mean DLA?"),
        ({"device": "galaxy-s24", "sparse": True}, "galaxy-s24 has no 2:4 rate in fp16: it has none"),
        ({"device": "host"}, "host: no predictor"),
    ],
)
def test_mistakes_are_one_line_with_near_spellings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        estimate(network(), **arguments)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("module", "device", "unit", "node", "to"),
    [(Recurrent(), "iphone-14-pro", "", "lstm", "CPU"), (Attention(), "agx-orin-64gb", "DLA", "scaled_dot", "GPU")],
)
def test_what_a_unit_cannot_run_falls_back_or_is_refused(
    module: nn.Module, device: str, unit: str, node: str, to: str
) -> None:
    program = captured(module)
    found = estimate(program, device, "fp16", unit=unit)
    (fallback, *others) = found.fallbacks
    assert not others
    assert fallback.node.startswith(node)
    assert fallback.unit == to
    assert fallback.layer
    (row,) = [r for r in found.rows if r.unit == to]
    assert row.nodes[0] == fallback.node
    assert row.us > 0
    assert (found.latency_ms.kind, "1 operators fall back" in str(found.validated)) == ("unvalidated", True)
    with pytest.raises(Unsupported) as caught:
        estimate(program, device, "fp16", fallback=False, unit=unit)
    assert fallback.node in str(caught.value)
    assert caught.value.exit_code == 5
    assert not estimate(network("resnet50"), device, "fp16", unit=unit).fallbacks


def test_narrow_weights_keep_less_and_compute_as_before() -> None:
    load = network("vit_b_16")
    weights = sum(w.weights for w in load.works)
    sizes = {d: estimate(load, "galaxy-s24", d).memory_mb for d in ("fp16", "w8a16", "w4a16", "int8")}
    assert sizes["fp16"] - sizes["w8a16"] == pytest.approx(weights / 1e6)
    assert sizes["w8a16"] - sizes["w4a16"] == pytest.approx(weights / 2e6)
    assert (
        estimate(load, "a100-sxm-40gb", "w4a16").latency_ms.value
        <= estimate(load, "a100-sxm-40gb", "fp16").latency_ms.value
    )
    assert sizes["w8a16"] - sizes["int8"] == pytest.approx(load.peak_elements / 1e6)


def test_memory_counts_tables_that_are_looked_up() -> None:
    program = Program.capture(nn.Embedding(1000, 8), (torch.zeros(2, 6, dtype=torch.long),))
    assert estimate(program, "galaxy-s24", "fp16").memory_mb >= 2 * 8000 / 1e6


def test_operators_without_a_rule_are_a_note() -> None:
    load = replace(workload(captured(Attention())), unknown={"inv": "aten.linalg_inv.default"})
    assert "aten.linalg_inv.default" in estimate(load, "a100-sxm-40gb").notes[0]
    assert estimate(Workload((Work("odd", "other", reads=10**6, writes=10**6),)), "a100-sxm-40gb").latency_ms.value > 0
