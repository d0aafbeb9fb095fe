"""Reports of builds that made nothing: dry runs and failures; and errors of libraries as lines of ours."""

from __future__ import annotations

import errno
import importlib.metadata
import re
from typing import TYPE_CHECKING

from edgecompile import __version__, errors
from edgecompile.building.finish import model_of
from edgecompile.building.options import BuildOptions
from edgecompile.errors import EdgeCompileError, InputError, OutputError, Refused, TargetError, Unsupported
from edgecompile.report import Model, Refusal, Report
from edgecompile.teacher import Teacher

if TYPE_CHECKING:
    from edgecompile.building.jobs import Job

PACKAGES = ("torch", "onnx", "onnxruntime", "onnxsim", "onnxscript", "nncf", "torchao", "numpy")
_NO_MEMORY = re.compile(r"DefaultCPUAllocator|not enough memory|bad_alloc|Failed to allocate memory|can't allocate")


def tool_versions() -> dict[str, str]:
    """Versions of everything that has a hand in an artifact."""
    import platform

    found = {"edgecompile": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def told(error: BaseException) -> BaseException:
    """Memory and disk that ran out inside a library, as a line that a user can act on; any other error as it is.

    Where a library's clean-up stumbled while a signal was on its way up, the signal is what happened.
    """
    seen: BaseException | None = error
    while seen is not None and isinstance(seen, Exception):
        seen = seen.__context__
    if seen is not None:
        return seen
    match error:
        case EdgeCompileError():
            return error
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return OutputError(
                f"{error.filename or 'the disk'}: {error.strerror}; free some space, or set TMPDIR to another disk"
            )
        case MemoryError() | RuntimeError() if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return InputError("out of memory: use a smaller model, --batch or data set, or close other programs")
    return error


def planned(teacher: Teacher, job: Job, text: str, why: str) -> Report:
    """The report of a dry run: what would be done."""
    return Report(
        __version__,
        model_of(teacher),
        job.name,
        job.device.name,
        text,
        errors.OK,
        dry_run=True,
        batch=job.options.batch,
        threads=job.threads,
        seed=job.options.seed,
        notes=(f"pipeline: {why}", *teacher.notes),
        preprocessing=teacher.preprocessing,
        versions=tool_versions(),
    )


def failed(name: str, options: BuildOptions, error: BaseException) -> Report:
    """The report of a build that could not be done, with every refusal on its own."""
    code = errors.INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", errors.BUG)
    match error:
        case Unsupported():
            refusals = tuple(Refusal(error.rule, name, reason) for reason in error.reasons)
        case Refused():
            refusals = (Refusal(error.rule, error.where, str(error)),)
        case TargetError():
            refusals = (Refusal(error.rule, name, str(error)),)
        case _:
            refusals = (Refusal(type(error).__name__, name, str(error)),)
    return Report(
        __version__,
        Model(name),
        options.target,
        options.device or "",
        options.pipeline or "",
        code,
        (code,),
        seed=options.seed,
        batch=options.batch,
        refusals=refusals,
        versions=tool_versions(),
    )
