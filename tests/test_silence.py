"""What libraries print stays off standard output, and what others print gets there."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from edgecompile.silence import mute


def test_what_c_code_prints_is_dropped_and_only_inside(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with mute():
        os.write(1, b"by descriptor\n")
        ctypes.CDLL(None).puts(b"by the C library")  # which keeps it in a buffer of its own
    print("behind")
    with pytest.raises(KeyError), mute():
        raise KeyError
    print("last")
    assert capfd.readouterr().out == "before\nbehind\nlast\n"


def test_a_closed_output_is_left_alone() -> None:
    code = "import os; os.close(1)\nfrom edgecompile.silence import mute\nwith mute(): pass\nos.write(2, b'well')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stderr == b"well"
