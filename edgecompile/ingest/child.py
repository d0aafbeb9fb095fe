"""What runs in the child process: limits first, then the parser, then a JSON status. Never pickle.

Started by `contain.parse_in_child` as `python -m edgecompile.ingest.child`, with the request as JSON on
standard input. Everything here is containment for a file that has been vetted already; a parser gets its
limits before any library that reads the file is imported.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgecompile.errors import EdgeCompileError
from edgecompile.ingest.landlock import confine_writes
from edgecompile.ingest.rules import text_safe

PARSERS: Mapping[str, str] = MappingProxyType(
    {
        "pt2": "edgecompile.models.pt2_file:parse",
        "torch_weights": "edgecompile.models.torch_weights:parse",
        "onnx": "edgecompile.models.onnx_file:parse",
    }
)
"""Kind of file to `module:function`, called with its arguments and `out` by keyword; returns None or JSON."""

STATUS = "status.json"

_CLONE_NEWNET = 0x40000000
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")


def main() -> int:
    """Run one request; the status is written before exit, whatever the parser raises."""
    request = json.loads(sys.stdin.buffer.read())
    out = Path(request["out"])
    notes = _confine(request["limits"], request["parent"], [out, Path.cwd()])
    status: dict[str, Any] = {"notes": notes}
    try:
        function = _parser(request["function"])
        status["result"] = function(**request["args"], out=out)
        text = json.dumps(status | {"ok": True}, allow_nan=False)
    except EdgeCompileError as error:
        text = json.dumps(status | {"ok": False, "error": _described(error), "result": None})
    except MemoryError:
        text = json.dumps(status | {"ok": False, "stage": "memory", "result": None})
    except Exception as error:
        # Whatever a library raises on a foreign file is the file's fault; the parent prints it as one line.
        stage = "memory" if any(word in str(error) for word in _MEMORY_WORDS) else "parse"
        what = f"{type(error).__name__}: {error}"
        text = json.dumps(status | {"ok": False, "stage": stage, "what": _one_line(what), "result": None})
    (out / STATUS).write_text(text, encoding="utf-8")
    sys.stdout.flush()
    return 0


def _parser(spec: str) -> Callable[..., Any]:
    module, _, name = spec.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _confine(limits: Mapping[str, int], parent: int, writable: list[Path]) -> list[str]:
    """Lower limits, cut network and other writes, die with the parent; notes on what was not possible."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the line above
    notes = []
    # A network namespace of its own has no interfaces; as an ordinary user it takes a user namespace too.
    if libc.unshare(_CLONE_NEWNET) != 0 and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        notes.append("network not cut: this system does not let a process unshare it")
    if not confine_writes(writable):
        notes.append("writes not confined: this system has no Landlock")
    for name, value in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NOFILE", limits["open_files"]),
        ("RLIMIT_CPU", limits["cpu_s"]),
        ("RLIMIT_FSIZE", limits["written_bytes"]),
        ("RLIMIT_AS", limits["memory_bytes"]),
    ):
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # At the soft limit of processor time comes SIGXCPU, which the parent can name; at the hard, SIGKILL.
        most = least + 1 if name == "RLIMIT_CPU" and hard == resource.RLIM_INFINITY else least
        resource.setrlimit(kind, (least, most))
    return notes


def _described(error: EdgeCompileError) -> dict[str, Any]:
    fields = {key: value for key, value in vars(error).items() if isinstance(value, (str, list))}
    return {"class": type(error).__name__, "message": str(error), "fields": fields}


def _one_line(text: str) -> str:
    return text_safe(" ".join(text.split()), 300)


if __name__ == "__main__":
    sys.exit(main())
