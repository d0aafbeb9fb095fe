"""Device profiles: every shipped one loads, and a wrong field is one line with the line of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompile.device import DeviceProfile
from edgecompile.errors import SpecError

GOOD = 'title = "Board"\nruntime = "ONNX Runtime"\n'


def test_every_shipped_profile_loads() -> None:
    assert "host" in DeviceProfile.names()
    for name in DeviceProfile.names():
        profile = DeviceProfile.load(name)
        assert profile.name == name
        assert profile.source


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
