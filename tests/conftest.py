"""Fixtures of all tests."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

settings.register_profile("shared", deadline=None)  # no test asserts time
settings.load_profile("shared")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores; torch is not imported yet

ONE_RUNTIME = ("onnx@host",)
LIMIT_S = float(os.environ.get("EDGECOMPILE_TEST_LIMIT_S", "inf"))
STARTED = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Tests that are not reached in the time that continuous integration gives are skipped, and counted as such."""
    if time.monotonic() - STARTED > LIMIT_S:
        pytest.skip(f"not run: {LIMIT_S / 60:g} minutes are up")


@pytest.fixture(scope="session", autouse=True)
def both_runtimes() -> Iterator[tuple[str, ...]]:
    """`--target host` builds for ONNX Runtime alone: TVM's compiler takes seconds, and tests/test_contest.py has it."""
    from edgecompile import targets

    both = targets.DEPLOYMENTS["host"]
    targets.DEPLOYMENTS["host"] = ONE_RUNTIME
    yield both
    targets.DEPLOYMENTS["host"] = both


@pytest.fixture(autouse=True)
def runtimes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, both_runtimes: tuple[str, ...]) -> None:
    """Tests marked `runtimes`, and those that start the command line in a process of its own, have both."""
    from edgecompile import targets

    if "runtimes" in request.keywords:
        monkeypatch.setitem(targets.DEPLOYMENTS, "host", both_runtimes)


@pytest.fixture(scope="session")
def apt_tool() -> Callable[[str, str], str]:
    """Give `find(name, package)`: the path of a Debian package's program, or a skip that names the package.

    With EDGECOMPILE_REQUIRE_APT=1 (continuous integration) its absence is a failure.
    """

    def find(name: str, package: str) -> str:
        path = shutil.which(name)
        if path:
            return path
        reason = f"Debian package {package} absent"
        if os.environ.get("EDGECOMPILE_REQUIRE_APT") == "1":
            pytest.fail(reason)
        pytest.skip(reason)

    return find
