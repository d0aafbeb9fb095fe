"""A program at the batch that is emitted."""

from __future__ import annotations

from edgecompile.pass_manager import Context, parse
from edgecompile.program import Program, drop_dead


def at_batch(program: Program, batch: int) -> Program:
    """The program at one fixed batch, with what no longer depends on its inputs computed.

    While the batch is open, masks and positions that are expanded to it are no constants yet. `InputError` when the
    program is fixed at another batch.
    """
    fixed = program.specialised(batch)
    if program.batch is not None:
        return fixed
    from edgecompile.passes import PASSES

    context = Context(fixed)
    for one in parse("remove_identity, fold_constants", PASSES):
        fixed = one.run(fixed, context)
    drop_dead(fixed.graph)  # whoever emits it retraces it
    return fixed
