"""Profile over ssh: copy a model and one script to a board, run it, keep what arrives round by round."""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

from edgecompile.errors import DeviceLost
from edgecompile.remote import jetson
from edgecompile.remote.address import Address
from edgecompile.remote.artifact import Parcel
from edgecompile.remote.board import (
    Board,
    check_space,
    crashed,
    failed_copy,
    failed_run,
    probe_script,
    read_probe,
    remove_script,
    run_script,
)
from edgecompile.remote.measured import Heard, Measured, measured
from edgecompile.remote.ssh_command import LOST, scp, ssh, unreachable
from edgecompile.remote.wire import Transcript, printable

Progress = Callable[[str, int, int], None]
_LONGEST_LINE = 80_000_000


@dataclass(frozen=True)
class Plan:
    """How an artifact is timed: for all kinds of devices alike. `samples` single calls are aimed at."""

    threads: int = 1
    batch: int = 1
    rounds: int = 30
    timeout_s: float = 600.0
    samples: int = 1000

    def for_onnxruntime(self, nonce: str) -> dict[str, Any]:
        """What the script is told that times with ONNX Runtime."""
        return {
            "nonce": nonce,
            "tool": "onnxruntime",
            "threads": self.threads,
            "batch": self.batch,
            "rounds": self.rounds,
            "samples": self.samples,
            "budget_s": min(60.0, self.timeout_s / 2),
        }


@dataclass(frozen=True)
class Run:
    """One measurement under way: where, in which folder there, until when, and what was heard."""

    address: Address
    kind: str
    folder: str
    plan: Plan
    transcript: Transcript
    deadline: float
    progress: Progress | None


def profile_ssh(address: Address, parcel: Parcel, plan: Plan, progress: Progress | None = None) -> Measured:
    """Time a model on the board; raises `DeviceLost` with what arrived when the connection drops."""
    deadline = time.monotonic() + plan.timeout_s
    nonce = secrets.token_hex(8)
    tell(progress, "connecting", 0, 1)
    board = read_probe(asked(address, probe_script(nonce, address.python), plan.timeout_s), nonce, address)
    run = Run(address, _kind(board), board.folder, plan, Transcript(nonce), deadline, progress)
    try:
        job = _job(board, parcel, plan, nonce)
        check_space(board, parcel.size_bytes, address.text)
        upload(run, parcel.files, "board_script.py", job)
        listen(run, run_script(board.folder, address.python))
    finally:
        clear_up(run)
    return measured(address.text, run.kind, _heard(board, run.transcript, plan))


def _kind(board: Board) -> str:
    return "jetson" if board.trtexec else "ssh"


def _heard(board: Board, transcript: Transcript, plan: Plan) -> Heard:
    if board.trtexec:
        return jetson.heard(transcript, board.tegra, board.banner, plan.rounds)
    heard = transcript.heard()
    if board.tegra:
        return Heard(
            heard.rounds, heard.clocks_mhz, heard.temperatures_c, heard.rows, heard.environment,
            (*heard.notes, "trtexec is not there (sudo apt install libnvinfer-bin): timed on the CPU"),
        )  # fmt: skip
    return heard


def _job(board: Board, parcel: Parcel, plan: Plan, nonce: str) -> dict[str, Any]:
    """What the script on the board is told."""
    if board.trtexec:
        return {"nonce": nonce, **jetson.job(board.trtexec, board.banner, parcel, plan.batch, plan.samples)}
    return plan.for_onnxruntime(nonce)


def asked(address: Address, script: str, timeout_s: float) -> str:
    """The answer of a short script."""
    try:
        done = subprocess.run(
            ssh(address), input=script, capture_output=True, text=True, errors="replace", timeout=min(timeout_s, 60)
        )
    except subprocess.TimeoutExpired:
        raise DeviceLost(f"{address.text}: it accepted the connection and did not answer within a minute") from None
    if done.returncode == LOST:
        raise unreachable(address, done.stderr)
    return done.stdout


def upload(run: Run, files: Mapping[str, Path], script: str, job: Mapping[str, Any]) -> None:
    """Send files under the names that they have there, one of our scripts, and what it is told as job.json."""
    tell(run.progress, "uploading", 0, 1)
    where = run.address.text
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        for name, path in files.items():
            (stage / name).symlink_to(path.absolute())
        (stage / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (stage / script).write_bytes((resources.files("edgecompile.remote") / script).read_bytes())
        command = scp(run.address, sorted(stage.iterdir()), run.folder)
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                timeout=max(run.deadline - time.monotonic(), 1),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DeviceLost(f"{where}: the upload did not end in time; raise the timeout") from None
    if done.returncode:
        raise failed_copy(done.stderr, where) or unreachable(run.address, done.stderr)


def listen(run: Run, script: str) -> None:
    """Run the script and take its lines in, until it ends, the line drops or time is up."""
    transcript, late = run.transcript, False
    with tempfile.TemporaryFile() as complaints, _running(ssh(run.address), complaints) as process:
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # gone already: the status says so
            process.stdin.write(script.encode())
            process.stdin.flush()
        for line in _lines(process, run.deadline):
            if line is None:
                late = True
                break
            if transcript.hear(line) == "round":
                tell(run.progress, "measuring", len(transcript.rounds), run.plan.rounds)
            if transcript.ended:
                break
        with contextlib.suppress(OSError):
            process.stdin.close()  # which is how the script learns that nobody listens any more
        if late:
            process.kill()
        code = process.wait()
        complaints.seek(0)
        complaint = complaints.read().decode("utf-8", "replace")
    if transcript.error:
        raise failed_run(transcript.error, transcript.errno, run.address.text)
    if transcript.ended:
        return
    if late or code == LOST:
        raise _lost(run, "time was up" if late else "the connection dropped", complaint)
    raise crashed(code, complaint, run.address.text)


def _lost(run: Run, why: str, complaint: str) -> DeviceLost:
    where, done, total = run.address.text, len(run.transcript.rounds), run.plan.rounds
    detail = f" ({printable(complaint)})" if complaint.strip() else ""
    partial = measured(where, run.kind, run.transcript.heard(), f"{why} after {done} of {total} rounds")
    return DeviceLost(
        f"{where}: {why} after {done} of {total} rounds{detail}; what arrived is kept, measure again", partial
    )


def clear_up(run: Run) -> None:
    """Remove the folder, in case the script there could not; the device may be gone for good."""
    if not run.transcript.removed:
        with contextlib.suppress(DeviceLost):
            asked(run.address, remove_script(run.folder), 15)


@contextlib.contextmanager
def _running(command: list[str], complaints: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process that does not outlive the block."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str | None]:
    """Lines as they come; None once the deadline has passed."""
    waiting: queue.Queue[bytes] = queue.Queue()
    stream = process.stdout
    assert stream is not None

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):  # closed under us
            while line := stream.readline(_LONGEST_LINE):
                waiting.put(line)
        waiting.put(b"")

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = waiting.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            yield None
            return
        if not line:
            return
        yield line.decode("utf-8", "replace")


def tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    """Progress, for those who asked for it."""
    if progress is not None:
        progress(stage, done, total)
