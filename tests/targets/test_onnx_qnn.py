"""ONNX for Snapdragon's NPU: each rule kept and broken, Q/DQ on every side of an operator, the provider's own answer.

onnxruntime-qnn is no dependency: where it is installed (Linux, x86-64), its compiler for the HTP is the oracle.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgecompile.data import Arrays
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import EXACT, PASSES
from edgecompile.program import Program
from edgecompile.target import Artifact
from edgecompile.targets import _onnx_qnn
from edgecompile.targets._onnx_graph import Graph
from edgecompile.targets.onnx import Onnx
from tests.passes.test_quantize import CNN, DATA, TRANSFORMER, snr_db
from tests.targets.qnn_cases import LEFT, TAKEN, integers

has_qnn = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None, reason="onnxruntime-qnn is not installed"
)
QNN = Onnx(npu="qnn")
PROGRAMS = {"cnn": CNN, "transformer": TRANSFORMER}


def quantized(program: Program, target: Onnx = QNN) -> Program:
    context = Context(program, target=target, calib=Arrays("noise", (DATA[id(program)],), batch_size=16))
    return PassManager(parse("quantize(reduce_range=no)", PASSES)).run(program, context)[0]


def emitted(program: Program, folder: Path, target: Onnx = QNN) -> Artifact:
    folder.mkdir(exist_ok=True)
    return target.emit(program.specialised(1), folder, {})


def left_by_qnn(model: onnx.ModelProto, folder: Path) -> set[str]:
    """The nodes that the provider leaves when it compiles for the HTP of a Galaxy S24, less those at the edges."""
    import onnxruntime as ort

    qnn: Any = importlib.import_module("onnxruntime_qnn")
    if not any(d.ep_name == "QNN" for d in ort.get_ep_devices()):
        ort.register_execution_provider_library("QNN", qnn.get_library_path())
    options = ort.SessionOptions()
    options.log_severity_level = 4
    written = folder / "context.onnx"
    for key, value in {"enable": "1", "file_path": str(written), "embed_mode": "1"}.items():
        options.add_session_config_entry(f"ep.context_{key}", value)
    options.add_provider_for_devices(
        [d for d in ort.get_ep_devices() if d.ep_name == "QNN"],
        {"backend_path": qnn.get_qnn_htp_path(), "htp_arch": "75", "soc_model": "57"},
    )
    ort.InferenceSession(model.SerializeToString(), options)
    if not written.exists():  # it takes nothing
        return {n.name for n in model.graph.node} - edges(model.graph)
    return {n.name for n in onnx.load(str(written)).graph.node if n.op_type != "EPContext"} - edges(
        onnx.load(str(written)).graph
    )


def edges(graph: onnx.GraphProto) -> set[str]:
    """Q of an input and DQ of an output, which the provider leaves to the CPU by default."""
    first, last = {i.name for i in graph.input}, {o.name for o in graph.output}
    return {
        n.name
        for n in graph.node
        if (n.op_type == "QuantizeLinear" and n.input[0] in first)
        or (n.op_type == "DequantizeLinear" and n.output[0] in last)
    }


@pytest.mark.parametrize("name", list(TAKEN))
def test_what_keeps_the_rules_is_taken(name: str) -> None:
    assert _onnx_qnn.ledger(TAKEN[name]()) == {}


@pytest.mark.parametrize("name", list(LEFT))
def test_what_breaks_a_rule_is_told_with_its_reason(name: str) -> None:
    make, text = LEFT[name]
    assert any(text in why for why in _onnx_qnn.ledger(make()).values())


@has_qnn
@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_the_provider_takes_and_leaves_the_same(name: str, tmp_path: Path) -> None:
    make: Callable[[], onnx.ModelProto] = TAKEN[name] if name in TAKEN else LEFT[name][0]
    model = make()
    left = left_by_qnn(model, tmp_path)
    assert bool(left) == (name in LEFT)
    assert set(_onnx_qnn.ledger(model)) <= left


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_integers_stand_in_node_units_and_equal_the_program_on_the_cpu(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    made = quantized(program)
    artifact = emitted(made, tmp_path / "one")
    model = onnx.load(str(artifact.path))
    graph = Graph(model)
    assert artifact.facts["left_to_cpu"] == {}
    assert any(note.startswith("QNN not run here") for note in artifact.notes)
    for node in graph.proto.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and _onnx_qnn._scales(graph, node.input[1]) > 1:
            assert {graph.producer[n].op_type for n in node.input[:2]} == {"DequantizeLinear"}
            assert _onnx_qnn._quantized(graph, node)
        if node.op_type == "DequantizeLinear" and (stored := graph.constants.get(node.input[0])) is not None:
            assert stored.data_type in (TensorProto.INT8, TensorProto.INT32)
            assert stored.data_type != TensorProto.INT8 or not graph.value(node.input[2]).any()  # type: ignore[union-attr]
    assert bool(artifact.facts["in_floats"]) == (name == "transformer")
    x = DATA[id(program)][:1]
    run = QNN.load(artifact)
    assert snr_db(program(x)[0], run((x,))[0]) > 15
    assert snr_db(made(x)[0], run((x,))[0]) > 30, "as Q/DQ says, saturated nowhere"
    np.savez(tmp_path / "in.npz", **{f"input:{program.input_names[0]}": x.numpy()})
    command = [sys.executable, "run.py", str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, cwd=artifact.folder, check=True, timeout=60)
    with np.load(tmp_path / "out.npz") as stored:
        assert np.array_equal(stored[stored.files[0]], run((x,))[0].numpy())
    assert emitted(quantized(program), tmp_path / "two").path.read_bytes() == artifact.path.read_bytes()


@has_qnn
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_the_provider_takes_what_the_ledger_says(name: str, integer: bool, tmp_path: Path) -> None:
    for target in (QNN, Onnx()):
        program = quantized(PROGRAMS[name], target) if integer else PROGRAMS[name]
        model = onnx.load(str(emitted(program, tmp_path / target.npu, target).path))
        left = {n.partition("/MatMulAddFusion")[0] for n in left_by_qnn(model, tmp_path / target.npu)}
        found = set(_onnx_qnn.ledger(model))
        assert found <= left
        assert bool(found) == bool(left) == (target.npu == "no" and integer)
        kinds = {n.op_type for n in model.graph.node if n.name in found}
        assert not found or kinds & {"Gemm", "MatMul"}


def test_a_product_in_integers_that_writes_floats_is_left_by_both() -> None:
    found = _onnx_qnn.ledger(integers(behind=False, kind="Gemm", axis=1))
    assert Counter(found) == Counter({"dw": found["dw"], "node": found["node"]})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "efficientnet_lite0", "minilm"])
@pytest.mark.parametrize("text", ["", "quantize"])
def test_shipped_models_go_to_the_npu_whole(name: str, text: str, tmp_path: Path) -> None:
    from edgecompile.models import MODELS
    from edgecompile.reference import load_function

    teacher = load_function(MODELS[name])()
    context = Context(teacher.program, target=QNN, calib=teacher.calib)
    pipeline = parse(", ".join((*EXACT, *([text] if text else []))), PASSES)
    program = PassManager(pipeline).run(teacher.program, context)[0]
    artifact = QNN.emit(program.specialised(1), tmp_path, {})
    assert artifact.facts["left_to_cpu"] == {}
    if importlib.util.find_spec("onnxruntime_qnn"):
        assert not left_by_qnn(onnx.load(str(artifact.path)), tmp_path)
