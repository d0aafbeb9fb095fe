"""An ONNX graph as a PyTorch module: walks the nodes, folds what is known at import, traces the rest."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from onnx import GraphProto
from torch import Tensor, nn

from edgecompile.ingest.rules import text_safe
from edgecompile.models._onnx_block import Block, Step, dotted, read
from edgecompile.models._onnx_control import both_branches, loop, scan
from edgecompile.models._onnx_ops import Op
from edgecompile.models._onnx_shape import constant
from edgecompile.models._onnx_sizes import on_sizes
from edgecompile.models._onnx_values import LARGEST_KNOWN, Known, Refusal, Sizes, Value, outside
from edgecompile.models._onnx_weights import Weights, place

Env = dict[str, Any]

MISSING = object()
"""Stands for the output of a refused node, so that one walk finds every refusal."""


class OnnxModule(nn.Module):
    """Runs an ONNX graph on tensors; call `prepare` once before it is exported.

    Values that do not depend on the inputs are computed outside the trace; stored floats become parameters by
    their initializer's name, other constants buffers. Each node runs inside a submodule of its own name: the
    layer of the operators captured there.
    """

    def __init__(self, graph: GraphProto, opset: int, fixed: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.reasons: list[str] = []
        self.notes: dict[str, str] = {}
        self.folded_nodes: set[str] = set()
        self._preparing = False
        self._folding = False
        self._block = read(graph, opset, self, self.reasons)
        self.held = {name: Known(value, name) for name, value in fixed.items()}
        self._cache: dict[str, tuple[list[Value], tuple[Value, ...]]] = {}
        self._weights = Weights(self)
        self._linear: dict[str, tuple[Tensor, Tensor, Step]] = {}
        self._readers = Counter(i for s in self._block.walk() for i in s.node.inputs) + Counter(
            o for b in _blocks(self._block) for o in b.outputs
        )
        names = [name for name in self._block.inputs if name not in fixed]
        self.names = dict(zip((f"{dotted(n).replace('.', '_')}" for n in names), names, strict=True))
        traced = [s for s in self._block.walk() if s.op and s.op.run is not constant]
        self._layers = {step.path: Layer() for step in traced}
        for path, layer in self._layers.items():
            place(self, path, layer)
        self.forward = self._with_signature(list(self.names))

    def prepare(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """One run on real inputs: registers every weight that a trace reads; returns what is refused."""
        self._preparing = True
        try:
            with torch.no_grad():
                self.run(inputs)
        finally:
            self._preparing = False
        return self.reasons

    def run(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> dict[str, Any]:
        """The outputs by ONNX name, and the values of `taps`, on inputs by their ONNX name."""
        self._linear.clear()
        env: Env = {**self.held, **inputs}
        results = self.run_block(self._block, env)
        found = dict(zip(self._block.outputs, results, strict=True)) | {t: env[t] for t in taps if t in env}
        self._linear.clear()  # torch.export warns of tensors that a trace leaves in a module
        return {name: v if v is MISSING else self.tensor(v, buffer=True) for name, v in found.items()}

    def run_block(self, block: Block, env: Env) -> list[Any]:
        """Run a block's steps in `env`, which then holds every value by name; returns the block's outputs."""
        env.update(block.known)
        for step in block.steps:
            values = [env[name] if name else None for name in step.node.inputs]
            results = self._results(step, values, env)
            env.update({name: r for name, r in zip(step.node.outputs, results, strict=False) if name})
        return [env[name] for name in block.outputs]

    def _results(self, step: Step, values: list[Any], env: Env) -> Sequence[Any]:
        missing = [MISSING] * len(step.node.outputs)
        if any(v is MISSING for v in values) and not step.refused:
            return missing
        try:
            if step.refused:
                raise Refusal(step.refused)
            return self._step(step, values, env)
        except Refusal as refusal:
            reason = f"{_shown(step)}: {refusal}"
        except (RuntimeError, ValueError, IndexError) as error:
            line = next(iter(str(error).splitlines()), "")
            reason = f"{_shown(step)}: PyTorch cannot compute it: {type(error).__name__}: {line[:200]}"
            if not self._preparing:
                raise
        if not self._preparing:
            raise Refusal(reason)
        if reason not in self.reasons:
            self.reasons.append(reason)
        return missing

    def _step(self, step: Step, values: list[Value], env: Env) -> Sequence[Value]:
        match step.node.op:
            case "If":
                return self._if(step, values[0], env)
            case "Loop":
                return loop(self, step, values, env)
            case "Scan":
                return scan(self, step, values, env)
        op = step.op
        assert op is not None
        if any(isinstance(v, Sizes) for v in values):
            found = on_sizes(step.node, values)
            if found is not None:
                return found
        if op.when != "traced" and all(isinstance(v, Known) or v is None for v in values):
            return self._fold(step, op, values)
        if op.when == "known":
            raise Refusal("the size of its output depends on the data")
        results: Sequence[Value] = self._layers[step.path](lambda: self._traced(step, op, values))
        return results

    def _traced(self, step: Step, op: Op, values: list[Value]) -> tuple[Value, ...]:
        if step.node.op == "Add" and (whole := self._biased(step, values)) is not None:
            return (whole,)
        operands = self._operands(step, op, values)
        result = op.run(step.node, *operands)
        if step.node.op == "MatMul" and isinstance(values[1], Known) and isinstance(result, Tensor):
            self._linear[step.node.outputs[0]] = (self.tensor(values[0]), values[1].tensor, step)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    def _operands(self, step: Step, op: Op, values: list[Value]) -> list[Any]:
        operands: list[Any] = []
        for i, value in enumerate(values):
            raw = i in op.raw or value is None
            operands.append(value if raw else self.tensor(value, i in op.buffers))
        if not op.literal or len(values) != 2:
            return operands
        left, right = values
        if isinstance(right, Known) and _is_literal(right, operands[0]):
            return [operands[0], right.numbers()[0]]
        if step.node.op in ("Add", "Mul") and isinstance(left, Known) and _is_literal(left, operands[1]):
            return [operands[1], left.numbers()[0]]
        return operands

    def _biased(self, step: Step, values: list[Value]) -> Tensor | None:
        """MatMul by a stored matrix and Add of a stored vector, read by nobody else, as one linear layer."""
        for product, bias in ((0, 1), (1, 0)):
            name, other = step.node.inputs[product], values[bias]
            if name not in self._linear or self._readers[name] != 1 or not isinstance(other, Known):
                continue
            left, weight, source = self._linear[name]
            if left.dim() < 2 or weight.dim() != 2 or other.tensor.shape != weight.shape[1:]:
                continue
            made = source.node.inputs[1]
            matrix = self.folded(made, lambda w: w.t().contiguous(), (Known(weight, made, weight=True),), False)
            return F.linear(left, matrix, self.tensor(other))
        return None

    def _if(self, step: Step, condition: Value, env: Env) -> Sequence[Value]:
        yes, no = step.blocks["then_branch"], step.blocks["else_branch"]
        if isinstance(condition, Known):
            return self.run_block(yes if bool(condition.numbers()[0]) else no, dict(env))
        inputs = ", ".join(f"'{text_safe(name)}'" for name in self._sources(step.node.inputs[0]))
        what = f"its condition is computed from input {inputs}"
        self.notes[step.path] = f"{_shown(step)}: both branches are computed, since {what}"
        try:
            return both_branches(self, step, self.tensor(condition), env)
        except Refusal as refusal:
            raise Refusal(f"{what} and {refusal}; fixing the input to one value leaves one branch") from refusal

    def _sources(self, name: str) -> list[str]:
        """The graph inputs that a value is computed from."""
        makers = {o: s.node.inputs for s in self._block.walk() for o in s.node.outputs}
        seen, todo = {name}, [name]
        while todo:
            fresh = {i for i in makers.get(todo.pop(), ()) if i} - seen
            seen |= fresh
            todo.extend(fresh)
        return [i for i in self._block.inputs if i in seen and i not in self.held]

    def _fold(self, step: Step, op: Op, values: list[Value]) -> tuple[Value, ...]:
        cached = self._cache.get(step.path)
        if (
            cached is not None
            and len(cached[0]) == len(values)
            and all(a is b for a, b in zip(cached[0], values, strict=True))
        ):
            return cached[1]
        with self._outside():
            operands = [v.tensor if isinstance(v, Known) and i not in op.raw else v for i, v in enumerate(values)]
            result = op.run(step.node, *operands)
        results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        stored = [v for v in values if isinstance(v, Known) and v.weight]
        folded = tuple(self._named(step, stored, r, o) for r, o in zip(results, step.node.outputs, strict=False))
        self._cache[step.path] = (list(values), folded)
        if step.node.op != "Constant":
            self.folded_nodes.add(step.node.name)
        return folded

    def _named(self, step: Step, stored: list[Known], result: Value, output: str) -> Value:
        if not isinstance(result, Tensor):
            return result
        if result.numel() > LARGEST_KNOWN:
            raise Refusal(f"a constant of {result.numel()} elements is too large to be computed at import")
        constant = step.node.op == "Constant" and result.dim() > 0 and result.numel() > 1
        weight = result.is_floating_point() and (bool(stored) or constant)
        return Known(result, stored[0].name if len(stored) == 1 else output, weight)

    def tensor(self, value: Value, buffer: bool = False) -> Tensor:
        """A value as a tensor of the graph; known ones are weights, sizes are stacked scalars."""
        match value:
            case Known(tensor, name, weight):
                return (
                    tensor
                    if self._folding
                    else self._weights.get(name or "constant", tensor, weight and not buffer, self._preparing)
                )
            case Sizes(items, vector):
                parts = [torch.scalar_tensor(i, dtype=torch.int64) for i in items]
                return torch.stack(parts) if vector else parts[0]
            case Tensor():
                return value
        raise Refusal("an operand is missing")

    def folded(self, name: str, make: Callable[..., Tensor], values: Sequence[Value], buffer: bool) -> Tensor:
        """`make` applied now when every value is known, and kept as the weight `name`; else in the graph."""
        if not all(isinstance(v, Known) for v in values):
            return make(*(self.tensor(v) for v in values))
        with self._outside():
            result = make(*(v.tensor for v in values if isinstance(v, Known)))
        if self._folding:
            return result
        return self._weights.get(name, result, result.is_floating_point() and not buffer, self._preparing)

    @contextmanager
    def _outside(self) -> Iterator[None]:
        """Fold: operands are real tensors, and a trace that may be running sees nothing."""
        before, self._folding = self._folding, True
        try:
            with outside():
                yield
        finally:
            self._folding = before

    def _with_signature(self, names: list[str]) -> Callable[..., dict[str, Any]]:
        """A forward that takes the graph's inputs by name, so that captured placeholders bear those names."""

        def forward(*args: Tensor, **kwargs: Tensor) -> dict[str, Any]:
            given = dict(zip(names, args, strict=False)) | kwargs
            return self.run({self.names[name]: value for name, value in given.items()})

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
        return forward


class Layer(nn.Module):
    """The scope of one ONNX node."""

    def forward(self, run: Callable[[], Any]) -> Any:
        """Run in this scope."""
        return run()


def _blocks(block: Block) -> Iterator[Block]:
    yield block
    for step in block.walk():
        yield from step.blocks.values()


def _is_literal(value: Known, other: Any) -> bool:
    tensor = value.tensor
    return (
        tensor.numel() == 1
        and not value.weight
        and isinstance(other, Tensor)
        and other.dtype == tensor.dtype
        and other.dtype != torch.bool
        and other.dim() >= tensor.dim()
    )


def _shown(step: Step) -> str:
    node = step.node
    domain = f"{text_safe(node.domain)}." if node.domain else ""
    return f"node '{text_safe(node.name)}' ({domain}{text_safe(node.op)}, opset {node.version})"
