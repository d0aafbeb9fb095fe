"""The device at the other end of ssh: what it has, how it is asked, and what its answers mean."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from edgecompile.errors import DeviceLost, EdgeCompileError, OutputError, TargetError
from edgecompile.remote.address import Address
from edgecompile.remote.wire import printable

ARCHITECTURES = ("x86_64", "aarch64", "arm64")
"""For which onnxruntime and numpy are on PyPI."""
_FOLDER = re.compile(r"/[A-Za-z0-9._/+-]+")
_SPARE_BYTES = 16_000_000  # onnxruntime's profile and the golden outputs
_NO_SPACE = 28

# A constant but for the nonce and the interpreter, which were checked. It is read by `sh -s` from standard input,
# as a whole before it runs: no program in it can swallow the rest.
_PROBE = r"""
{
say() { printf '%s %s %s\n' NONCE "$1" "$2"; }
say os "$(uname -s)"
say machine "$(uname -m)"
P=PYTHON
M=python3
if command -v "$P" >/dev/null 2>&1; then
  say python "$("$P" -c 'import platform; print(platform.python_version())' 2>/dev/null)"
  M=$("$P" -c 'import importlib.util as u
print(" ".join(n for n in ("numpy", "onnxruntime") if u.find_spec(n) is None))' 2>/dev/null || echo python3)
fi
if [ -e /etc/nv_tegra_release ]; then
  say tegra "$(head -n 1 /etc/nv_tegra_release)"
  T=$(command -v trtexec || command -v /usr/src/tensorrt/bin/trtexec)
  say trtexec "$T"
  if [ -n "$T" ]; then
    say banner "$("$T" --help 2>&1 | grep -m 1 'TensorRT')"
    [ "$M" = python3 ] || M=
  fi
fi
say missing "$M"
if [ -z "$M" ]; then
  D=$(mktemp -d 2>&1) && say folder "$D" || say nofolder "$D"
  say free "$(df -Pk "${D:-/tmp}" 2>/dev/null | tail -n 1)"
fi
say done yes
} </dev/null
"""


@dataclass(frozen=True)
class Board:
    """What the device has: system, interpreter, a fresh folder, and on a Jetson the release and trtexec."""

    machine: str
    python: str
    folder: str
    free_bytes: int | None
    tegra: str = ""
    trtexec: str = ""
    banner: str = ""


def probe_script(nonce: str, python: str) -> str:
    """The script that looks at the device and makes the folder, once everything else is there."""
    return _PROBE.replace("NONCE", nonce).replace("PYTHON", shlex.quote(python))


def run_script(folder: str, python: str) -> str:
    """The script that runs the measurement; the folder goes even where the interpreter crashes.

    The interpreter inherits standard input, and leaves when it closes.
    """
    there = shlex.quote(folder)
    return f"cd {there} && {shlex.quote(python)} board_script.py; c=$?; cd /; rm -rf -- {there}; exit $c\n"


def remove_script(folder: str) -> str:
    """The script that clears up after a connection that broke."""
    return f"rm -rf -- {shlex.quote(folder)}\n"


def read_probe(text: str, nonce: str, address: Address) -> Board:
    """What the probe found; raises one line for a system that cannot run the model."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        mark, _, rest = line.partition(" ")
        if mark == nonce:
            name, _, value = rest.partition(" ")
            found[name] = value.strip()
    where = address.text
    if "done" not in found:
        raise DeviceLost(
            f"{where}: its shell did not run a script; it needs a POSIX sh: {printable(text) or 'no answer'}"
        )
    if found.get("os") != "Linux":
        raise TargetError(
            f"{where}: it runs {printable(found.get('os'))}, not Linux; a Mac is mac://", rule="toolchain"
        )
    machine = printable(found.get("machine"))
    if found.get("missing"):
        raise _missing(where, found["missing"].split(), machine, address.python)
    if "tegra" in found and not found.get("trtexec"):
        found["trtexec"] = ""
    if "folder" not in found:
        raise OutputError(f"{where}: no temporary folder can be made there: {printable(found.get('nofolder'))}")
    if not _FOLDER.fullmatch(found["folder"]):
        raise DeviceLost(f"{where}: its mktemp gave {printable(found['folder'])!r}, which is not a plain path")
    free = re.search(r"\s(-?\d+)\s+\d+%\s", found.get("free", ""))
    return Board(
        machine,
        printable(found.get("python")),
        found["folder"],
        int(free[1]) * 1024 if free else None,
        printable(found.get("tegra")),
        found.get("trtexec", ""),
        printable(found.get("banner")),
    )


def _missing(where: str, names: list[str], machine: str, python: str) -> TargetError:
    if names == ["python3"]:
        if python != "python3":
            return TargetError(f"{where}: {python} is not there, or does not run; check the path", rule="toolchain")
        return TargetError(f"{where}: python3 is missing there: sudo apt install python3", rule="toolchain")
    if machine not in ARCHITECTURES:
        return TargetError(
            f"{where}: wrong architecture: {machine} has no builds of {' and '.join(names)}; "
            f"it must be one of {', '.join(ARCHITECTURES)}",
            rule="toolchain",
        )
    return TargetError(
        f"{where}: {python} there has no {' and '.join(names)}: {python} -m pip install {' '.join(names)} "
        "(in a virtual environment: name it with ?python=/path/to/bin/python)",
        rule="toolchain",
    )


def check_space(board: Board, size_bytes: int, where: str) -> None:
    """Refuse to fill up the device's disk."""
    if board.free_bytes is not None and board.free_bytes < size_bytes + _SPARE_BYTES:
        raise OutputError(
            f"{where}: its disk is full: {board.folder} needs {(size_bytes + _SPARE_BYTES) / 1e6:.0f} MB and has "
            f"{board.free_bytes / 1e6:.0f} MB; free some space, or set TMPDIR there"
        )


def failed_copy(complaint: str, where: str) -> EdgeCompileError | None:
    """What a failed scp means when the connection itself was good; None when it was not."""
    if re.search(r"No space left|quota exceeded", complaint, re.IGNORECASE):
        return OutputError(f"{where}: its disk is full; free some space there")
    if re.search(r"write remote|remote open|dest open|Failure", complaint):
        return OutputError(f"{where}: a file could not be written there, the disk may be full: {printable(complaint)}")
    if "not found" in complaint:
        return TargetError(f"{where}: it has neither sftp nor scp: sudo apt install openssh-server", rule="toolchain")
    return None


def failed_run(text: str, errno: int, where: str) -> EdgeCompileError:
    """What the script on the device said before it gave up."""
    if errno == _NO_SPACE:
        return OutputError(f"{where}: its disk is full: {text}; free some space there")
    return TargetError(f"{where}: {text}")


def crashed(code: int, complaint: str, where: str) -> EdgeCompileError:
    """What an exit status without a last word means; a shell adds 128 to the number of a signal."""
    match code:
        case 132:
            return TargetError(f"{where}: illegal instruction: onnxruntime there is built for another processor")
        case 137:
            return TargetError(f"{where}: the run was killed there, most likely for want of memory")
        case 126 | 127:
            return TargetError(f"{where}: the interpreter does not run there: {printable(complaint)}", rule="toolchain")
    last = [line for line in complaint.splitlines() if line.strip()]
    return TargetError(f"{where}: the run ended with status {code}: {printable(last[-1]) if last else 'no message'}")
