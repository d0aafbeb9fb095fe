"""The methods by which units are ranked, by name."""

from __future__ import annotations

from typing import Literal

from edgecompile.axes import Coupling
from edgecompile.errors import PassError
from edgecompile.pass_manager import Context
from edgecompile.passes import _importance, _local
from edgecompile.passes._importance import Scores
from edgecompile.program import Program

Method = Literal["magnitude", "taylor", "taylor_batches", "fisher", "obs", "kcm", "random"]
GRADIENTS = ("taylor", "taylor_batches", "fisher")
"""Those that look at training data where there is any."""


def scored(who: str, method: str, program: Program, coupling: Coupling, ctx: Context, samples: int) -> Scores:
    """What each unit is worth; raises `PassError`, in the name of the pass `who`, where data is missing."""
    if method == "magnitude" or not coupling.groups:
        return _importance.magnitude(program, coupling)
    if method == "random":
        return _importance.random(coupling, ctx.seed)
    data = (ctx.train or ctx.calib) if method in GRADIENTS else (ctx.calib or ctx.train)
    if data is None:
        raise PassError(f"{who}: method={method} needs data: give --train or --calib, or method=magnitude")
    if program.batch is not None:
        fixed = f"and the program's is fixed at {program.batch}"
        raise PassError(f"{who}: method={method} needs a dynamic batch, {fixed}")
    data = data.take(samples)
    if method in ("obs", "kcm"):
        return (_local.obs if method == "obs" else _local.kcm)(program, coupling, data, ctx.seed)
    if method == "fisher":
        return _importance.fisher(program, coupling, data, ctx.seed)
    return _importance.taylor(program, coupling, data, batches=method == "taylor_batches")
