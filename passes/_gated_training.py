"""Training with gates: the loss of distillation, and a pressure that closes as many gates as a target asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgecompile.passes._checkpoint import State
from edgecompile.passes._gates import FIRST, MOST, Gates, open_probability, sampled
from edgecompile.passes._schedule import seeded
from edgecompile.passes._training import Training

_GATES = "l0_gates"


class GatedTraining(Training):
    """Training in which layers read gated units; `target` is the share of the size that goes, reached at `ramp`.

    The pressure is `a (s - t) + b (s - t)^2`, s the share that is expected to go and t what is asked for by then: gates
    descend it, and its factors a and b ascend.
    """

    def gate(self, gates: Gates, target: float, params: bool, rate: float, ramp: float) -> None:
        """Put gates into the student's layers as they are trained."""
        self.gated, self.target, self.params, self.ramp = gates, target, params, ramp
        self.alpha = torch.full((gates.count,), FIRST)
        self.factors = torch.zeros(2)
        self.whole = float(gates.expected(torch.ones(gates.count), params))
        own: dict[str, Any] = {"weight_decay": 0.0, "own_rate": rate}
        self.optimizer.add_param_group({"params": [self.alpha], **own})
        self.optimizer.add_param_group({"params": [self.factors], **own, "maximize": True})
        self.alpha.requires_grad_(True)
        self.factors.requires_grad_(True)
        learner: Any = self.learner
        learner.register_buffer(_GATES, torch.ones(gates.count + 1), persistent=False)
        pairs = [(name, index) for name, each in gates.index.items() for index in each]
        for number, (name, index) in enumerate(pairs):
            learner.register_buffer(f"l0_index_{number}", index.to(self.setting.device), persistent=False)
            (own_weight,) = [n for n in learner.graph.find_nodes(op="get_attr") if n.target == name]
            with learner.graph.inserting_after(own_weight):
                places = learner.graph.get_attr(f"l0_index_{number}")
            with learner.graph.inserting_after(own_weight):
                read = learner.graph.get_attr(_GATES)
            with learner.graph.inserting_after(places):
                new = learner.graph.call_function(_scaled, (own_weight, read, places))
            own_weight.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
        learner.recompile()

    def all(self) -> dict[str, Tensor]:
        """What training changes, the gates and the factors among it."""
        return {**super().all(), "l0.alpha": self.alpha, "l0.factors": self.factors}

    def gone(self) -> Tensor:
        """The share of the size that is expected to go."""
        return 1 - self.gated.expected(open_probability(self.alpha), self.params) / self.whole

    def _prepare(self, step: int) -> None:
        super()._prepare(step)
        chance = torch.rand(len(self.alpha), generator=seeded(self.setting.seed, 4, step))
        gates = torch.cat([sampled(self.alpha, chance), torch.ones(1)]).to(self.setting.device)
        setattr(self.learner, _GATES, gates)

    def _penalty(self, step: int) -> Tensor:
        asked = self.target * min(1.0, (step + 1) / max(1.0, self.ramp * self.setting.steps))
        off = self.gone() - asked
        return self.factors[0] * off + self.factors[1] * off.square()

    def _settle(self) -> None:
        with torch.no_grad():
            self.alpha.clamp_(-MOST, MOST)

    def _look(self, state: State, measured: bool = True) -> None:
        """The last weights are kept: those that lose least are those of before any gate was closed."""
        super()._look(state, measured)
        state.best_step = state.step
        state.best = {name: value.detach().clone() for name, value in self.all().items()}


def _scaled(weight: Tensor, gates: Tensor, index: Tensor) -> Tensor:
    """A weight [outputs, inputs, ...] with the gate of each input."""
    return weight * gates[index].reshape(1, -1, *[1] * (weight.dim() - 2)).to(weight.dtype)
