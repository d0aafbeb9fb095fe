"""Which tensor axes shrink together, and shrinking them."""

from __future__ import annotations

from edgecompile.axes.couple import Coupling, Group, Member, couple
from edgecompile.axes.shrink import cut, shrink
from edgecompile.axes.work import Work, macs

__all__ = ["Coupling", "Group", "Member", "Work", "couple", "cut", "macs", "shrink"]
