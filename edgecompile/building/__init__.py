"""A build: options, the workshop, verdicts, the bundle, and `build()` itself."""

from edgecompile.building.options import BuildOptions
from edgecompile.building.run import build

__all__ = ["BuildOptions", "build"]
