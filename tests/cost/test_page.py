"""The page of an estimate: well-formed, loads nothing, draws every operator, escapes every foreign name."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from edgecompile.cost.estimate import estimate
from edgecompile.cost.predict import sheet
from edgecompile.cost.reference import works
from edgecompile.cost.result import Estimate, Fallback
from edgecompile.cost.work import Work, Workload
from edgecompile.device import DeviceProfile
from edgecompile.report.roofline import page, roofline, shares
from tests.report.test_html import ATTACKS, Page, check_isolated


@pytest.fixture(autouse=True)
def no_measurements(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECOMPILE_DATA", str(tmp_path_factory.mktemp("data")))


def priced(name: str = "mobilenet_v2", device: str = "agx-orin-64gb", dtype: str = "fp16", unit: str = "") -> Estimate:
    return estimate(Workload(works(name), peak_elements=10**6), device, dtype, unit=unit)


def dots(text: str) -> list[dict[str, str | None]]:
    return [a for tag, a in Page(text).tags if tag == "circle"]


@pytest.mark.parametrize(
    "device", ["agx-orin-64gb", "agx-orin-64gb:15W", "galaxy-s24", "iphone-14-pro", "rpi5", "h100"]
)
@pytest.mark.parametrize("name", ["mobilenet_v2", "bert_base_128", "yolov8n"])
def test_pages_are_well_formed_and_load_nothing(device: str, name: str) -> None:
    found = priced(name, device, "int8")
    text = page(name, found, DeviceProfile.load(device))
    parsed = check_isolated(text)
    assert len(dots(text)) == sum(r.bytes > 0 and r.us >= 1e-3 for r in found.rows)
    for dot in dots(text):
        assert 0 <= float(str(dot["cx"]).rstrip("%")) <= 100
        assert 0 <= float(str(dot["cy"])) <= 380
    assert "nan" not in text.split("</style>")[1].lower().replace("tenant", "")
    ids = {a["id"] for _, a in parsed.tags if "id" in a}
    assert ids == {a["aria-labelledby"] for tag, a in parsed.tags if tag == "section"}
    assert all("scope" in a for tag, a in parsed.tags if tag == "th")
    assert all("aria-label" in a or a.get("aria-hidden") == "true" for tag, a in parsed.tags if tag == "svg")
    assert [tag for tag, _ in parsed.tags].count("h1") == 1


def test_the_page_shows_what_the_figure_is_and_where_it_comes_from() -> None:
    profile = DeviceProfile.load("agx-orin-64gb")
    found = priced()
    shown = Page(page("net", found, profile)).text
    latency = found.latency_ms
    for wanted in (
        "predicted net → agx-orin-64gb:MAXN NVIDIA Jetson AGX Orin 64 GB, fp16, batch 1, TensorRT",
        f"{latency.value:.2f} ms" if latency.value >= 1 else f"{latency.value:.3f} ms",
        "predicted, 90 % interval",
        found.evidence,
        "fp16 42.6 Top/s",
        "memory 205 GB/s",
        "of the time",
    ):
        assert wanted in shown, wanted
    assert "unvalidated" not in shown
    vague = priced(dtype="int8")
    shown = Page(page("net", vague, profile)).text
    assert f"unvalidated {vague.validated}" in shown
    assert "int8 85 Top/s" in shown


def test_the_lines_are_those_of_the_mode_and_the_unit() -> None:
    for device, unit, peak in (("agx-orin-64gb:15W", "", "3.44 Top/s"), ("agx-orin-64gb", "DLA", "13.1 Top/s")):
        found = priced(device=device, unit=unit)
        assert f"fp16 {peak}" in Page(page("net", found, DeviceProfile.load(device))).text


def test_a_dot_is_where_its_figures_are() -> None:
    """Ten times the operations a byte is one step of the grid across, ten times the rate one up."""
    row = replace(priced().rows[0], macs=500_000, bytes=1_000_000, us=10.0, dtype="fp16", bound="memory")
    wide, fast = replace(row, bytes=100_000, bound="compute"), replace(row, us=1.0, bound="launch")
    drawn = roofline([row, wide, fast], sheet(DeviceProfile.load("agx-orin-64gb")))
    places = {
        style: (float(x), float(y))
        for x, y, style in re.findall(r'cx="([\d.]+)%" cy="([\d.]+)" r="[\d.]+" class="dot (\w+)"', drawn)
    }
    across = [float(x) for x in re.findall(r'<line x1="([\d.]+)%" x2="\1%" y1="0"', drawn)]
    up = [float(y) for y in re.findall(r'<line x1="0%" x2="100%" y1="([\d.]+)"', drawn)]
    (x, y), (x_wide, y_wide), (x_fast, y_fast) = places["loss"], places["gain"], places["total"]
    assert (y_wide, x_fast) == (y, x)
    assert x in across  # one operation a byte
    assert x_wide - x == pytest.approx(across[1] - across[0], abs=0.02)
    assert y in up  # 100 thousand million operations a second
    assert y - y_fast == pytest.approx(up[0] - up[1], abs=0.2)
    assert drawn.count("<title>") == 3


def test_shares_add_up_and_long_lists_are_summed() -> None:
    parts = [(f"layer{i}", float(i + 1)) for i in range(100)]
    found = shares(parts, sum(us for _, us in parts), most=40)
    assert len(found) == 41
    assert found[-1].name == "60 more"
    assert sum(s.percent for s in found) == pytest.approx(1)
    assert [s.us for s in found[:40]] == sorted((s.us for s in found[:40]), reverse=True)


def test_fallbacks_are_listed() -> None:
    load = Workload((Work("rnn", "recurrent", 1000, 10, 10, 10, reads=100, writes=100, nodes=("lstm",), layer="enc"),))
    found = estimate(load, "iphone-14-pro")
    shown = Page(page("net", found, DeviceProfile.load("iphone-14-pro"))).text
    assert "lstm enc recurrent CPU the ANE has no kernel for it" in shown


def test_long_tables_are_cut_and_the_page_stays_small() -> None:
    one = works("resnet50")
    load = Workload(tuple(replace(w, name=f"n{i}_{j}", layer=f"l{i}") for j in range(12) for i, w in enumerate(one)))
    found = estimate(load, "galaxy-s24", "fp16")
    parsed = check_isolated(page("net", found, DeviceProfile.load("galaxy-s24")))
    assert f"The 200 longest of {len(found.rows)}." in parsed.text


@pytest.mark.parametrize("attack", ATTACKS)
def test_foreign_names_stay_text(attack: str) -> None:
    found = priced()
    rows = tuple(replace(r, name=attack, layer=attack, unit=attack) for r in found.rows)
    fallback = Fallback(attack, attack, attack, attack, attack)
    hostile = replace(found, rows=rows, device=attack, evidence=attack, validated=attack, fallbacks=(fallback,))
    profile = replace(DeviceProfile.load("agx-orin-64gb"), title=attack, runtime=attack)
    text = page(attack, replace(hostile, notes=(attack,)), profile)
    check_isolated(text)
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_an_empty_program_has_a_page() -> None:
    found = estimate(Workload((Work("w", "copy", reads=1, writes=1),)), "rpi5")
    check_isolated(page("net", found, DeviceProfile.load("rpi5")))
    check_isolated(page("net", replace(found, rows=found.rows[-1:]), DeviceProfile.load("rpi5")))
