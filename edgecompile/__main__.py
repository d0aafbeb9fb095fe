"""`python -m edgecompile` is the command line."""

from edgecompile.cli import main

main()
