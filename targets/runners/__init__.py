"""Scripts that go into bundles: they run on the device with numpy and the runtime alone, and import nothing of ours."""

from __future__ import annotations

from importlib import resources


def text(name: str) -> bytes:
    """A script of this folder as it is written into a bundle."""
    return (resources.files("edgecompile.targets.runners") / name).read_bytes()
