"""TensorRT: a strongly typed Q/DQ ONNX with the script that builds its plan, and TensorRT-RTX engines built here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from edgecompile.errors import SpecError, TargetError, Unsupported
from edgecompile.program import Program
from edgecompile.target import Artifact, QuantRule, Run, Target

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor
    from torch._ops import OpOverload

aten = torch.ops.aten
_CLAMPS = (aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default)
_NOT_RUN = "no NVIDIA GPU was used: the engine was not run and its latency is unvalidated"


@dataclass(frozen=True)
class TensorRT(Target):
    """An ONNX file for TensorRT with `build.sh`, which builds the plan on the device and times it.

    `dtype` is the type of what is not quantized; softmax, norms and long sums stay float32. `sm` is the compute
    capability of the GPU: for 75, 80, 86, 89 and 120 an engine is built here with TensorRT-RTX (its own runtime, not
    TensorRT's) and stands beside the ONNX; for others (87 is Orin, 90 is H100) there is the ONNX alone. `dla` is the
    core of Orin's DLA to use; layers that it lacks are refused unless `allow_gpu_fallback`. `torch_tensorrt` adds
    `model.ep` by torch-tensorrt, where that imports. `limit_s` ends a parser or builder that takes longer.
    """

    name: ClassVar[str] = "tensorrt"
    activations: ClassVar[Literal["u8", "s8"]] = "s8"
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    sm: Literal[75, 80, 86, 87, 89, 90, 120] = 87
    dla: int | None = None
    allow_gpu_fallback: bool = False
    torch_tensorrt: bool = False
    limit_s: int = 1800

    def __post_init__(self) -> None:
        if self.dla is None:
            if self.allow_gpu_fallback:
                raise SpecError("allow_gpu_fallback is about layers that the DLA lacks: give dla=0 too")
            return
        if self.sm != 87 or not 0 <= self.dla <= 1:
            raise SpecError(f"dla={self.dla}: only Orin (sm=87) has a DLA here, with the cores 0 and 1")
        if self.dtype != "fp16":
            raise SpecError(f"dla={self.dla}: the DLA computes in fp16 and int8, not {self.dtype}")

    @property
    def dtypes(self) -> frozenset[str]:
        """Integers everywhere; FP8 from Ada and Hopper on."""
        from edgecompile.targets._tensorrt_fp8 import SMS

        return frozenset({"int8", "fp8"} if self.sm in SMS else {"int8"})

    def quantizable(self) -> Mapping[OpOverload, QuantRule]:
        """What TensorRT runs in integers when its operands are; Q/DQ between them is where its fusions want it."""
        return _TABLE

    def refuse(self, program: Program) -> list[str]:
        """Every operator without an ONNX form, or, when all have one, every node that TensorRT's parser refuses."""
        from edgecompile.targets import _tensorrt_refuse

        if reasons := self._wrong(program):
            return reasons
        dla = self.dla is not None
        return _tensorrt_refuse.reasons(program, self.dtype, dla, self.allow_gpu_fallback, self.limit_s)

    def _wrong(self, program: Program) -> list[str]:
        """What is wrong apart from operators."""
        from edgecompile.targets import _emit, _onnx_large, _tensorrt_fp8

        found = _tensorrt_fp8.refusals(program, self.sm, self.dla is not None)
        found += [*_emit.not_numbers(program), *_emit.data_dependent(program)]
        if _onnx_large.too_large(program):
            found.append("the model passes 2 GB, the limit of one ONNX file: quantize or prune it first")
        return found

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        """Write `model.onnx`, `build.sh` and `run.py`, and an engine where one can be built here."""
        from edgecompile.targets import _emit

        if program.batch is None:
            raise TargetError("tensorrt: the batch is not fixed: emit program.specialised(1)")
        if reasons := self._wrong(program):
            raise Unsupported("tensorrt", reasons)
        with _emit.whole(folder) as made:
            artifact = self._filled(program, made, metadata)
        return replace(artifact, folder=folder)

    def _filled(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        from edgecompile.targets import _tensorrt_fp8, _tensorrt_plan, _tensorrt_quant

        float8 = bool(_tensorrt_fp8.nodes_of(program))
        program = _tensorrt_fp8.as_integers(program)
        symmetric, changed = _tensorrt_quant.symmetric(program)
        notes = []
        if changed:
            notes.append(f"{changed} scales were made symmetric: TensorRT takes int8 with a zero point of 0 only")
        quantized = _tensorrt_quant.quantized(symmetric)
        facts: dict[str, Any] = {"dtype": self.dtype, "sm": self.sm, "int8": quantized and not float8}
        facts |= {"fp8": float8, "not_run_here": _NOT_RUN, "tolerance": _tolerance(self.dtype, quantized)}
        if self.dla is not None:
            self._emit_dla(symmetric, folder, metadata, notes, facts)
        else:
            self._emit_gpu(symmetric, folder, metadata, notes, facts)
        sparse = bool(facts.get("sparse_2_4"))
        self._scripts(folder, quantized, int(facts["opset"]), sparse)
        main, kind = self._engine(folder, notes, facts)
        self._settings(folder, kind, main, sparse)
        if self.torch_tensorrt:
            facts |= _tensorrt_plan.save_torch_tensorrt(symmetric, folder, self.dtype)
        return Artifact(kind, folder, main, tuple(notes), facts)

    def _emit_gpu(
        self, program: Program, folder: Path, metadata: Mapping[str, str], notes: list[str], facts: dict[str, Any]
    ) -> None:
        from edgecompile.targets import _tensorrt_onnx, _tensorrt_refuse, _tensorrt_rtx

        model = _tensorrt_onnx.build(program, self.dtype, metadata, notes, facts["fp8"])
        self._write(model, folder, notes, facts)
        facts["operators"] = _tensorrt_onnx.operators(model)
        wide = [n.name for n in model.graph.node if n.op_type in _tensorrt_onnx.KEPT_IN_FP32]
        (folder / "fp32_layers.txt").write_text("".join(f"{name}\n" for name in wide), encoding="utf-8")
        if not _tensorrt_rtx.available():
            notes.append("not parsed here: TensorRT-RTX, whose parser checks the model, is not installed")
            return
        verdict = _tensorrt_rtx.check(folder / "model.onnx", self.limit_s)
        facts["parsed_by"] = f"TensorRT-RTX {verdict.version}"
        notes += verdict.warnings
        if verdict.faults:
            raise Unsupported("tensorrt", _tensorrt_refuse.explained(verdict.faults, model))

    def _emit_dla(
        self, program: Program, folder: Path, metadata: Mapping[str, str], notes: list[str], facts: dict[str, Any]
    ) -> None:
        from edgecompile.targets import _tensorrt_dla

        model, scales, places = _tensorrt_dla.prepared(program, metadata, notes)
        gpu = [p for p in places if p.unit == "GPU"]
        if gpu and not self.allow_gpu_fallback:
            raise Unsupported("tensorrt", _tensorrt_dla.refusals(places))
        self._write(model, folder, notes, facts)
        (folder / "scales.txt").write_text(_tensorrt_dla.cache_lines(scales), encoding="utf-8")
        facts["operators"] = [
            {"name": p.node, "op": p.operator, "layer": p.layer, "unit": p.unit, "why": p.why} for p in places
        ]
        notes.append(
            f"DLA core {self.dla}: {len(places) - len(gpu)} layers by its documented limits, {len(gpu)} on the GPU"
        )

    def _write(self, model: onnx.ModelProto, folder: Path, notes: list[str], facts: dict[str, Any]) -> None:
        """The file, with what the scripts must know of it."""
        from edgecompile.targets import _tensorrt_sparse

        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
        facts["opset"] = _opset(model)
        sparse, weights = _tensorrt_sparse.layers(model)
        if sparse and self.sm >= _tensorrt_sparse.FIRST_SM:
            facts["sparse_2_4"] = sparse
            notes.append(
                f"{len(sparse)} of {weights} weights are 2:4 sparse: the builder may choose sparse kernels for them"
            )

    def _engine(self, folder: Path, notes: list[str], facts: dict[str, Any]) -> tuple[str, str]:
        from edgecompile.targets import _tensorrt_plan, _tensorrt_rtx

        if self.dla is None and _tensorrt_plan.available(self.sm):
            facts |= _tensorrt_plan.build(folder, self.limit_s)
            return "model.plan", "tensorrt"
        if self.sm not in _tensorrt_rtx.SMS:
            return "model.onnx", "tensorrt"
        name = f"model.sm{self.sm}.rtx"
        sparse = bool(facts.get("sparse_2_4"))
        verdict = _tensorrt_rtx.build(folder / "model.onnx", self.sm, folder / name, sparse, self.limit_s)
        facts["tensorrt_rtx"] = verdict.version
        facts["layers"] = list(verdict.layers)
        notes.append(
            f"{name} is an engine of TensorRT-RTX {verdict.version}, which is not TensorRT: it loads in that runtime "
            "only; sh build.sh makes TensorRT's own plan of the same model"
        )
        integer = [
            x for x in verdict.layers if (facts["int8"] or facts["fp8"]) and x["kind"] in ("correlation", "gemm")
        ]
        loose = sum(x["writes"] == "Float" for x in integer)
        if loose:
            notes.append(f"{name}: {loose} of {len(integer)} products write float32: it may be no faster than fp16")
        return name, "tensorrt-rtx"

    def _scripts(self, folder: Path, quantized: bool, opset: int, sparse: bool = False) -> None:
        from edgecompile.targets.runners import text

        given = {
            "DTYPE": self.dtype,
            "QUANTIZED": "yes" if quantized else "no",
            "OPSET": opset,
            "SPARSE": "yes" if sparse else "no",
            "DLA": "none" if self.dla is None else self.dla,
            "FALLBACK": "yes" if self.allow_gpu_fallback else "no",
        }
        script = text("tensorrt_build.sh").decode()
        for word, value in given.items():
            script = script.replace(f"@{word}@", str(value))
        (folder / "build.sh").write_text(script, encoding="utf-8")
        (folder / "run.py").write_bytes(text("tensorrt_run.py"))
        self._settings(folder, "tensorrt", "model.onnx", sparse)

    def _settings(self, folder: Path, kind: str, main: str, sparse: bool) -> None:
        engine = "model.plan" if kind == "tensorrt" else main
        settings = {"kind": kind, "engine": engine, "dla": self.dla, "sparse": sparse}
        (folder / "tensorrt.json").write_text(json.dumps(settings, sort_keys=True) + "\n", encoding="utf-8")

    def load(self, artifact: Artifact, threads: int = 1) -> Run | None:
        """The engine where a GPU and its runtime are; None elsewhere, and for a bundle without an engine."""
        from edgecompile.targets import _tensorrt_plan

        return _tensorrt_plan.load(artifact)

    def reference(self, artifact: Artifact, threads: int = 1) -> Run:
        """The bundle's ONNX in ONNX Runtime: the numbers that TensorRT is asked for, not TensorRT itself."""
        from edgecompile.targets.onnx import Session

        if self.dtype == "bf16":
            raise TargetError("tensorrt: ONNX Runtime has no bfloat16 on a CPU: the model was not run here")
        return Session(artifact.folder / "model.onnx", threads, literal=True)

    def tap(
        self, artifact: Artifact, names: Sequence[str], inputs: tuple[Tensor, ...]
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The values that `reference` computes at the named nodes, of those that are still in the file."""
        from edgecompile.targets.onnx import Onnx

        found = Onnx().tap(replace(artifact, main="model.onnx"), names, inputs)
        return {name: value.astype("float32") if value.dtype == "float16" else value for name, value in found.items()}


def _opset(model: onnx.ModelProto) -> int:
    return next(int(d.version) for d in model.opset_import if d.domain in ("", "ai.onnx"))


def _tolerance(dtype: str, quantized: bool) -> dict[str, float]:
    """How far the device may be off the program's float32 outputs, TF32 included."""
    return {"rtol": 0.05 if quantized else {"fp32": 5e-3, "fp16": 1e-2, "bf16": 5e-2}[dtype], "atol": 1e-4}


_TABLE: dict[OpOverload, QuantRule] = {
    aten.conv1d.default: QuantRule(("input",), "weight", fuses=_CLAMPS),
    aten.conv2d.default: QuantRule(("input",), "weight", fuses=_CLAMPS),
    aten.linear.default: QuantRule(("input",), "weight", output="float"),
    aten.matmul.default: QuantRule(("self", "other"), output="float"),
    aten.add.Tensor: QuantRule(("self", "other"), fuses=_CLAMPS),
    aten.cat.default: QuantRule(("tensors",), fuses=_CLAMPS),
    aten.max_pool2d.default: QuantRule(("self",), output="shared"),
    aten.avg_pool2d.default: QuantRule(("self",)),
    aten.adaptive_avg_pool2d.default: QuantRule(("self",)),
    aten.flatten.using_ints: QuantRule(("self",), output="shared"),
    aten.reshape.default: QuantRule(("self",), output="shared"),
    aten.view.default: QuantRule(("self",), output="shared"),
    aten.permute.default: QuantRule(("self",), output="shared"),
    aten.transpose.int: QuantRule(("self",), output="shared"),
}
