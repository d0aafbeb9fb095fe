"""Command lines for ssh and scp, and what their complaints mean to a user."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgecompile.errors import DeviceLost, SpecError, TargetError
from edgecompile.remote.address import Address
from edgecompile.remote.wire import printable

CONFIG = "EDGECOMPILE_SSH_CONFIG"
_OPTIONS = (
    "BatchMode=yes",  # never a question on the terminal
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=10",
    "ConnectionAttempts=1",
    "ServerAliveInterval=5",  # with the next: a silent line is dead after 15 s
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "LogLevel=ERROR",
)
LOST = 255  # ssh's own exit status; any other is the remote command's


def ssh(address: Address) -> list[str]:
    """A shell on the device that reads its script from standard input: no word of ours is parsed twice."""
    port = ["-p", str(address.port)] if address.port else []
    user = ["-l", address.user] if address.user else []
    return [_tool("ssh"), *_shared(), *port, *user, "-T", "--", address.host, "sh", "-s"]


def scp(address: Address, files: Sequence[Path], folder: str) -> list[str]:
    """Copy into a folder there, from absolute paths: a colon before the first slash would name a host."""
    port = ["-P", str(address.port)] if address.port else []
    sources = [str(path.absolute()) for path in files]
    return [_tool("scp"), "-q", "-B", "-r", *_shared(), *port, "--", *sources, f"{address.destination}:{folder}/"]


def _shared() -> list[str]:
    config = os.environ.get(CONFIG, "")
    if config and not Path(config).is_file():
        raise SpecError(f"{CONFIG}={config}: no such file; it must name a configuration for `ssh -F`")
    chosen = ["-F", config] if config else []
    return [*chosen, *(word for option in _OPTIONS for word in ("-o", option))]


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise TargetError(f"{name} is not installed here: sudo apt install openssh-client", rule="toolchain")
    return path


def unreachable(address: Address, complaint: str) -> DeviceLost:
    """The one line for a connection that could not be made, or broke, from what ssh wrote to standard error."""
    where = f"{address.kind}://{address.destination}" + (f":{address.port}" if address.port else "")
    port = f"-p {address.port} " if address.port else ""
    target = f"[{address.host}]:{address.port}" if address.port not in (0, 22) else address.host
    if "HOST IDENTIFICATION HAS CHANGED" in complaint:
        return DeviceLost(
            f"{where}: refused: its host key is not the one that is known, it may be another machine; "
            f"if it was reinstalled: ssh-keygen -R '{target}'"
        )
    if "Host key verification failed" in complaint or "host key is known for" in complaint:
        return DeviceLost(
            f"{where}: refused: its host key is not known; connect once by hand and compare it: "
            f"ssh {port}{address.destination}"
        )
    if "Permission denied" in complaint:
        return DeviceLost(f"{where}: it accepted no key; give it yours: ssh-copy-id {port}{address.destination}")
    if re.search(r"Could not resolve hostname|Name or service not known", complaint):
        return DeviceLost(f"{where}: no host of that name; check the name and the network")
    if match := re.search(
        r"Connection refused|(?:Connection |Operation )?timed out|No route to host|Network is unreachable", complaint
    ):
        return DeviceLost(f"{where}: not reachable ({match[0].lower()}); check that it runs, its port and the network")
    lines = [line for line in complaint.splitlines() if line.strip()]
    why = printable(lines[-1]) if lines else "ssh ended without a word"
    return DeviceLost(f"{where}: the connection failed: {why}")
