"""Profile a Core ML package on a Mac over ssh. Not run here: there was no Mac.

Written from Apple's documentation: `xcrun coremlcompiler compile` on the Mac, then coremltools' CompiledMLModel.
"""

from __future__ import annotations

import re
import secrets
import shlex
import time
from pathlib import Path

from edgecompile.errors import DeviceLost, InputError, OutputError, TargetError
from edgecompile.remote.address import Address
from edgecompile.remote.measured import Heard, Measured, measured
from edgecompile.remote.ssh import Plan, Progress, Run, asked, clear_up, listen, tell, upload
from edgecompile.remote.wire import Transcript, printable

NOT_RUN = "mac:// was built from the documentation and not run here"
_KINDS = (".mlpackage", ".mlmodel")

# A constant but for the nonce and the interpreter, which were checked. It is read by `sh -s` from standard input.
_PROBE = r"""
{
say() { printf '%s %s %s\n' NONCE "$1" "$2"; }
say os "$(uname -s)"
xcrun --find coremlcompiler >/dev/null 2>&1 || say missing xcode
PYTHON -c 'import coremltools' >/dev/null 2>&1 || say missing coremltools
say system "$(sw_vers -productVersion 2>/dev/null)"
say cpu "$(sysctl -n machdep.cpu.brand_string 2>/dev/null)"
D=$(mktemp -d 2>&1) && say folder "$D" || say nofolder "$D"
} </dev/null
"""


def profile_mac(address: Address, artifact: Path, plan: Plan, progress: Progress | None = None) -> Measured:
    """Time a Core ML package on the Mac, on whatever units Core ML picks (not run here)."""
    model = find_model(artifact)
    if plan.batch != 1:
        raise InputError(f"{model}: Core ML packages have a fixed batch; build it for the batch that you want")
    deadline = time.monotonic() + plan.timeout_s
    nonce = secrets.token_hex(8)
    tell(progress, "connecting", 0, 1)
    facts = read_probe(asked(address, probe_script(nonce, address.python), plan.timeout_s), nonce, address)
    folder = str(facts.pop("folder"))
    run = Run(address, "mac", folder, plan, Transcript(nonce), deadline, progress)
    files = {f"model{model.suffix}": model}
    golden = model.with_name("golden.npz")
    if golden.is_file():
        files["golden.npz"] = golden
    job = {"nonce": nonce, "rounds": plan.rounds, "samples": plan.samples, "model": f"model{model.suffix}"}
    try:
        upload(run, files, "mac_script.py", job)
        listen(run, run_script(folder, model.suffix, address.python))
    finally:
        clear_up(run)
    heard = run.transcript.heard()
    return measured(
        address.text, "mac", Heard(heard.rounds, environment={**facts, **heard.environment}, notes=(NOT_RUN,))
    )


def find_model(artifact: Path) -> Path:
    """The package, or the one in a folder; raises `InputError`."""
    if artifact.suffix in _KINDS and artifact.exists():
        return artifact
    found = sorted(p for kind in _KINDS for p in artifact.glob(f"*{kind}")) if artifact.is_dir() else []
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise InputError(f"{artifact}: mac:// runs one .mlpackage or .mlmodel, found {names}")
    return found[0]


def probe_script(nonce: str, python: str) -> str:
    """The script that looks at the Mac and makes the folder."""
    return _PROBE.replace("NONCE", nonce).replace("PYTHON", shlex.quote(python))


def run_script(folder: str, suffix: str, python: str) -> str:
    """Compile the package there, then time it; the folder goes in any case."""
    there = shlex.quote(folder)
    compiled = f"xcrun coremlcompiler compile model{suffix} . >&2"
    return f"cd {there} && {compiled} && {shlex.quote(python)} mac_script.py; c=$?; cd /; rm -rf -- {there}; exit $c\n"


def read_probe(text: str, nonce: str, address: Address) -> dict[str, object]:
    """The Mac's facts with the folder; raises one line for what is missing."""
    found = re.findall(rf"^{nonce} (\w+) (.*)$", text, re.MULTILINE)
    values, missing = dict(found), [value.strip() for name, value in found if name == "missing"]
    where = address.text
    if not values:
        raise DeviceLost(f"{where}: its shell did not run a script: {printable(text) or 'no answer'}")
    if values.get("os", "").strip() != "Darwin":
        raise TargetError(
            f"{where}: it runs {printable(values.get('os'))}, not macOS; a board is ssh://", rule="toolchain"
        )
    if "xcode" in missing:
        raise TargetError(
            f"{where}: coremlcompiler is missing there: install Xcode, then xcode-select", rule="toolchain"
        )
    if missing:
        raise TargetError(
            f"{where}: {address.python} there has no coremltools: {address.python} -m pip install coremltools",
            rule="toolchain",
        )
    folder = values.get("folder", "").strip()
    if not re.fullmatch(r"/[A-Za-z0-9._/+-]+", folder):
        raise OutputError(f"{where}: no temporary folder can be made there: {printable(values.get('nofolder'))}")
    facts: dict[str, object] = {name: printable(values.get(name)) for name in ("os", "system", "cpu")}
    return {**facts, "folder": folder}
