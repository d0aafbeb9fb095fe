"""Keep the chatter of libraries off the user's terminal, and only that: errors are raised, not logged."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced(*loggers: str, stdout: bool = False, stderr: bool = False) -> Iterator[None]:
    """Quiet these loggers and all warnings inside the block; `stdout`, `stderr`: drop what is printed."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            if stdout:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            if stderr:
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def mute() -> Iterator[None]:
    """Drop what C code writes to standard output inside the block; nothing happens where that is closed.

    HiGHS prints lines of its own whatever it is told, into what may be somebody's JSON.
    """
    try:
        kept = os.dup(1)
    except OSError:
        yield
        return
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
