"""What the matrix is made of: names, keys, shards, distances, verdicts, the ledger, and the architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompile import matrix
from edgecompile.errors import EdgeCompileError, InputError, OutputError, SpecError
from edgecompile.matrix import cells as cells_module
from edgecompile.matrix.child import outcome
from edgecompile.matrix.compare import Distance, distance, judge
from edgecompile.matrix.ledger import Ledger, Row
from edgecompile.matrix.sources import sources, sources_hash
from edgecompile.models.configs import CONFIGS
from edgecompile.reference import load_function


@pytest.mark.parametrize(
    ("models", "targets", "said"),
    [
        (["resnet5"], [], "--only: unknown model 'resnet5'; did you mean resnet50?"),
        ([], ["onxn@host"], "--targets: unknown word 'onxn' at character 1; did you mean onnx?"),
        ([], ["mobil"], "expected artifact@device, such as onnx@host, or a deployment; did you mean mobile?"),
        ([], ["onnx@galaxy-s23"], "--targets onnx@galaxy-s23: unknown device 'galaxy-s23'; did you mean galaxy-s2"),
        ([], ["onnx(opst=18)@host"], "unknown option 'opst'; did you mean opset?"),
        ([], ["onnx, tvm@host"], "expected artifact@device, such as onnx@host"),
        ([], ["json:loads@host"], "json:loads is no class of targets"),
    ],
)
def test_a_wrong_name_is_one_line_with_near_spellings(models: list[str], targets: list[str], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        matrix.plan(models, targets)
    assert said in str(caught.value)


def test_deployments_stand_for_their_artifacts() -> None:
    everything = {cell.target for cell in matrix.plan(["digits"])}
    assert {"onnx@host", "tvm@host", "coreml@iphone-15-pro", "tensorrt@agx-orin-64gb"} <= everything
    mobile = {cell.target for cell in matrix.plan(["digits"], ["mobile"])}
    assert {"onnx(npu=qnn)@galaxy-s24", "coreml@iphone-15-pro"} <= mobile < everything
    host = {cell.target for cell in matrix.plan(["digits"], ["onnx|tvm@host"])}
    assert host == {"onnx@host", "tvm@host"}, "what a build takes the faster of are cells of their own"
    assert len({cell.key for cell in matrix.plan()}) == len(matrix.plan())


@given(st.integers(1, 9))
def test_shards_are_a_partition_by_model(count: int) -> None:
    cells = [matrix.Cell(name, "t", mode, f"{name}{mode}") for name in "abcdef" for mode in matrix.MODES]
    parts = [matrix.shard(cells, f"{i}/{count}") for i in range(1, count + 1)]
    assert sorted(c.key for part in parts for c in part) == sorted(c.key for c in cells)
    models = [{c.model for c in part} for part in parts]
    assert sum(map(len, models)) == 6
    for text in (f"0/{count}", f"{count + 1}/{count}", str(count), f"{count}/0", "a/b"):
        with pytest.raises(SpecError, match="expected i/n"):
            matrix.shard(cells, text)


def test_a_key_follows_the_sources_of_its_own_cell(tmp_path: Path) -> None:
    names = {p.name for p in sources(["edgecompile.targets.onnx"])}
    assert {"onnx.py", "_onnx_graph.py", "onnx_run.py", "core.py"} <= names
    assert not {n for n in names if n.startswith(("_tvm", "_mil", "_coreml", "_tensorrt"))}
    assert "_tvm_worker.py" in {p.name for p in sources(["edgecompile.targets.tvm"])}, "run as a module of its own"
    assert "fashion.safetensors" in {p.name for p in sources(["edgecompile.models.fashion"])}
    mine = tmp_path / "mine.py"
    mine.write_text("import edgecompile.spec\n")
    before = sources_hash([str(mine)])
    assert sources_hash([str(mine)]) == before
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text("import edgecompile.spec  # and more\n")
    assert sources_hash([str(other)]) != before
    assert sources_hash([], ["edgecompile.spec"]) != sources_hash([], ["edgecompile.errors"])


def test_versions_and_processor_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    (before, *_), versions = matrix.plan(["digits"], ["onnx@host"]), cells_module._versions()
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert {"onnxruntime", "apache-tvm", "transformers"} <= set(versions)
    assert "pytest" not in versions
    monkeypatch.setattr(cells_module, "_flags", lambda: ["another"])
    assert matrix.plan(["digits"], ["onnx@host"])[0].key != before.key


def _oracle(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> Distance:
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    dot, long = float(sum(x * y for x, y in zip(a, b, strict=True))), [float(np.sqrt((v * v).sum())) for v in (a, b)]
    return Distance(abs(a - b).max() / abs(b).max(), dot / (long[0] * long[1]), long[0] / long[1] - 1)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 40), st.floats(1e-6, 2))
def test_distance_is_the_worst_over_outputs(seed: int, outputs: int, size: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    theirs = [tuple(rng.standard_normal((1, size)).astype(np.float32) for _ in range(outputs)) for _ in range(3)]
    ours = [tuple((a + noise * rng.standard_normal(a.shape)).astype(np.float32) for a in run) for run in theirs]
    pairs = [_oracle(np.stack([r[i] for r in ours]), np.stack([r[i] for r in theirs])) for i in range(outputs)]
    found = distance(ours, theirs)
    assert found.error == pytest.approx(max(p.error for p in pairs))
    assert found.cosine == pytest.approx(min(p.cosine for p in pairs))
    assert abs(found.norm) == pytest.approx(max(abs(p.norm) for p in pairs))
    assert distance(theirs, theirs).error == 0


def test_distance_of_what_has_none() -> None:
    x, zero = np.array([[1.0, -2.0]]), np.zeros((1, 2))
    infinite = np.array([[1.0, -np.inf]])
    assert distance([(infinite,)], [(infinite,)]) == Distance(0.0, 1.0, 0.0)
    assert distance([(x,)], [(infinite,)]).error == float("inf")
    assert distance([(infinite,)], [(x,)]).error == float("inf")
    assert distance([(zero,)], [(zero,)]) == Distance(0.0, 1.0, 0.0)
    assert distance([(x,)], [(zero,)]).error == float("inf")
    assert distance([(zero,)], [(x,)]).cosine == 0
    with pytest.raises(ValueError, match=r"output 0: shape \[1, 2\], the teacher's is \[2\]"):
        distance([(x,)], [(x[0],)])
    with pytest.raises(ValueError, match="zip"):
        distance([(x, x)], [(x,)])


@pytest.mark.parametrize(
    ("found", "mode", "dtype", "host", "status"),
    [
        (Distance(1e-4, 1, 0), "float", "fp32", None, "equal"),
        (Distance(1.1e-4, 1, 0), "float", "fp32", None, "differs"),
        (Distance(5e-3, 0.9, 1), "float", "fp16", None, "equal"),
        (Distance(6e-3, 0.9999, 0.01), "float", "fp16", None, "equal"),
        (Distance(6e-3, 0.9998, 0), "float", "fp16", None, "differs"),
        (Distance(6e-3, 1, -0.02), "float", "fp16", None, "differs"),
        (Distance(0.5, 0.99, 0), "int8", "fp32", None, "equal"),
        (Distance(0.5, 0.989, 0), "int8", "fp16", None, "differs"),
        (Distance(0.5, 0.949, 0), "int8", "fp16", 0.95, "equal"),
        (Distance(0.5, 0.947, 0), "int8", "fp16", 0.95, "differs"),
        (Distance(0.5, 0.99, 0), "int8", "fp16", 1.0, "equal"),
        (Distance(float("inf"), 0, float("inf")), "float", "fp16", None, "differs"),
        (Distance(float("nan"), float("nan"), 0), "int8", "fp16", None, "differs"),
    ],
)
def test_what_passes_for_equal(found: Distance, mode: str, dtype: str, host: float | None, status: str) -> None:
    assert judge(found, mode, dtype, host)[0] == status


def test_errors_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: BaseException) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            raise error

        return outcome(work)

    assert fails(EdgeCompileError("a\nb")) == {"status": "failed", "why": "a b"}
    assert fails(MemoryError()) == {"status": "failed", "why": "out of memory"}
    assert fails(ValueError("x" * 5000))["status"] == "failed"
    assert len(fails(ValueError("x" * 5000))["why"]) < 700
    with pytest.raises(KeyboardInterrupt):
        fails(KeyboardInterrupt())


def test_a_ledger_is_shared_and_its_damage_is_told(tmp_path: Path) -> None:
    row = Row("m", "t@d", "float", "equal", error=float("inf"), cosine=0.5)
    with Ledger(tmp_path / "l.sqlite") as one, Ledger(tmp_path / "l.sqlite") as two:
        one.put("k", row)
        assert two.get("k") == row
        two.put("k", Row("m", "t@d", "float", "failed", "why"))
        assert one.get("k") == Row("m", "t@d", "float", "failed", "why")
        assert one.get("other") is None
    (tmp_path / "text").write_text("no ledger, but long enough to be read as a page of one" * 100)
    with pytest.raises(InputError, match="not a ledger of edgecompile"):
        Ledger(tmp_path / "text")
    with pytest.raises(OutputError, match="cannot be opened"):
        Ledger(tmp_path / "text" / "below.sqlite")


def test_the_summary_counts_what_was_built() -> None:
    kinds = ("equal", "equal", "differs", "built", "refused", "failed")
    rows = [Row("m", "t", "float", kind) for kind in kinds]  # type: ignore[arg-type]
    assert matrix.summary(rows) == "6 cells: 2 equal, 1 differs, 1 built, 1 refused, 1 failed; 4 of 6 built (66.7 %)"
    assert matrix.summary([]).startswith("0 cells")


# millions of parameters that are published, of our number of classes and size of pictures
PUBLISHED = {
    "resnet50": 25.6,
    "mobilenet_v2": 3.5,
    "efficientnet_b0": 5.3,
    "convnext_tiny": 28.6,
    "vit_small": 22.1,
    "swin_tiny": 28.3,
    "bert_base": 109.5,
    "distilbert": 66.4,
    "yolos_tiny": 6.1,
    "segformer_b0": 3.8,
    "wav2vec2_base": 94.4,
    "gpt2": 124.4,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_architectures_have_their_real_size_and_outputs_that_tell_inputs_apart(name: str) -> None:
    teacher = load_function(CONFIGS[name])()
    weights = teacher.program.weights().values()
    trained = sum(w.numel() for w in weights if w.is_floating_point()) / 1e6
    assert trained == pytest.approx(PUBLISHED[name], rel=0.02)
    assert teacher.program.batch is None
    (batch,) = teacher.evaluate
    for output in teacher.program(*batch.inputs):
        assert output.isfinite().all()
        apart = (output - output.mean(0)).pow(2).mean() / output.pow(2).mean()
        assert apart > 1e-3, "outputs hardly depend on the input: equal ones would mean little"
