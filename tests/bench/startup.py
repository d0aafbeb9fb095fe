"""How long `edgecompile --help` takes beside a typer program of two verbs: `python -m tests.bench.startup`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROUNDS = 15
LIMIT_MS = 100
TWO_VERBS = """
import typer
app = typer.Typer()

@app.command()
def one():
    "The first verb."

@app.command()
def two():
    "The second verb."

app()
"""


def main() -> int:
    """Print both medians and their difference in ms; 1 when the difference is over the limit."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.py"
        small.write_text(TWO_VERBS)
        commands = {"two verbs": [str(small), "--help"], "edgecompile": ["-m", "edgecompile", "--help"]}
        for command in commands.values():  # byte code and the disk's cache
            _seconds(command)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for index in range(ROUNDS):
            for name in sorted(commands, reverse=bool(index % 2)):
                times[name].append(_seconds(commands[name]))
    for name, taken in times.items():
        print(f"{name:12} {1e3 * median(taken):7.1f} ms  (median of {ROUNDS}, interleaved)")
    extra = 1e3 * median(a - b for a, b in zip(times["edgecompile"], times["two verbs"], strict=True))
    print(f"difference   {extra:7.1f} ms  (at most {LIMIT_MS})")
    return int(extra > LIMIT_MS)


def _seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
