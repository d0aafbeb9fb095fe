"""Teacher: what enters the compiler. A captured model, the data that came with it, and how its inputs are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgecompile.program import Program

if TYPE_CHECKING:
    from edgecompile.data import Dataset


@dataclass(frozen=True)
class Teacher:
    """A trained model as a Program, beside what its loader knows about it.

    `preprocessing` is how a picture or a text becomes the model's inputs, as it is written into the manifest; empty
    when nobody said. `digest` is a sha256 over graph and weights. `classes` is true when the first output holds class
    logits.
    """

    name: str
    program: Program
    digest: str
    calib: Dataset | None = None
    evaluate: Dataset | None = None
    train: Dataset | None = None
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    classes: bool = False
    notes: tuple[str, ...] = ()
