"""ONNX for ONNX Runtime: explicit Q/DQ, simplified, checked, run and measured where the build runs."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from edgecompile.errors import TargetError, Unsupported
from edgecompile.program import Program, op_name
from edgecompile.rewrite import layer
from edgecompile.target import Artifact, QuantRule, Run, Target
from edgecompile.targets.runners import text

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor, fx
    from torch._ops import OpOverload
    from torch.export import ExportedProgram

aten = torch.ops.aten
_DECOMPOSED = {
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool1d.default,
    aten.batch_norm.default,
    aten.__and__.Tensor,
    aten.__or__.Tensor,
}
"""What the exporter decomposes into operators that all have an ONNX form, whatever the arguments."""
_CLAMPS = (aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default)


@dataclass(frozen=True)
class Onnx(Target):
    """An ONNX file with explicit Q/DQ for ONNX Runtime; weights beside it when they pass 2 GB.

    `opset` is the operator set. `npu=qnn` is for Snapdragon's NPU, by ONNX Runtime's QNN provider.
    """

    name: ClassVar[str] = "onnx"
    saturates: ClassVar[bool] = True
    everywhere: ClassVar[bool] = True
    opset: int = 20
    npu: Literal["no", "qnn"] = "no"

    def quantizable(self) -> Mapping[OpOverload, QuantRule]:
        """What ONNX Runtime's CPU provider fuses into integer kernels, as counted in its optimised graphs."""
        from edgecompile.targets import _onnx_qnn

        return _onnx_qnn.TABLE if self.npu == "qnn" else _TABLE

    def refuse(self, program: Program) -> list[str]:
        """Operators that have no ONNX form once torch's exporter has decomposed the program, all of them."""
        from torch.onnx._internal.exporter import _core

        from edgecompile.targets._emit import float8, not_numbers
        from edgecompile.targets._onnx_compressed import by_rows

        if reasons := [*not_numbers(program), *float8(program, "onnx")]:
            return reasons
        program = by_rows(program)
        with quiet():
            registry = _registry(self.opset)
            if all(map(registry.is_registered, _called(program.graph) - _DECOMPOSED)):
                return []  # decomposing the whole program takes seconds
            prepared = _core._prepare_exported_program_for_export(program.exported(), registry=registry)
        called, reasons = _called(prepared), []
        for node in prepared.graph.nodes:
            if node.target in called and not registry.is_registered(node.target):
                origin = node.meta.get("custom", {}).get("origin", node.name)
                reasons.append(f"{layer(node)}: {op_name(node)} ({origin}) has no ONNX form")
        return list(dict.fromkeys(reasons))

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        """Write `model.onnx`; the same program gives the same bytes."""
        from edgecompile.targets import (
            _emit,
            _onnx_attention,
            _onnx_compressed,
            _onnx_graph,
            _onnx_large,
            _onnx_light,
            _onnx_pads,
        )

        if reasons := [*_emit.not_numbers(program), *_emit.float8(program, "onnx")]:
            raise Unsupported("onnx", reasons)
        aside: dict[str, Any] = {}
        model = self._exported(program, aside)
        notes = [*_onnx_attention.blind_rows(program), *_onnx_compressed.notes(program)]
        _onnx_graph.name_outputs(model, program.output_names)
        if aside:
            notes.append("not simplified: the weights pass 2 GB, and most are in model.onnx.data")
        else:
            _onnx_light.simplify(model, notes)
        _onnx_graph.pool_globally(model)
        _onnx_pads.fold_pads(model)
        _onnx_attention.sum_before_norm(model)
        _onnx_graph.merge_quantization(model)
        _onnx_graph.transpose_weights(model)
        _onnx_graph.integer_bias(model)
        _onnx_compressed.four_bits(model)
        model = _onnx_light.with_shapes(model)
        _onnx_graph.tidy(model, metadata)
        with _emit.whole(folder) as made:
            if aside:
                _onnx_large.write(model, aside, made)
            else:
                (made / "model.onnx").write_bytes(_onnx_light.checked(model))
            (made / "run.py").write_bytes(text("onnx_run.py"))
        facts: dict[str, object] = {"tolerance": _tolerance(program)}
        if self.npu == "qnn":
            from edgecompile.targets import _onnx_qnn

            facts |= _onnx_qnn.told(model, notes)
            (folder / "run.py").write_bytes(_onnx_qnn.run_py())
        return Artifact("onnx", folder, "model.onnx", tuple(notes), facts)

    def _exported(self, program: Program, aside: dict[str, Any] | None = None) -> onnx.ModelProto:
        """The model as torch exports it; of one past 2 GB, large weights are in `aside` where that is given."""
        from torch.onnx._internal.exporter import _core  # torch.onnx.export, which makes the table anew each time

        from edgecompile.targets import _onnx_large
        from edgecompile.targets._onnx_attention import four_axes
        from edgecompile.targets._onnx_compressed import by_rows
        from edgecompile.targets._onnx_tiny import guarded

        try:
            with quiet(), torch.no_grad():  # with gradients attention takes other kernels, whose strides no view fits
                exported = _core.export(
                    four_axes(guarded(by_rows(program))).exported(),
                    registry=_registry(self.opset),
                    verbose=False,
                    opset_version=self.opset,
                    input_names=list(program.input_names),
                )
        except Exception as error:
            raise _failed(error) from error
        if aside is not None and _onnx_large.too_large(program):
            aside |= _onnx_large.set_aside(exported.model)
        return exported.model_proto

    def load(self, artifact: Artifact, threads: int = 1) -> Run:
        """The file in ONNX Runtime with so many threads, inputs and outputs bound once a shape."""
        return Session(artifact.path, threads, literal=bool(artifact.facts.get("npu")))

    def reference(self, artifact: Artifact, threads: int = 1) -> Run:
        """The Q/DQ of the file taken literally, without kernels of integers, whose sums may saturate on this CPU."""
        return Session(artifact.path, threads, literal=True)

    def tap(
        self, artifact: Artifact, names: Sequence[str], inputs: tuple[Tensor, ...]
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The values that ONNX Runtime computes at the named nodes, of those that are still in the file.

        The fact `literal` asks for what `reference` computes.
        """
        import onnx

        model = onnx.load(str(artifact.path))
        made = {o for n in model.graph.node for o in n.output} - {o.name for o in model.graph.output}
        wanted = [name for name in names if name in made]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        session = Session(model.SerializeToString(), literal=bool(artifact.facts.get("literal")))
        plain = len(model.graph.output) - len(wanted)
        values = session(inputs)
        return {name: v.numpy() for name, v in zip(wanted, values[plain:], strict=True)}


def _failed(error: BaseException) -> TargetError:
    """The exporter's failure in one line: the node that it was at, where it says so, and the innermost reason."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    at = next((found[1] for e in chain if (found := re.search(r"translating node %(\w+)", str(e)))), "")
    lines = str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__]
    where = f"torch {torch.__version__}'s exporter failed" + (f" at node {at}" if at else "")
    return TargetError(f"onnx: {where}: {lines[0][:300]}", rule="toolchain")


def _tolerance(program: Program) -> dict[str, float]:
    """How far another CPU may be off: a little, and where it rounds to integers by steps of these."""
    integers = any("quantize_per" in op_name(n) for n in program.graph.graph.nodes if n.op == "call_function")
    return {"rtol": 0.05 if integers else 1e-3, "atol": 1e-5}


class Session:
    """An ONNX file in ONNX Runtime; callable with tensors, and `bound` gives the call that is timed.

    `literal` leaves Q/DQ as it stands: the integer kernels take FP8 too, and saturate on x86 before VNNI.
    """

    def __init__(
        self, path: Path | bytes, threads: int = 1, optimised: Path | None = None, literal: bool = False
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if literal:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        try:
            self.session: Any = ort.InferenceSession(
                path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            text = str(error).splitlines()[0][:300]
            name = "the model" if isinstance(path, bytes) else path.name
            raise TargetError(f"{name}: ONNX Runtime {ort.__version__} does not load it: {text}") from error
        self.names = [i.name for i in self.session.get_inputs()]

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        feed = {name: t.detach().contiguous().numpy() for name, t in zip(self.names, inputs, strict=True)}
        return tuple(torch.from_numpy(v) for v in self.session.run(None, feed))

    def bound(self, inputs: tuple[Tensor, ...]) -> Any:
        """A call without arguments that runs on these inputs and copies nothing: what a latency is measured of."""
        import onnxruntime as ort

        binding = self.session.io_binding()
        kept = []
        for name, value in zip(self.names, inputs, strict=True):
            held = ort.OrtValue.ortvalue_from_numpy(value.detach().contiguous().numpy())
            kept.append(held)
            binding.bind_ortvalue_input(name, held)
        for output, value in zip(self.session.get_outputs(), self(inputs), strict=True):
            held = ort.OrtValue.ortvalue_from_numpy(value.numpy())
            kept.append(held)
            binding.bind_ortvalue_output(output.name, held)
        session = self.session

        def call(_kept: list[Any] = kept) -> None:
            session.run_with_iobinding(binding)

        return call


@lru_cache
def _registry(opset: int) -> Any:
    """torch's table of ONNX forms, which takes half a second to make."""
    from torch.onnx._internal.exporter import _registration

    return _registration.ONNXRegistry.from_torchlib(opset_version=max(opset, 18))


def _called(graph: ExportedProgram | fx.GraphModule) -> set[OpOverload]:
    """The operators that compute something."""
    targets = {node.target for node in graph.graph.nodes}
    return {t for t in targets if isinstance(t, torch._ops.OpOverload) and t._schema.returns}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's chatter (missing torchvision, opset conversions) off the user's terminal."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch.onnx._internal.exporter", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def integer_kernels(path: Path, threads: int = 1) -> dict[str, int]:
    """How many nodes of each kind ONNX Runtime runs after its own optimisation: `{"QLinearConv": 20, "Conv": 1}`."""
    import tempfile
    from collections import Counter

    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        Session(path, threads, optimised)
        graph = onnx.load(str(optimised), load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())


_TABLE: dict[OpOverload, QuantRule] = {
    aten.conv1d.default: QuantRule(("input",), "weight", fuses=_CLAMPS),
    aten.conv2d.default: QuantRule(("input",), "weight", fuses=_CLAMPS),
    aten.linear.default: QuantRule(("input",), "weight", output="float"),
    aten.add.Tensor: QuantRule(("self", "other"), fuses=_CLAMPS),
    aten.max_pool2d.default: QuantRule(("self",), output="shared"),
    aten.adaptive_avg_pool2d.default: QuantRule(("self",)),
    aten.flatten.using_ints: QuantRule(("self",), output="shared"),
    aten.reshape.default: QuantRule(("self",), output="shared"),
    aten.view.default: QuantRule(("self",), output="shared"),
    aten.permute.default: QuantRule(("self",), output="shared"),
    aten.pad.default: QuantRule(("self",), output="shared"),
    aten.constant_pad_nd.default: QuantRule(("self",), output="shared"),
    aten.transpose.int: QuantRule(("self",), output="shared"),
}
