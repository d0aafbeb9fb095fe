"""Profile on this machine: the script that boards run, in a child process of its own."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from importlib import resources
from pathlib import Path

from edgecompile.remote.artifact import Parcel
from edgecompile.remote.board import crashed, failed_run
from edgecompile.remote.measured import Measured, measured
from edgecompile.remote.ssh import Plan, Progress, tell
from edgecompile.remote.wire import Transcript

_SCRIPT = "board_script.py"


def profile_local(parcel: Parcel, plan: Plan, progress: Progress | None = None) -> Measured:
    """Time a model here with ONNX Runtime; what arrived until `timeout_s` is kept and labelled."""
    nonce = secrets.token_hex(8)
    transcript = Transcript(nonce)
    folder = Path(tempfile.mkdtemp(prefix="edgecompile-"))
    try:
        for name, path in parcel.files.items():
            shutil.copyfile(path, folder / name)
        (folder / "job.json").write_text(json.dumps(plan.for_onnxruntime(nonce)), encoding="utf-8")
        (folder / _SCRIPT).write_bytes((resources.files("edgecompile.remote") / _SCRIPT).read_bytes())
        late = _listened(folder, transcript, plan, progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    why = f"time was up after {len(transcript.rounds)} of {plan.rounds} rounds" if late else ""
    return measured("host", "host", transcript.heard(), why)


def _listened(folder: Path, transcript: Transcript, plan: Plan, progress: Progress | None) -> bool:
    """Run the script and take its lines in; whether it was stopped for want of time."""
    late = threading.Event()
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            [sys.executable, str(folder / _SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        ) as child,
    ):

        def stop() -> None:
            late.set()
            child.kill()

        assert child.stdin is not None
        assert child.stdout is not None
        watch = threading.Timer(plan.timeout_s, stop)
        watch.start()
        try:
            for line in child.stdout:
                if transcript.hear(line) == "round":
                    tell(progress, "measuring", len(transcript.rounds), plan.rounds)
        except BaseException:
            child.kill()
            raise
        finally:
            watch.cancel()
            with contextlib.suppress(OSError):
                child.stdin.close()
        code = child.wait()
        complaints.seek(0)
        complaint = complaints.read().decode("utf-8", "replace")
    if transcript.error:
        raise failed_run(transcript.error, transcript.errno, "host")
    if not transcript.ended and not late.is_set():
        raise crashed(code, complaint, "host")
    return late.is_set()
