"""The command line: verbs, exit codes, one-line errors. Everything heavy is imported inside the verbs."""

from edgecompile.cli.main import app, main

__all__ = ["app", "main"]
