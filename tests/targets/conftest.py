"""Fixtures of the target tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

Find = Callable[[str, str], str]
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_24_aarch64")
LIBRARIES = ("libtvm_runtime.so", "libtvm_runtime_extra.so", "libtvm_ffi.so")


@pytest.fixture(scope="session")
def aarch64(tmp_path_factory: pytest.TempPathFactory, apt_tool: Find) -> dict[str, str]:
    """A clean root for aarch64 with Debian's C library and TVM's runtime out of its wheels, as an environment."""
    qemu = apt_tool("qemu-aarch64-static", "qemu-user-static")
    apt_tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    root, wheels = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("wheels")
    shutil.copytree("/usr/aarch64-linux-gnu/lib", root / "lib", ignore=shutil.ignore_patterns("*.a", "*.o"))
    packages = [f"{name}=={version(name)}" for name in ("apache-tvm", "apache-tvm-ffi")]
    options = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "-d", str(wheels)]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, *platforms, *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip downloads no {' '.join(packages)} for aarch64: {done.stderr.strip().splitlines()[-1:]}")
    runtime = root / "opt"
    runtime.mkdir()
    for wheel in wheels.iterdir():
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(LIBRARIES):
                    (runtime / Path(name).name).write_bytes(archive.read(name))
    assert sorted(p.name for p in runtime.iterdir()) == sorted(LIBRARIES)
    return {"EDGECOMPILE_RUN": f"{qemu} -L {root}", "TVM_LIBRARY_PATH": str(runtime)}
