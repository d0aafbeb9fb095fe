"""Publish a folder atomically, hold an output folder, and cache by content."""

from edgecompile.store.cache import Cache, key
from edgecompile.store.content import content_hash, file_hash, verifies, writing
from edgecompile.store.publish import hold, point, prune, publish, seal, stage, unpoint, write_atomic

__all__ = [
    "Cache",
    "content_hash",
    "file_hash",
    "hold",
    "key",
    "point",
    "prune",
    "publish",
    "seal",
    "stage",
    "unpoint",
    "verifies",
    "write_atomic",
    "writing",
]
