"""Program: capture, clone, retrace, and its text form."""

from edgecompile.program.core import Program
from edgecompile.program.graph import BATCH, DynamicShapes, attribute, drop_dead, quiet_export, unlift
from edgecompile.program.text import op_name, text_form, type_text

__all__ = [
    "BATCH",
    "DynamicShapes",
    "Program",
    "attribute",
    "drop_dead",
    "op_name",
    "quiet_export",
    "text_form",
    "type_text",
    "unlift",
]
