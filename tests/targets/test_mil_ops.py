"""Each MIL operation that the interpreter knows, from a package that coremltools wrote, against torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgecompile.errors import TargetError
from edgecompile.targets._mil_read import coremltools
from edgecompile.targets._mil_run import HANDLERS, Interpreter
from tests.targets import mil_cases, mil_layers, mil_moves
from tests.targets.mil_cases import Case

CASES = [*mil_cases.ELEMENTWISE, *mil_layers.LAYERS, *mil_moves.MOVES, *mil_moves.RESIZES]
IDS = [f"{name}-{[n for n, _ in CASES[:i]].count(name)}" for i, (name, _) in enumerate(CASES)]
INT32 = (torch.int32, torch.int64)


def written(build: Any, inputs: tuple[Tensor, ...], folder: Path) -> Path:
    """The package of a function of MIL's builder, without any pass that would change its operations."""
    ct = coremltools()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from coremltools.converters.mil.mil import Builder as mb
        from coremltools.converters.mil.mil import types

        kinds = [types.int32 if t.dtype in INT32 else types.fp32 for t in inputs]
        specs = [mb.TensorSpec(shape=tuple(t.shape), dtype=k) for t, k in zip(inputs, kinds, strict=True)]
        names = ["a", "b", "c"][: len(inputs)]
        scope: dict[str, Any] = {"build": build, "mb": mb}
        exec(f"def function({', '.join(names)}): return build(mb, {', '.join(names)})", scope)
        program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(scope["function"])
        model = ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS18,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(folder / "one.mlpackage"))
    return folder / "one.mlpackage"


def test_every_operation_has_a_case() -> None:
    assert {name for name, _ in CASES} == set(HANDLERS)


# each is a package of its own, written and read again: a third of them by default
SHARED = [pytest.param(*one, marks=pytest.mark.slow) if i % 3 else one for i, one in enumerate(CASES)]


@pytest.mark.parametrize(("name", "case"), SHARED, ids=IDS)
def test_operation_equals_torch(name: str, case: Case, tmp_path: Path) -> None:
    loaded = Interpreter(written(case.build, case.inputs, tmp_path))
    assert name in {op.kind for op in loaded.steps}
    found = loaded.run(dict(zip("abc", case.inputs, strict=False)))
    wanted = case.right(*case.inputs)
    wanted = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
    for output, right in zip(loaded.program.outputs, wanted, strict=True):
        assert found[output].dtype == right.dtype
        assert found[output].shape == right.shape
        assert torch.allclose(found[output].double(), right.double(), rtol=1e-5, atol=1e-5)


def test_an_unknown_operation_is_named_in_one_line(tmp_path: Path) -> None:
    package = written(lambda mb, x: mb.reverse_sequence(x=x, lengths=[1, 2], seq_axis=1), (mil_cases.X,), tmp_path)
    with pytest.raises(TargetError, match=r"^one.mlpackage: MIL operations that are not interpreted here: reverse_seq"):
        Interpreter(package)
