"""Compile a trained model for an edge device under a latency budget, and prove that the budget holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompile.building.options import BuildOptions
    from edgecompile.building.run import build
    from edgecompile.report import Report

__version__ = "0.1.0"
__all__ = ["BuildOptions", "Report", "__version__", "build"]

_WHERE = {
    "BuildOptions": "edgecompile.building.options",
    "Report": "edgecompile.report",
    "build": "edgecompile.building.run",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for: `import edgecompile` itself loads nothing heavy."""
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'edgecompile' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
