"""digest_of: the name of a program by its content."""

from __future__ import annotations

import hashlib

from edgecompile.data.types import add_tensor
from edgecompile.program import Program


def digest_of(program: Program) -> str:
    """A sha256 over text form, dynamic axes and weights; two captures of one model have one digest."""
    digest = hashlib.sha256(str(program).encode())
    digest.update(repr([sorted(axes.items()) for axes in program.dynamic_shapes or ()]).encode())
    for name, tensor in sorted(program.weights().items()):
        digest.update(name.encode())
        add_tensor(digest, tensor)
    return digest.hexdigest()
