"""Keep the chatter of libraries off the user's terminal, and only that: errors are raised, not logged."""

from __future__ import annotations

import contextlib
import io
import logging
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
