"""The typer application, and what every verb ends in: an exit code, and one line when something is wrong."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from typing import Annotated, NoReturn, cast

import typer

from edgecompile import __version__, errors
from edgecompile.cli import bench, build, estimate, inspect, looks, profile, verify
from edgecompile.cli.progress import deafen, printing, warn

app = typer.Typer(
    name="edgecompile",
    help="Compile a trained model for an edge device under a latency budget, and prove that it holds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("build")(build.command())
app.command("inspect")(inspect.inspect)
app.command("estimate")(estimate.estimate)
app.command("profile")(profile.profile)
app.command("verify")(verify.verify)
app.command("run")(verify.run)
app.command("explain")(looks.explain)
app.command("list")(looks.list_)
app.command("doctor")(looks.doctor)
app.command("compare")(looks.compare)
app.add_typer(bench.app, name="bench")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgecompile {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class Terminated(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that locks and staging folders are left in order."""

    exit_code = errors.TERMINATED


def _terminate(signum: int, frame: object) -> NoReturn:
    raise Terminated


def _swallowed(what: sys.UnraisableHookArgs) -> None:
    """Send a signal again that fell on a weak reference's callback or a destructor, where Python drops exceptions."""
    number = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(what.exc_type)
    if number is None:
        sys.__unraisablehook__(what)
        return
    again = threading.Timer(0.02, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def main() -> NoReturn:
    """Run the command line and exit with the code of the design."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _swallowed
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller: 2>&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (for the rest of the process)
        else:
            stream.reconfigure(errors="backslashreplace")  # a terminal without an arrow is no reason to fail
    sys.exit(_run())


_ClickError = cast(
    "type[Exception]", typer.BadParameter.__mro__[2]
)  # of click, which typer carries under a name of its own


def _run() -> int:
    try:
        with printing():
            code = app(standalone_mode=False)
            if code == errors.INTERRUPTED:  # typer turns Ctrl-C into an exit without a word
                raise KeyboardInterrupt
            return code if isinstance(code, int) else errors.OK
        return errors.OK
    except errors.EdgeCompileError as error:
        return _say(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _say(
            "interrupted; the last good artifact is untouched, the same command goes on from here",
            errors.INTERRUPTED,
        )
    except Terminated:
        return _say(
            "terminated; the last good artifact is untouched, the same command goes on from here",
            errors.TERMINATED,
        )
    except _ClickError as error:
        return _usage(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        deafen()
        return _say(f"{error.filename or 'standard output'}: {error.strerror}; free some space", errors.USAGE)
    except MemoryError:
        return _say("out of memory: use a smaller model, batch or data set, or close other programs", errors.USAGE)


def _usage(error: BaseException) -> int:
    """What typer says of a wrong command line, in one line with near spellings; the help where nothing was asked."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(getattr(error, "message", ""))
        return errors.USAGE
    text = str(getattr(error, "format_message", lambda: str(error))())
    return _say(f"{text}; see --help", errors.USAGE)


def _say(text: str, code: int) -> int:
    warn(text)
    return code
