"""Parsers that misbehave in every way that a library on a hostile file might."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgecompile.errors import InputError, Refused, Unsupported


def good(out: Path, **args: Any) -> dict[str, Any]:
    """Write a file and say what was seen."""
    (out / "data.txt").write_text("here")
    return {
        "args": args,
        "cwd": os.getcwd(),
        "env": dict(os.environ),
        "files": os.listdir("."),
        "torch": "torch" in sys.modules,
    }


def sleep(out: Path) -> None:
    time.sleep(600)


def silent(out: Path) -> None:
    """Close the output, so that only the clock can tell that the child is there."""
    os.close(1)
    os.close(2)
    time.sleep(600)


def loop(out: Path) -> None:
    while True:
        pass


def memory(out: Path) -> None:
    data = []
    while True:
        data.append(bytearray(256 << 20))


def torch_memory(out: Path) -> None:
    import torch

    torch.empty(1 << 46)


def leave(out: Path) -> None:
    print("half way")
    print("leaving early", flush=True)
    os._exit(3)


def segfault(out: Path) -> None:
    ctypes.string_at(0)


def killed(out: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def realtime_signal(out: Path) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    os.kill(os.getpid(), 40)
    time.sleep(60)


def network(out: Path, port: int) -> str:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError as error:
        return f"failed: {error}"
    return "connected"


def noisy(out: Path) -> None:
    for _ in range(200):
        sys.stdout.write("x" * (1 << 20))
    sys.stdout.flush()
    os._exit(4)


def big_file(out: Path) -> None:
    with (out / "big").open("wb") as file:
        while True:
            file.write(b"\0" * (1 << 20))


def refuse(out: Path) -> None:
    raise Refused("EC-IN-007", "file", "at most 3", "4 things", "use fewer")


def unsupported(out: Path) -> None:
    raise Unsupported("net", ["Foo (node a)", "Bar (node b)"])


def input_error(out: Path) -> None:
    raise InputError("a plain reason")


def other_error(out: Path) -> None:
    raise KeyError("odd\n\x1b[31mname")


def write_elsewhere(out: Path, target: str) -> str:
    try:
        Path(target).write_text("outside")
    except OSError as error:
        return type(error).__name__
    return "written"


def link(out: Path) -> None:
    (out / "weights").symlink_to("/etc/passwd")


def forged(out: Path) -> None:
    (out / "status.json").write_text('{"ok": "yes"}')
    os._exit(0)


def huge_status(out: Path) -> None:
    (out / "status.json").write_text(" " * (5 << 20))
    os._exit(0)


def forged_error(out: Path) -> None:
    (out / "status.json").write_text(
        '{"ok": false, "error": {"class": "SystemExit", "message": "bye\\u001b", "fields": {"__class__": "x"}}}'
    )
    os._exit(0)


def not_json(out: Path) -> object:
    return object()


def leaves_a_daemon(out: Path) -> str:
    child = subprocess.Popen(["sleep", "300"])
    return str(child.pid)
