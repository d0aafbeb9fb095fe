"""Where a run of training is, and what it goes on from when it was killed or went wrong."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecompile.store import writing

_FILE = "checkpoint.pt"
_KEPT = 25
"""Steps after which a state is remembered."""
KEEP_S = 20.0
"""Seconds after which one is written down."""


@dataclass
class State:
    """Where a run is; with the weights and the optimizer's, all that a checkpoint holds.

    `average` are the weights averaged over the steps, where that was asked for: never changed in place.
    """

    step: int = 0
    scale: float = 1.0
    rollbacks: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    first_loss: float = math.inf
    weights: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


class Checkpoint:
    """The last good state of some weights and their optimizer: in memory, and from time to time in a file.

    The file is replaced at once, and what is gone on from it is what would have come without a stop.
    """

    def __init__(
        self, values: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, folder: Path | None, writes: bool = True
    ) -> None:
        self.values, self.optimizer, self.folder, self.writes = values, optimizer, folder, writes
        self._held = self.taken(State())
        self._saved = time.monotonic()

    def resumed(self) -> State | None:
        """The state that is written down, with weights and optimizer as they were then; None where there is none."""
        path = self.folder / _FILE if self.folder is not None else None
        if path is None or not path.is_file():
            return None
        try:
            held = torch.load(path, weights_only=True, map_location=next(iter(self.values.values())).device)
            self.put(held)
            return State(**held["state"])
        except Exception as error:  # damaged, or of another version: from the start
            self.put(self._held)
            return State(said=[f"a checkpoint could not be read ({type(error).__name__}): training began anew"])

    def offer(self, state: State) -> None:
        """Keep this state, if it is time."""
        if state.step % _KEPT:
            return
        self._held = self.taken(state)
        if self.folder is not None and self.writes and time.monotonic() - self._saved >= KEEP_S:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                torch.save(self._held, self.folder / "checkpoint.partial")
                os.replace(self.folder / "checkpoint.partial", self.folder / _FILE)
            self._saved = time.monotonic()

    def restore(self, state: State) -> None:
        """Back to what was kept last."""
        self.put(self._held)
        state.step, state.average = self._held["state"]["step"], self._held["state"]["average"]

    def taken(self, state: State) -> dict[str, Any]:
        """All of a run, sharing nothing with it."""
        values = {name: value.detach().clone() for name, value in self.values.items()}
        said = {**vars(state), "said": list(state.said)}
        return {"state": said, "values": values, "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def put(self, held: Mapping[str, Any]) -> None:
        """Weights and optimizer as they were."""
        with torch.no_grad():
            for name, value in self.values.items():
                value.data.copy_(held["values"][name])
        self.optimizer.load_state_dict(copy.deepcopy(held["optimizer"]))
