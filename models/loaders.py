"""load: from what a user writes as MODEL (a name, a file, a folder, `module:function`) to a Teacher."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgecompile import program_file
from edgecompile.data.digest import digest_of
from edgecompile.data.preprocess import parse_image
from edgecompile.errors import EdgeCompileError, InputError, SpecError, near
from edgecompile.ingest import check_saved, parse_in_child, read_status, vet
from edgecompile.models import MODELS
from edgecompile.models.examples import capture, parse_inputs
from edgecompile.models.weights import check_finite, fill, read_weights
from edgecompile.program import Program
from edgecompile.reference import is_function, load_function
from edgecompile.teacher import Teacher

FORMS = "a name, an .onnx or .pt2 file, a Hugging Face folder, pkg.module:function or path/file.py:function"
_ELSEWHERE = {
    ".h5": "tf2onnx",
    ".keras": "tf2onnx",
    ".pb": "tf2onnx",
    ".tflite": "tf2onnx",
    ".pdmodel": "paddle2onnx",
    ".mlmodel": "the tool that made it",
    ".mlpackage": "the tool that made it",
}


def load(
    ref: str,
    *,
    weights: Path | None = None,
    inputs: Sequence[str] = (),
    image: str | None = None,
    fix: Sequence[str] = (),
    trust: bool = False,
    allow_nonfinite: bool = False,
) -> Teacher:
    """The teacher called `ref`; raises `InputError`, `SpecError` or `Refused`, each in one line.

    `weights` fill the module that a function returns; `inputs` (`NAME=1x3x224x224:float32`) are its example
    inputs; `fix` (`sr=16000`) makes constants of inputs of an ONNX file; `image` (`size=224,...`) says how
    pictures are prepared. `trust` lets files through that vetting
    would refuse. Weights with NaN or infinite values are an error unless `allow_nonfinite`.
    """
    prepared = parse_image(image) if image else None
    examples = parse_inputs(inputs)
    teacher = _by_form(ref, weights, examples, trust, parse_fixed(fix))
    if not allow_nonfinite:
        check_finite(teacher.program, ref)
    if prepared is not None:
        teacher = dataclasses.replace(teacher, preprocessing={**teacher.preprocessing, "image": prepared.as_dict()})
    return teacher


def parse_fixed(texts: Sequence[str]) -> dict[str, float]:
    """`NAME=VALUE` of each `--fix`; raises `SpecError`."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not re.fullmatch(r"-?\d+(\.\d+)?", value):
            raise SpecError(f"--fix {text!r}: expected the name of an input and a number, such as sr=16000")
        found[name] = float(value)
    return found


def _by_form(
    ref: str, weights: Path | None, examples: Mapping[str, Tensor], trust: bool, fixed: Mapping[str, float]
) -> Teacher:
    path = Path(ref)
    if fixed and not path.is_file():
        raise InputError(f"--fix {next(iter(fixed))}: {ref} is no .onnx file: drop --fix")
    if ref in MODELS:
        _alone(ref, "brings its own weights and inputs", weights, examples)
        found: Teacher = load_function(MODELS[ref])()
        return found
    if path.is_dir():
        _alone(ref, "brings its own weights", weights, {})
        return _folder(path, examples)
    if path.is_file():
        return _file(path, weights, examples, trust, fixed)
    if is_function(ref):
        return _function(ref, weights, examples, trust)
    if path.suffix or "/" in ref:
        raise InputError(f"{ref}: does not exist; a model is {FORMS}")
    raise InputError(f"unknown model {ref!r}{near(ref, MODELS)}; a model is {FORMS}")


def _alone(ref: str, why: str, weights: Path | None, examples: Mapping[str, Tensor]) -> None:
    if weights is not None:
        raise InputError(f"--weights {weights}: {ref} {why}: drop --weights")
    if examples:
        raise InputError(f"--input {next(iter(examples))}: {ref} {why}: drop --input")


def _folder(path: Path, examples: Mapping[str, Tensor]) -> Teacher:
    from edgecompile.models.hf_folder import read_folder

    if not (path / "config.json").is_file():
        raise InputError(f"{path}: a folder without config.json is no Hugging Face folder; a model is {FORMS}")
    found = read_folder(path, examples or None)
    program = _captured(str(path), found["model"], found["inputs"])
    return Teacher(
        name=path.resolve().name,
        program=program,
        digest=digest_of(program),
        preprocessing=found["preprocessing"],
        classes=found["classes"],
        notes=(*found["notes"], *program.notes),
    )


def _file(
    path: Path, weights: Path | None, examples: Mapping[str, Tensor], trust: bool, fixed: Mapping[str, float]
) -> Teacher:
    suffix = path.suffix.lower()
    if suffix in _ELSEWHERE:
        raise InputError(
            f"{path}: {suffix} files are not read: export the model to ONNX with {_ELSEWHERE[suffix]} and give that"
        )
    if suffix == ".py":
        raise InputError(f"{path}: say which function of it returns the model: {path}:function")
    vetted = vet(path, trust=trust)
    if vetted.kind in ("torch_weights", "safetensors"):
        raise InputError(
            f"{path}: holds weights alone, not the model: name the code that builds it, and give the"
            " weights beside it:"
            f" edgecompile build module:function --weights {path}"
        )
    if vetted.kind not in ("onnx", "pt2"):
        raise InputError(f"{path}: holds arrays, not a model; a model is {FORMS}")
    _alone(str(path), "brings its own weights", weights, {} if vetted.kind == "onnx" else examples)
    args: dict[str, Any] = {"path": str(path)}
    if vetted.kind == "pt2":
        args["trust"] = trust
    else:
        args["inputs"] = {name: list(tensor.shape) for name, tensor in examples.items()} or None
        args["fixed"] = fixed or None
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as folder:
        saved = parse_in_child(vetted.kind, args, Path(folder) / "program")
        check_saved(saved)
        program = program_file.load(saved)
        notes = (*vetted.notes, *read_status(saved).notes, *program.notes)
    return Teacher(name=path.stem, program=program, digest=digest_of(program), notes=notes)


def _function(ref: str, weights: Path | None, examples: Mapping[str, Tensor], trust: bool) -> Teacher:
    made = load_function(ref)
    if callable(made) and not isinstance(made, nn.Module):
        try:
            made = made()
        except EdgeCompileError:
            raise
        except Exception as error:  # the user's own code: its message, where it was called, and the cause chained
            raise InputError(f"{ref}: raised {type(error).__name__}: {error}") from error
    if isinstance(made, Teacher):
        _alone(ref, "returns a teacher with its own weights and inputs", weights, examples)
        return made
    module, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{ref}: returned a {type(module).__name__}; a torch module, (module, example inputs) or a"
            " Teacher is expected"
        )
    if isinstance(given, Tensor):
        given = (given,)
    if given is not None and not isinstance(given, (tuple, list, dict)):
        raise InputError(
            f"{ref}: its example inputs are a {type(given).__name__}; a tuple or a dict of tensors is expected"
        )
    inputs = dict(examples) or given
    if not inputs:
        raise InputError(
            f"{ref}: returned no example inputs: return (module, inputs), or say --input NAME=1x3x224x224:float32"
        )
    notes: tuple[str, ...] = ()
    if weights is not None:
        state, notes = read_weights(weights, trust)
        fill(module, state, weights)
    program = _captured(ref, module, inputs)
    return Teacher(name=ref, program=program, digest=digest_of(program), notes=(*notes, *program.notes))


def _captured(ref: str, model: nn.Module, inputs: Any) -> Program:
    try:
        return capture(model, inputs)
    except InputError as error:
        raise InputError(f"{ref}: {error}") from error
