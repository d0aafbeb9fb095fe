"""Program: a model on its way to a device, as an unlifted ATen graph that can be called, trained and re-exported."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgecompile.errors import InputError
from edgecompile.program.graph import BATCH, DynamicShapes, attribute, drop_dead, export, refresh, resized, unlift
from edgecompile.program.text import text_form, type_text


@dataclass(frozen=True)
class Program:
    """A model with fixed inputs and outputs: an ATen graph, its example inputs, and where its weights came from.

    `graph` takes the inputs positionally and returns a flat tuple of tensors. `inputs` are the example inputs; axes in
    `dynamic_shapes` may take any size from 1 up, all others are fixed. `origin` names, for each weight, the weight of
    the teacher it descends from, and `kept` the teacher's indices that survive along each axis that was shrunk; nodes
    carry the teacher node's name in `meta["custom"]["origin"]`.
    """

    graph: fx.GraphModule
    inputs: tuple[Tensor, ...]
    dynamic_shapes: DynamicShapes | None = None
    output_names: tuple[str, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @staticmethod
    def capture(
        model: nn.Module,
        inputs: Sequence[Tensor] | Mapping[str, Tensor],
        dynamic_batch: bool = True,
    ) -> Program:
        """Export `model` in evaluation mode; the example batch should be 2 (an example of 1 would fix it silently).

        The first axis of every input is the batch and becomes dynamic; where the model does not allow that, the
        program is static and `notes` says why. Raises `InputError` for models that cannot be exported (control flow
        that depends on data), that write to their own buffers, or whose outputs are not tensors.
        """
        from edgecompile.program.capture import capture

        return capture(model, inputs, dynamic_batch)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The placeholders' names, in order."""
        return tuple(str(n.target) for n in self.graph.graph.nodes if n.op == "placeholder")

    @property
    def interface(self) -> tuple[str, ...]:
        """Names, dtypes and shapes of inputs and outputs: what a pass may never change."""
        symbols = self.symbols()
        placeholders = [n for n in self.graph.graph.nodes if n.op == "placeholder"]
        outputs = zip(self.output_names, self.outputs(), strict=True)
        return (
            *(f"{n.target}: {type_text(n.meta.get('val'), symbols)}" for n in placeholders),
            *(f"-> {name}: {type_text(n.meta.get('val'), symbols)}" for name, n in outputs),
        )

    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes that the program returns, in order."""
        node = next(n for n in reversed(self.graph.graph.nodes) if n.op == "output")
        return tuple(cast(Sequence[fx.Node], node.args[0]))

    def symbols(self) -> dict[str, str]:
        """torch's name of each dynamic size to ours: `{"s77": "batch"}`."""
        placeholders = [n for n in self.graph.graph.nodes if n.op == "placeholder"]
        return {
            str(node.meta["val"].shape[axis]): name
            for node, axes in zip(placeholders, self.dynamic_shapes or (), strict=False)
            for axis, name in axes.items()
            if "val" in node.meta
        }

    def weights(self) -> dict[str, Tensor]:
        """Every parameter, buffer and constant that the graph reads, by dotted name; tied weights once."""
        found: dict[str, Tensor] = {}
        for node in self.graph.graph.nodes:
            if node.op == "get_attr" and isinstance(value := attribute(self.graph, str(node.target)), Tensor):
                found[str(node.target)] = value
        return found

    @property
    def batch(self) -> int | None:
        """The fixed batch, or None while it is dynamic."""
        if self.dynamic_shapes and any(BATCH in axes.values() for axes in self.dynamic_shapes):
            return None
        return int(self.inputs[0].shape[0]) if self.inputs and self.inputs[0].dim() else 1

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", self.graph(*inputs))

    def clone(self) -> Program:
        """A copy that shares nothing with this one; its weights can be changed freely."""
        return dataclasses.replace(self, graph=copy.deepcopy(self.graph))

    def exported(self) -> ExportedProgram:
        """The `ExportedProgram` that toolchains read; raises torch's error when the graph does not hold together."""
        return export(self.graph, self.inputs, {}, self.dynamic_shapes)

    def retraced(self) -> Program:
        """Drop dead code and dead weights and export again: the verifier, which also refreshes every shape.

        Raises what torch raises, which names the node, when the graph does not hold together.
        """
        drop_dead(self.graph)
        graph = unlift(self.exported())
        drop_dead(graph)
        return dataclasses.replace(self, graph=graph)._alive()

    def refreshed(self) -> Program:
        """The same graph without what is dead, every shape anew: much faster than `retraced`, and nothing is verified.

        It is changed in place where that works without an export. For programs that are compared with others, or are
        verified when they are emitted.
        """
        drop_dead(self.graph)
        try:
            refresh(self.graph)
        except Exception:  # as for `specialised`
            return self.retraced()
        return self._alive()

    def _alive(self) -> Program:
        """Provenance of the weights that are left."""
        alive = self.weights()
        origin = {name: self.origin.get(name, name) for name in alive}
        kept = {name: axes for name, axes in self.kept.items() if name in alive}
        return dataclasses.replace(self, origin=origin, kept=kept)

    def specialised(self, batch: int) -> Program:
        """This program at one fixed batch, which is what is emitted; `InputError` when it is fixed at another."""
        if self.batch is not None:
            if self.batch != batch:
                raise InputError(
                    f"the program's batch is fixed at {self.batch}, not {batch}: capture it at batch {batch}"
                )
            return self.clone()
        axes = self.dynamic_shapes or ()
        inputs = tuple(resized(t, d, batch) for t, d in zip(self.inputs, axes, strict=True))
        graph = copy.deepcopy(self.graph)
        made = dataclasses.replace(self, graph=graph, inputs=inputs, dynamic_shapes=None)
        drop_dead(graph)
        try:
            refresh(graph, inputs)
        except Exception:  # a shape that hangs on the data, an operator that knows none: export says what it is
            return made.retraced()
        return made._alive()

    def __str__(self) -> str:
        return text_form(self)
