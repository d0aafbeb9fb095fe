"""Progress on standard error: a bar on a terminal, a line a stage elsewhere; and what --verbose and --dump show."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompile.pass_manager import Pass
    from edgecompile.program import Program


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A callback of (stage, done, total) for the time of a build."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("starting", total=None)

        def tell(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total if total > 1 else None)

        yield tell


@contextmanager
def printing() -> Iterator[None]:
    """For what prints to a reader that may have gone (`| head -1`): that is no error of ours."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        deafen()


def deafen() -> None:
    """Send what is still to be printed nowhere, so that the flush at exit is quiet too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str) -> None:
    """One line on standard error, control characters escaped."""
    from edgecompile.ingest.rules import text_safe

    print(f"edgecompile: {text_safe(' '.join(text.split()), 4000)}", file=sys.stderr)


def _lines() -> Callable[[str, int, int], None]:
    last: list[str] = []

    def tell(stage: str, done: int, total: int) -> None:
        if last[-1:] != [stage]:
            last.append(stage)
            print(f"edgecompile: {stage}", file=sys.stderr)

    return tell


@dataclass(frozen=True)
class Observers:
    """Called after each pass: a line on standard error when verbose, a numbered text file when dumping."""

    dump: Path | None
    verbose: bool

    def __call__(self, index: int, one: Pass, program: Program) -> None:
        """Show one pass."""
        if self.verbose:
            count = sum(1 for n in program.graph.graph.nodes if n.op == "call_function")
            print(f"edgecompile: {index:2d} {one.name}: {count} operators", file=sys.stderr)
        if self.dump is not None:
            from edgecompile.store import writing

            with writing(self.dump):
                self.dump.mkdir(parents=True, exist_ok=True)
                (self.dump / f"{index:02d}_{one.name}.txt").write_text(str(program) + "\n", encoding="utf-8")


def table(rows: list[tuple[Any, ...]], heads: tuple[str, ...]) -> None:
    """A plain table on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for head in heads:
        shown.add_column(head)
    for row in rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    # a file takes lines of any length; a terminal wraps them
    Console(width=None if sys.stdout.isatty() else 1000).print(shown)
