"""Core ML: an ML Program .mlpackage with our own scales, run here op by op and on a Mac by Core ML itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from edgecompile.errors import TargetError, Unsupported
from edgecompile.program import Program, op_name
from edgecompile.target import Artifact, QuantRule, Run, Target
from edgecompile.targets import _coreml_compressed, _coreml_image, _coreml_shapes
from edgecompile.targets._coreml_boundary import (
    INTERFACE_KEY,
    decomposed,
    from_core,
    place,
    plain,
    to_core,
    without_form,
)

if TYPE_CHECKING:
    import numpy as np
    from torch._ops import OpOverload

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
_CLAMPS = (aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default)
_RANK = 5
_MOVES = frozenset({"view", "reshape", "permute", "transpose", "clone", "expand", "contiguous", "unsqueeze", "squeeze"})
"""Operators whose tensors may have more axes: coremltools merges axes around them."""
_SMALLEST_HALF = 2.0**-14
_TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3}


@dataclass(frozen=True)
class CoreMl(Target):
    """An .mlpackage (ML Program) for Core ML, weights and scales as the program has them.

    `dtype` is what it computes in, `ios` the oldest system that it runs on (macOS 13, 14 and 15 go with iOS 16, 17 and
    18); `limit_s` ends a conversion that takes longer.

    With `image=yes` the input is a picture of bytes, and what prepares it is inside: `(byte * scale - mean) / std`,
    `order` is that of its colours. `labels` is a file with a line for each class of the first output, which makes the
    package a classifier. `shapes` are those that the one input may have besides the build's own, itself included.
    """

    name: ClassVar[str] = "coreml"
    dtype: Literal["fp16", "fp32"] = "fp16"
    ios: Literal["16", "17", "18"] = "18"
    limit_s: int = 1800
    image: Literal["no", "yes"] = "no"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float = 1 / 255
    order: Literal["rgb", "bgr"] = "rgb"
    labels: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()

    def reads(self) -> tuple[Path, ...]:
        """The file of labels."""
        return (Path(self.labels),) if self.labels else ()

    def quantizable(self) -> Mapping[OpOverload, QuantRule]:
        """What Core ML's compiler takes in integers between `quantize` and `dequantize`; nothing before iOS 17."""
        return _TABLE if self.ios != "16" else {}

    def refuse(self, program: Program) -> list[str]:
        """Operators without a Core ML form, tensors with too many axes, numbers that it cannot hold: all of them."""
        from edgecompile.targets._mil_read import coremltools

        coremltools()
        if reasons := _unreadable(program):
            return reasons
        if plain(program):
            return self._wrong(program)  # taking the whole program apart takes seconds
        exported = decomposed(program)
        missing = without_form(exported)
        reasons = self._wrong(program)
        for node in exported.graph.nodes:
            if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
                continue
            where = place(node)
            if node in missing:
                reasons.append(f"{where} has no Core ML form")
            elif self.ios == "16" and node.target in (quantized.quantize_per_tensor.default,):
                reasons.append(f"{where} needs iOS 17: coreml(ios=17)")
            elif (wrong := _wrong_tensor(node)) is not None:
                reasons.append(f"{where} {wrong}")
        return list(dict.fromkeys(reasons))

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        """Write `model.mlpackage` and `run.py`; the same program and metadata give the same bytes."""
        from edgecompile.targets._coreml_convert import PACKAGE, converted
        from edgecompile.targets._mil_read import coremltools

        coremltools()
        if program.batch is None:
            raise TargetError("coreml: the batch is not fixed: emit program.specialised(1)")
        if wrong := self._wrong(program):
            raise Unsupported("coreml", wrong)
        request: dict[str, Any] = {"ios": self.ios, "dtype": self.dtype, "metadata": dict(metadata)}
        if self.image == "yes":
            picture = _coreml_image.picture_of(self.mean, self.std, self.scale, self.order, metadata)
            request["image"] = dataclasses.asdict(picture)
        if self.labels:
            request["labels"] = _coreml_image.labels_of(self.labels)
        if self.shapes:
            request["shapes"] = self.shapes
        with tempfile.TemporaryDirectory(prefix="edgecompile-") as work:
            status = converted(program, Path(work), request, self.limit_s)
            self._raise(status)
            shutil.copytree(Path(work) / PACKAGE, folder / PACKAGE)
        shutil.copyfile(Path(__file__).parent / "runners" / "coreml_run.py", folder / "run.py")
        scales, notes = self._scales(program)
        facts = {
            "dtype": self.dtype,
            "ios": self.ios,
            "operations": status["operations"],
            "tools": status["tools"],
            "scales": scales,
            "tolerance": {"rtol": _TOLERANCE[self.dtype], "atol": _TOLERANCE[self.dtype]},
            "on_device": [line.format(ios=self.ios) for line in _ON_DEVICE],
            "not_run_here": "Core ML itself, which needs macOS or iOS; the package's program was interpreted op by op",
        }
        return Artifact("coreml", folder, PACKAGE, tuple(notes), facts)

    def _wrong(self, program: Program) -> list[str]:
        """What is wrong apart from operators."""
        found = [*_unreadable(program), *_interface(program), *_numbers(program)]
        found += _coreml_compressed.reasons(program, self.ios)
        if self.image == "yes":
            found += list(filter(None, [_coreml_image.picture_input(program)[1]]))
        if self.labels:
            count = len(_coreml_image.labels_of(self.labels))
            found += list(filter(None, [_coreml_image.wrong_labels(program, count, self.labels)]))
        if self.shapes:
            fixed = program if program.batch is not None else program.specialised(int(self.shapes[0][0]))
            found += _coreml_shapes.reasons(fixed, self.shapes)
        return found

    def _raise(self, status: Mapping[str, Any]) -> None:
        if reasons := status.get("reasons"):
            raise Unsupported("coreml", list(dict.fromkeys(reasons)))
        if "late" in status:
            raise TargetError(f"coreml: the conversion was stopped after {status['late']} s: coreml(limit_s=...)")
        if "crashed" in status:
            code, said = status["crashed"], status.get("said", "")
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise TargetError(f"coreml: coremltools {how}{': ' + said if said else ''}", rule="toolchain")
        if "failed" in status:
            raise TargetError(f"coreml: coremltools failed: {status['failed']}")

    def _scales(self, program: Program) -> tuple[dict[str, Any], list[str]]:
        """What the package holds of the program's scales: themselves, or the nearest half-precision numbers."""
        found = scales_of(program)
        if self.dtype == "fp32" or not found.numel():
            return {"count": found.numel(), "stored": "float32" if found.numel() else "none"}, []
        change = float(((found.half().double() - found.double()) / found.double()).abs().max())
        facts = {"count": found.numel(), "stored": "float16", "largest_relative_change": change}
        small = int((found < _SMALLEST_HALF).sum())
        notes = []
        if change:
            # `quantize`, `dequantize` and weights have the type of their scales, and that is half precision here
            notes.append(f"scales are in half precision, off by at most {change:.2g}: coreml(dtype=fp32) keeps them")
        if small:
            notes.append(f"{small} scales are below 6.1e-5, where half precision is coarse")
        return facts, notes

    def load(self, artifact: Artifact, threads: int = 1) -> Run:
        """The package in Core ML on a Mac, elsewhere in our interpreter, whose time says nothing of a device."""
        return Mac(artifact.path) if sys.platform == "darwin" else Interpreted(artifact.path)

    def tap(
        self, artifact: Artifact, names: Sequence[str], inputs: tuple[Tensor, ...]
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The values that the interpreter computes at the named nodes, of those that are still in the package."""
        loaded = Interpreted(artifact.path)
        wanted = {form: name for name in names for form in (name, f"{name}_cast_fp16")}
        values = loaded.interpreter.run(to_core(loaded.interface, inputs), frozenset(wanted))
        return {wanted[form]: value.numpy() for form, value in values.items() if form in wanted}


class Interpreted:
    """A package whose MIL program is run op by op here; callable with the program's inputs."""

    def __init__(self, package: Path) -> None:
        from edgecompile.targets._mil_run import Interpreter

        self.interpreter = Interpreter(package)
        self.interface = _interface_of(package, self.interpreter.program.metadata)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return from_core(self.interface, inputs, self.interpreter.run(to_core(self.interface, inputs)))


class Mac:
    """A package in Core ML, on macOS."""

    def __init__(self, package: Path) -> None:
        from edgecompile.targets._mil_read import coremltools

        self.model = coremltools().models.MLModel(str(package))
        self.interface = _interface_of(package, dict(self.model.user_defined_metadata))

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        feed: dict[str, Any] = {name: value.numpy() for name, value in to_core(self.interface, inputs).items()}
        for entry in self.interface["inputs"]:
            if "image" in entry:
                feed[entry["core"]] = _coreml_image.shown(entry["image"], feed[entry["core"]])
        found = self.model.predict(feed)
        return from_core(self.interface, inputs, {name: torch.as_tensor(v) for name, v in found.items()})


def scales_of(program: Program) -> Tensor:
    """Every scale of the program's quantize and dequantize nodes, in graph order."""
    values, weights = [], program.weights()
    for node in program.graph.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "namespace", "") == "quantized_decomposed":
            scale = node.args[1]
            value = weights[str(scale.target)] if isinstance(scale, fx.Node) else torch.tensor([scale])
            values.append(value.detach().float().reshape(-1))
    return torch.cat(values) if values else torch.zeros(0)


def _interface_of(package: Path, metadata: Mapping[str, str]) -> Any:
    if INTERFACE_KEY not in metadata:
        raise TargetError(f"{package.name}: not written by edgecompile: its metadata has no {INTERFACE_KEY}")
    return json.loads(metadata[INTERFACE_KEY])


def _unreadable(program: Program) -> list[str]:
    """What no conversion can begin with."""
    from edgecompile.targets._emit import data_dependent, float8, not_numbers

    return [*not_numbers(program), *data_dependent(program), *float8(program, "coreml")]


def _interface(program: Program) -> list[str]:
    """What is wrong with the inputs and outputs."""
    placeholders = [n for n in program.graph.graph.nodes if n.op == "placeholder"]
    found = [
        f"{'input' if node in placeholders else 'output'} {node.name} {wrong}"
        for node in (*placeholders, *program.outputs())
        if (wrong := _wrong_tensor(node, border=True)) is not None
    ]
    if all(node in placeholders for node in program.outputs()):
        found.append("no output is computed: there is nothing for Core ML to do")
    return found


def _wrong_tensor(node: fx.Node, border: bool = False) -> str | None:
    value = node.meta.get("val")
    for one in value if isinstance(value, (list, tuple)) else (value,):
        if not isinstance(one, Tensor):
            continue
        if one.dtype == torch.float64 or one.dtype.is_complex:
            return f"is {str(one.dtype).removeprefix('torch.')}, which Core ML does not have"
        if one.dim() > _RANK and (border or op_name(node).split(".")[0].lstrip("_") not in _MOVES):
            return f"has {one.dim()} axes; Core ML takes {_RANK}"
    return None


def _numbers(program: Program) -> list[str]:
    """Constants that do not fit 32-bit integers."""
    found = []
    for name, value in program.weights().items():
        wide = value.dtype in (torch.int64, torch.uint64) and value.numel()
        if wide and (int(value.max()) > 2**31 - 1 or int(value.min()) < -(2**31)):
            found.append(f"{name}: has integers beyond 32 bits, which Core ML does not hold")
        elif value.dtype == torch.float64 or value.dtype.is_complex:
            found.append(f"{name}: is {str(value.dtype).removeprefix('torch.')}, which Core ML does not have")
    return found


_ON_DEVICE = (
    "In an app: add `model.mlpackage` to the Xcode project, or compile it with `xcrun coremlcompiler compile",
    "model.mlpackage .`, and load it with `MLModelConfiguration.computeUnits = .all`, on iOS {ios} or later.",
    "`selftest.py` and `run.py` need macOS and `pip install coremltools`; Xcode's performance report times it.",
)
_RULES: dict[OpOverload, QuantRule] = {
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
    aten.transpose.int: QuantRule(("self",), output="shared"),
}
_TABLE = {op: replace(rule, axes=5) for op, rule in _RULES.items()}
"""MIL's `quantize` and `dequantize` take tensors of up to five axes."""
