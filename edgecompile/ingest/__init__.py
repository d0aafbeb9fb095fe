"""Untrusted files: vet them on their bytes, then parse them in a child process.

`vet` runs nothing and imports no library that reads models; `parse_in_child` contains the library that then
does.
"""

from edgecompile.ingest.contain import ChildStatus, parse_in_child, read_status
from edgecompile.ingest.limits import ChildLimits, Kind, Limits, Vetted
from edgecompile.ingest.rules import RULES, text_safe
from edgecompile.ingest.saved import check_saved
from edgecompile.ingest.vet import vet

__all__ = [
    "RULES",
    "ChildLimits",
    "ChildStatus",
    "Kind",
    "Limits",
    "Vetted",
    "check_saved",
    "parse_in_child",
    "read_status",
    "text_safe",
    "vet",
]
