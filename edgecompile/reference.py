"""`pkg.module:function` and `path/file.py:function`: the user's own code, and the entries of our own tables."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from edgecompile.errors import InputError, near

_REF = re.compile(r"(?P<file>.+\.py):(?P<a>[A-Za-z_]\w*)|(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<b>[A-Za-z_]\w*)")


def is_function(ref: str) -> bool:
    """Whether `ref` has the form `module:function` or `file.py:function`."""
    return _REF.fullmatch(ref) is not None


def load_function(ref: str) -> Any:
    """Import what `ref` names; raises `InputError` for a missing module, file or name."""
    match = _REF.fullmatch(ref)
    if match is None:
        raise InputError(f"{ref}: expected pkg.module:function or path/file.py:function")
    name = match["a"] or match["b"]
    module = _from_file(Path(match["file"]), ref) if match["file"] else _from_name(match["module"], ref)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(f"{ref}: the module has no {name!r}{near(name, public)}") from None


def _from_name(name: str, ref: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{ref}: no module named {error.name!r}: is it installed, or on PYTHONPATH?") from error


def _from_file(path: Path, ref: str) -> Any:
    if not path.is_file():
        raise InputError(f"{ref}: {path} does not exist")
    content = hashlib.sha256(str(path.resolve()).encode() + b"\0" + path.read_bytes()).hexdigest()
    name = f"edgecompile_user_{content[:16]}"  # an edited file is another module, in a notebook too
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ModuleNotFoundError):
            raise InputError(f"{ref}: it imports {error.name!r}, which is not installed") from error
        if isinstance(error, SyntaxError):
            raise InputError(f"{ref}: line {error.lineno}: {error.msg}") from error
        raise
    return module
