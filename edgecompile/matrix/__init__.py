"""The matrix: every model on every target, in float and in INT8, built, refused with a reason, or run and equal."""

from __future__ import annotations

from edgecompile.matrix.cells import MODES, Cell, plan, shard
from edgecompile.matrix.ledger import Ledger, Row
from edgecompile.matrix.parent import Limits, run
from edgecompile.matrix.table import HEADER, cells_of, csv_text, plain, summary

__all__ = [
    "HEADER",
    "MODES",
    "Cell",
    "Ledger",
    "Limits",
    "Row",
    "cells_of",
    "csv_text",
    "plain",
    "plan",
    "run",
    "shard",
    "summary",
]
