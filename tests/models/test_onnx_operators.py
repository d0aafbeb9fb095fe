"""ONNX operators against ONNX's own test data: what is imported is right, what is not is refused in words."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.loader import load_model_tests

from edgecompile.errors import Unsupported
from edgecompile.models._onnx_graph import OnnxModule
from edgecompile.models._onnx_inputs import graph_inputs
from edgecompile.models._onnx_ops import OPS
from edgecompile.models._onnx_values import from_array
from edgecompile.program import Program

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more threads, and lose much where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    """Every test case of every operator that the onnx package ships: a model, inputs, wanted outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their data divides by zero on purpose
        with np.errstate(all="ignore"):
            return list(load_model_tests(kind="node"))


def imported(case: Any, known: bool) -> tuple[OnnxModule, dict[str, torch.Tensor]] | list[str]:
    """The module of a case and its inputs, or why it is refused; `known`: inputs after the first are constants."""
    model = case.model
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    try:
        names = [i.name for i in graph_inputs(case.name, model)]
    except Unsupported as error:
        return error.reasons
    given = dict(zip(names, map(from_array, map(np.asarray, case.data_sets[0][0])), strict=True))
    held = dict(list(given.items())[1:]) if known else {}
    module = OnnxModule(model.graph, versions[0], held)
    free = {name: value for name, value in given.items() if name not in held}
    reasons = module.prepare(free)
    return reasons or (module, free)


def differs(case: Any, found: dict[str, Any]) -> str:
    """How the outputs differ from the wanted ones; empty when they do not."""
    for name, wanted in zip(found, case.data_sets[0][1], strict=False):
        value = found[name].detach()
        limit = TOLERANCE.get(value.dtype, 1e-4)
        expected = from_array(np.asarray(wanted))
        if value.dtype != expected.dtype or value.shape != expected.shape:
            return f"{name}: {value.dtype}{list(value.shape)}, not {expected.dtype}{list(expected.shape)}"
        if not torch.allclose(value.double(), expected.double(), rtol=limit * 10, atol=limit, equal_nan=True):
            return f"{name}: off by {(value.double() - expected.double()).abs().max():.2e}"
    return ""


def plain(cases: list[Any]) -> Iterator[Any]:
    """Cases whose graph is one of ai.onnx, and whose data are arrays."""
    for case in cases:
        domains = {o.domain for o in case.model.opset_import}
        arrays = [*case.data_sets[0][0], *case.data_sets[0][1]]
        ours = bool(domains) and domains <= {"", "ai.onnx"} and not case.model.functions
        if ours and all(isinstance(a, (np.ndarray, np.generic)) and a.dtype != object for a in arrays):
            yield case


@pytest.mark.parametrize(("known", "at_least"), [(False, 900), (True, 1150)])
def test_every_case_is_right_or_refused(cases: list[Any], known: bool, at_least: int) -> None:
    right, wrong, refused = Counter[str](), [], 0
    for case in plain(cases):
        result = imported(case, known)
        if isinstance(result, list):
            assert result, case.name
            assert all(r.startswith(("node '", "initializer '", "input '")) for r in result), result
            refused += 1
            continue
        module, given = result
        if what := differs(case, module.run(given)):
            wrong.append(f"{case.name}: {what}")
        right.update({n.op_type for n in case.model.graph.node})
    assert not wrong
    assert sum(1 for _ in plain(cases)) - refused >= at_least
    if known:
        never = sorted(set(OPS) - set(right))
        assert never == UNTESTED


UNTESTED = [
    "Bernoulli",
    "GlobalLpPool",
    "Multinomial",
    "NonZero",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
]
"""Operators that no right case covers: random ones are refused, the others are in test_onnx_runtime.py."""


def export_cases(cases: list[Any], every: int) -> Iterator[Any]:
    """One in `every` cases of floating-point layers, by place: through torch.export, not only eagerly."""
    yield from list(plain(cases))[::every]


@pytest.mark.parametrize("every", [40, pytest.param(3, marks=pytest.mark.slow)])
def test_captured_programs_equal_the_data_too(cases: list[Any], every: int) -> None:
    captured, wrong = 0, []
    for case in export_cases(cases, every):
        result = imported(case, known=True)
        if isinstance(result, list) or not result[1] or any(t.numel() == 0 for t in result[1].values()):
            continue
        module, given = result
        inputs = {own: given[name] for own, name in module.names.items()}
        program = Program.capture(module, inputs, dynamic_batch=False)
        outputs = dict(zip(program.output_names, program(*inputs.values()), strict=True))
        if what := differs(case, outputs):
            wrong.append(f"{case.name}: {what}")
        captured += 1
    assert not wrong
    assert captured >= 600 // every


def test_the_table_names_operators_of_onnx_only() -> None:
    assert [name for name in OPS if not onnx.defs.has(name)] == []
    assert len(OPS) > 140
