"""A disk that fails at the n-th thing written: one line, the last good artifact stays, and a rerun mends all."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecompile.errors import OK, USAGE
from tests import warm
from tests.test_faults import KEPT, Prepared, completes, prepared, untouched

__all__ = ["prepared"]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _written(event: str, args: tuple[Any, ...]) -> str:
    """The path that an audited event makes or changes; empty for all else."""
    if event == "open" and isinstance(args[0], str) and (int(args[2]) & _WRITES):
        return args[0]
    return str(args[0]) if event in ("os.mkdir", "os.symlink", "os.rename", "os.truncate") else ""


def starved(folder: str, below: str, nth: int) -> None:
    """A build to whom the n-th write below `below`, and no other, fails for want of room."""
    from edgecompile.cli.main import main

    count, root = 0, os.path.join(folder, below)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        path = _written(event, args)
        if path and os.path.abspath(path).startswith(root):
            count += 1
            if count == nth:
                print("failed", event, os.path.relpath(path, folder), flush=True)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    sys.addaudithook(hook)
    sys.argv = ["edgecompile", "build", "net.py:net", "--out", "o", *KEPT]
    main()


def fails(own: Path, prepared: Prepared, below: str, nth: int) -> bool:
    """Whether a build came to its n-th write below `below`, which failed, and left all as it must be."""
    ended = warm.start(own, starved, str(own), below, nth).wait()
    assert "Traceback" not in ended.err, ended
    assert ended.code in (OK, USAGE), ended
    if ended.code != OK:
        assert "; free some space" in ended.err.splitlines()[-1], ended
    artifact = (own / "o/host").readlink().name
    assert artifact in (prepared.exact, prepared.kept)
    untouched(own, artifact)
    return "failed" in ended.out


@pytest.mark.slow
def test_each_write_into_the_output_folder_fails(prepared: Prepared, tmp_path: Path) -> None:
    own = prepared.own(tmp_path)
    count = next(nth for nth in range(1, 200) if not fails(own, prepared, "o", nth))
    assert count > 10
    completes(own, prepared.kept)


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 3, 8, 15])
def test_a_write_into_the_cache_fails(prepared: Prepared, tmp_path: Path, nth: int) -> None:
    own = prepared.own(tmp_path)
    assert fails(own, prepared, "cache", nth)
    completes(own, prepared.kept)
