"""The source text behind a module as one hash: its own, and that of everything of ours that it imports."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_MODULE = re.compile(r"edgecompile(?:\.\w+)+")
_FILE = re.compile(r"[\w-]+\.(?:py|sh|cc|txt|json|safetensors)")


def sources_hash(names: Iterable[str], alone: Iterable[str] = ()) -> str:
    """SHA-256 (hex) over modules of ours, or files, with what they import, run or read; and over others `alone`.

    A change to one target leaves the hash of another as it is.
    """
    total = hashlib.sha256()
    for path in sorted(sources(names) | {path for name in alone if (path := _path(name)) is not None}):
        inside = path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else path.name
        total.update(f"{inside} {_digest(path)}\n".encode())
    return total.hexdigest()


def sources(names: Iterable[str]) -> set[Path]:
    """The files of modules, or of paths that end in `.py`, and of everything of ours that these lead to."""
    found: set[Path] = set()
    todo = [path for name in names if (path := _path(name)) is not None]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += _read_by(path)
    return found


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _read_by(path: Path) -> tuple[Path, ...]:
    """Files that a file names: modules by import or as text, and others that lie beside it or in `runners`."""
    if path.suffix != ".py":
        return ()
    found: list[Path] = []
    table = path.name == "__init__.py"  # where names stand for what may be asked for
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("edgecompile"):
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("edgecompile.")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not table:
            names = [node.value] if _MODULE.fullmatch(node.value) else []
            found += _beside(path, node.value)
        else:
            continue
        found += [p for name in names if (p := _path(name)) is not None]
    return tuple(found)


def _beside(path: Path, name: str) -> Iterator[Path]:
    if _FILE.fullmatch(name):
        yield from (p for p in (path.parent / name, path.parent / "runners" / name) if p.is_file())


@cache
def _path(name: str) -> Path | None:
    """The file of a module of ours, or of a path that ends in `.py`; None for other people's."""
    if name.endswith(".py"):
        return Path(name).resolve() if Path(name).is_file() else None
    if not name.startswith("edgecompile."):
        return None
    stem = _ROOT.joinpath(*name.split(".")[1:])
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)
