"""Pictures in, labels out: Core ML's image input with the normalisation inside, and its classifier output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgecompile.errors import SpecError, TargetError
from edgecompile.program import Program
from edgecompile.rewrite import add_weight, aten, call

PREPROCESSING_KEY = "preprocessing"
"""Where `emit`'s metadata may have the teacher's preprocessing, as JSON with an `image` in it."""
PROBABILITIES = "edgecompile_probabilities"
LABEL = "classLabel"
_SOFTMAX = (aten.softmax.int, aten._softmax.default)


@dataclass(frozen=True)
class Picture:
    """What turns bytes into the numbers of a model's input: `(byte * scale - mean) / std`, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    order: str = "rgb"

    def even(self) -> bool:
        """Whether one scale is enough, which is all that Core ML's image input has."""
        return len(set(self.std)) == 1

    def core(self) -> tuple[float, list[float]]:
        """Scale and bias of the image input; a product with `1 / std` follows it where the channels differ."""
        by = self.std[0] if self.even() else 1.0
        return self.scale / by, [-m / by for m in self.mean]


def picture_of(mean: Sequence[float], std: Sequence[float], scale: float, order: str, metadata: Any) -> Picture:
    """From the options, else from the teacher's preprocessing; `TargetError` where neither says it."""
    if not mean and not std:
        known = json.loads(metadata.get(PREPROCESSING_KEY, "{}")).get("image")
        if known is None:
            raise TargetError(
                "coreml: image=yes needs to know how pictures are prepared:"
                " coreml(image=yes, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))"
            )
        if known.get("layout", "nchw") != "nchw":
            raise TargetError("coreml: image=yes: the model takes its channels last, and Core ML gives them first")
        mean, std, scale = known["mean"], known["std"], float(known["scale"])
        order = known.get("order", "rgb")
    mean, std = tuple(mean) or (0.0,), tuple(std) or (1.0,)
    if len(mean) not in (1, 3) or len(std) not in (1, 3) or min(std) <= 0 or scale <= 0:
        raise SpecError(f"coreml: mean {mean}, std {std}, scale {scale}: give 1 or 3 numbers, std and scale above 0")
    return Picture(mean, std, scale, order)


def picture_input(program: Program) -> tuple[fx.Node | None, str]:
    """The only input that can be a picture, or None and why not."""
    found = []
    for node in program.graph.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, Tensor) and value.dim() == 4 and value.shape[1] in (1, 3) and value.is_floating_point():
            found.append(node)
    if len(found) != 1:
        count = "no input" if not found else "more than one input"
        return None, f"image=yes: {count} has the form of a picture, 1x3xHEIGHTxWIDTH or 1x1xHEIGHTxWIDTH"
    if program.batch is not None and program.batch != 1:
        return None, f"image=yes: the batch is {program.batch}, and a picture comes alone: --batch 1"
    return found[0], ""


def pictured(program: Program, picture: Picture) -> tuple[Program, str, Picture]:
    """The program behind Core ML's scale and bias, the input's name, and the picture with a value for each channel."""
    program = program.clone()
    node, why = picture_input(program)
    if node is None:
        raise TargetError(f"coreml: {why}")
    channels = int(node.meta["val"].shape[1])
    if channels == 1 and (len(picture.mean) > 1 or len(picture.std) > 1):
        raise TargetError("coreml: image=yes: mean and std for three channels, but the input has one")
    mean, std = (v * channels if len(v) == 1 else v for v in (picture.mean, picture.std))
    picture = dataclasses.replace(picture, mean=mean, std=std)
    if not picture.even():
        users = list(node.users)
        inverse = 1 / torch.tensor(picture.std, dtype=torch.float64).reshape(1, -1, 1, 1)
        first = min(users)
        constant = add_weight(program, "picture_inverse_std", inverse.float(), first)
        scaled = call(program, aten.mul.Tensor, (node, constant), first)
        for user in users:
            user.replace_input_with(node, scaled)
    return program.retraced(), str(node.target), picture


def to_bytes(picture: Mapping[str, Any], value: Tensor) -> Tensor:
    """A prepared picture as the bytes that it was made of."""
    mean, std = (torch.tensor(picture[k], dtype=torch.float64).reshape(1, -1, 1, 1) for k in ("mean", "std"))
    found: Tensor = (value.double() * std + mean) / picture["scale"]
    return found.round().clamp(0, 255).float()


def shown(picture: Mapping[str, Any], value: np.ndarray[Any, Any]) -> Any:
    """Bytes as the Pillow image that Core ML's Python takes."""
    from PIL import Image

    whole = value[0].astype(np.uint8)
    if len(whole) == 1:
        return Image.fromarray(whole[0])
    whole = whole[::-1] if picture["order"] == "bgr" else whole
    return Image.fromarray(np.ascontiguousarray(whole.transpose(1, 2, 0)))


def labels_of(path: str) -> list[str]:
    """One label a line; `TargetError` for a file that is none."""
    try:
        found = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise TargetError(
            f"coreml: labels={path!r} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    twice = sorted({label for label in found if found.count(label) > 1}) if len(set(found)) < len(found) else []
    if twice or not found:
        what = f"{twice[0]!r} stands in it twice" if twice else "it is empty"
        raise TargetError(f"coreml: labels={path!r}: {what}; give one label a line, each once")
    return found


def wrong_labels(program: Program, count: int, path: str) -> str | None:
    """Why the first output is not one of so many classes."""
    shape = list(program.outputs()[0].meta["val"].shape)
    name = program.output_names[0]
    if len(shape) != 2 or (program.batch is not None and shape[0] != 1):
        return f"labels: output {name} has the shape {shape}, which is no row of classes"
    if shape[1] != count:
        return f"labels={path!r} has {count} lines, and output {name} has {shape[1]} classes: give one line a class"
    return None


@contextmanager
def classifying() -> Iterator[None]:
    """Let coremltools write a classifier whose outputs have types: it looks for one type too many."""
    from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter

    described = CoreMLProtoExporter.get_func_output

    def padded(self: Any, func: Any) -> Any:
        types = func.output_types
        if types is not None and self.classifier_config is not None:
            func.output_types = [*types, *types[:1] * (len(func.outputs) - len(types))]
        return described(self, func)

    CoreMLProtoExporter.get_func_output = padded
    try:
        yield
    finally:
        CoreMLProtoExporter.get_func_output = described


def with_probabilities(program: Program) -> Program:
    """One more output, for the classifier: what stands behind the first, as probabilities."""
    program = program.clone()
    graph = program.graph.graph
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    scores = program.outputs()[0]
    with graph.inserting_before(output):
        if scores.target in _SOFTMAX:
            found = graph.call_function(aten.clamp.default, (scores, 0.0, 1.0))
        else:
            found = graph.call_function(aten.softmax.int, (scores, -1))
    output.args = ((*program.outputs(), found),)
    program.graph.recompile()
    return dataclasses.replace(program, output_names=(*program.output_names, PROBABILITIES))
