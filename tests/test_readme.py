"""The README's code blocks, run in order as a reader would: files are written, Python and shell blocks run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """(language, text) of each fenced block that names a language."""
    return [(m[1], m[2]) for m in BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_blocks_run(tmp_path: Path) -> None:
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    work = tmp_path / "work"
    work.mkdir()
    ran = 0
    for language, text in blocks():
        named = re.match(r"# file: (\S+)\n", text)
        if named:
            (work / named[1]).write_text(text)
            continue
        commands = [[sys.executable, "-c", text]] if language == "python" else _shell(text)
        for command in commands:
            done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=250, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran >= 7
    assert (work / "out_pt2" / "host" / "model.pt2").is_file()
    assert "round_weights" in (work / "out_rounded" / "report.json").read_text()


def _shell(text: str) -> list[list[str]]:
    """Each line as a command of this Python: `edgecompile ...` and `python ...`, no shell."""
    found = []
    for line in text.splitlines():
        words = line.split()
        module = {"edgecompile": [sys.executable, "-m", "edgecompile"], "python": [sys.executable]}[words[0]]
        found.append([*module, *words[1:]])
    return found


def test_what_it_names_is_there() -> None:
    """Files and verbs that the README mentions exist."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("SECURITY.md", "CONTRIBUTING.md", "constraints.txt"):
        assert name in text
        assert (ROOT / name).is_file()
    assert "CAPTURE" not in text
