"""Device profiles: every shipped one loads, and a wrong field is one line with the line of the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from edgecompile.cost.predict import sheet
from edgecompile.device import DeviceProfile, Figure
from edgecompile.errors import SpecError

GOOD = 'title = "Board"\nruntime = "ONNX Runtime"\n'
FIGURE = 'how = "quoted", source = "its data sheet"'
BOARD = f"""title = "Board"
runtime = "TensorRT"
law = "gpu"
fit = "board"
bandwidth_gb_s = {{ value = 100, {FIGURE} }}

[modes.full]
clock_mhz = {{ value = 1000, {FIGURE} }}

[modes.half]
cores = {{ value = 4, {FIGURE} }}
clock_mhz = {{ value = 500, {FIGURE} }}
bandwidth_gb_s = {{ value = 50, {FIGURE} }}

[units.GPU]
cores = {{ value = 8, {FIGURE} }}
clock_mhz = {{ value = 1000, {FIGURE} }}

[units.GPU.rates]
fp16 = {{ value = 40, {FIGURE} }}
int8 = {{ value = 80, {FIGURE} }}

[units.GPU.sparse_rates]
int8 = {{ value = 160, {FIGURE} }}
"""


def test_every_shipped_profile_loads() -> None:
    assert "host" in DeviceProfile.names()
    for name in DeviceProfile.names():
        profile = DeviceProfile.load(name)
        assert profile.name == name
        assert profile.source


def figures(value: object) -> Iterator[Figure]:
    """Every figure of a profile, at any depth."""
    if isinstance(value, Figure):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from figures(inner)
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from figures(getattr(value, f.name))


def test_every_figure_of_every_shipped_profile_has_a_source() -> None:
    hows = set()
    for name in DeviceProfile.names():
        profile = DeviceProfile.load(name)
        for figure in figures(profile):
            assert len(figure.source) > 3, (name, figure)
            hows.add(figure.how)
        assert profile.law == "none" or len(list(figures(profile))) >= 3
        for unit in profile.units.values():
            assert unit.rates
    assert {"quoted", "derived", "recalled"} <= hows


def test_power_modes(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(BOARD)
    assert DeviceProfile.load(str(file)).mode == ""
    full, half = (sheet(DeviceProfile.load(f"{file}:{mode}")) for mode in ("full", "half"))
    assert full == sheet(DeviceProfile.load(str(file)))
    assert full.rates == {"fp16": 20e12, "int8": 40e12}
    assert half.rates == {"fp16": 5e12, "int8": 10e12}
    assert (half.sparse_rates, half.cores, half.bandwidth) == ({"int8": 20e12}, 4, 50e9)
    with pytest.raises(SpecError, match=r"^--device .*board.*: mode: 'hlaf' is not one .*; did you mean half\?"):
        DeviceProfile.load(f"{file}:hlaf")
    with pytest.raises(SpecError, match="'full' is not one of its power modes"):
        DeviceProfile.load("galaxy-s24:full")


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value = 40", "value = -40", "-40 is impossible: it must be above 0"),
        ("value = 40", "value = 0", "0 is impossible: it must be above 0"),
        ("value = 40", "value = nan", "nan is impossible"),
        ("value = 40", "value = inf", "inf is impossible"),
        ("value = 40", 'value = "40"', "expected"),
        ("value = 100", "value = 0", "0 is impossible: it must be above 0"),
        ("value = 160", "value = 60", "60 is below the dense 80: swap them"),
        ("value = 50,", "value = -1,", "-1 is impossible"),
        (f"value = 80, {FIGURE}", 'value = 80, how = "guessed", source = "x"', "'guessed' is not one of the choices"),
        (f"value = 80, {FIGURE}", 'value = 80, how = "quoted"', "needs source"),
        (f"value = 80, {FIGURE}", 'value = 80, hwo = "quoted", source = "x"', "'hwo'; did you mean how?"),
        ("[units.GPU.rates]\n", "[units.GPU.rate]\n", "'rate'; did you mean rates?"),
        ("clock_mhz = { value = 500", "clock = { value = 500", "'clock'; did you mean clock_mhz?"),
        ("bandwidth_gb_s = { value = 100", "bandwith_gb_s = { value = 100", "did you mean bandwidth_gb_s?"),
        ('law = "gpu"', 'law = "gppu"', "'gppu' is not one of the choices; did you mean gpu?"),
    ],
)
def test_a_wrong_figure_is_one_line_with_its_line_number(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    text = BOARD.replace(old, new, 1)
    assert text != BOARD
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        DeviceProfile.load(str(file))
    said = str(caught.value)
    assert message in said
    assert len(said.splitlines()) == 1
    assert said.startswith(f"board.toml:{line_of(text, new.splitlines()[0])}"), said


def test_a_predictor_needs_units_and_bandwidth(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(GOOD + 'law = "gpu"\n')
    with pytest.raises(SpecError, match=r"board.toml:3: law: a predictor needs units and bandwidth_gb_s"):
        DeviceProfile.load(str(file))


def test_a_users_own_profile(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(GOOD + "threads = 4\n")
    assert DeviceProfile.load(str(file)) == DeviceProfile("board", "Board", "ONNX Runtime", threads=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "\nthread = 4\n", "board.toml:4: unknown option 'thread'; did you mean threads?"),
        (GOOD + 'threads = "many"\n', "board.toml:3.threads: expected int, got 'many'"),
        ('title = "x"\n', "board.toml: needs runtime"),
        ("title = \n", "board.toml: not TOML: "),
        (GOOD + "x = " + "[" * 5000 + "]" * 5000, "board.toml: not TOML: "),
    ],
)
def test_wrong_profiles(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        DeviceProfile.load(str(file))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_and_missing_profiles(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown device 'hosst'; did you mean host"):
        DeviceProfile.load("hosst")
    with pytest.raises(SpecError, match="no such file"):
        DeviceProfile.load(str(tmp_path / "none.toml"))
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * 1_100_000)
    with pytest.raises(SpecError, match="not a device profile"):
        DeviceProfile.load(str(huge))
