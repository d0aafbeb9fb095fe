"""build(): artifacts are what the report says, a rerun gives the same bytes from the cache, decisions are replayed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import edgecompile
from edgecompile.building.bundle import golden_inputs
from edgecompile.data import Arrays, digest_of
from edgecompile.errors import InputError, OutputError, SpecError, TargetError, Unsupported
from edgecompile.pass_manager import Context, Pass
from edgecompile.program import Program, attribute
from edgecompile.report import Report
from edgecompile.report.json_form import json_schema
from edgecompile.store import Cache, file_hash, verifies
from edgecompile.target import Artifact, Run, Target
from edgecompile.targets.onnx import Onnx
from edgecompile.teacher import Teacher
from edgecompile.verify import DRIFT_DB, first_drift, layer_drift, output_errors
from tests import warm

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
KEPT = "quantize(keep=always)"


class Stages:
    """A progress callback that remembers each new stage."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.seen[-1:] != [stage]:
            self.seen.append(stage)


@dataclass
class Built:
    """A build with all that went into it."""

    folder: Path
    out: Path
    report: Report
    stages: list[str]

    @property
    def link(self) -> str:
        return (self.out / "host").readlink().name

    def again(self, out: str, **values: Any) -> tuple[Report, list[str]]:
        """The same build into another folder, from the same cache."""
        stages = Stages()
        given = {**inputs(self.folder), "out": str(self.folder / out), **values}
        model = str(self.folder / "net.py") + ":net"
        return edgecompile.build(model, cache=Cache(self.folder / "cache"), progress=stages, **given), stages.seen


def inputs(folder: Path) -> dict[str, Any]:
    return {"calib": str(folder / "calib.npz"), "eval": str(folder / "eval.npz"), "pipeline": KEPT}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("build")
    warm.write_user_files(folder)
    made = Built(folder, folder / "out", None, [])  # type: ignore[arg-type]
    made.report, made.stages = made.again("out")
    return made


def written(out: Path) -> dict[str, Any]:
    body = json.loads((out / "report.json").read_text())
    jsonschema.validate(body, json_schema())
    return body


def test_the_report_names_files_relative_to_the_folder_with_their_hashes(built: Built) -> None:
    body = written(built.out)
    assert body["exit_code"] == 0
    assert [a["path"] for a in body["artifacts"]] == [
        f"host/{name}" for name in ("model.onnx", "run.py", "golden.npz", "selftest.py", "README.md", "manifest.json")
    ]
    for artifact in body["artifacts"]:
        path = built.out / artifact["path"]
        assert (file_hash(path), path.stat().st_size) == (artifact["sha256"], artifact["size_bytes"])
    assert str(built.folder) not in json.dumps(body["artifacts"]) + json.dumps(body["steps"])
    assert verifies(built.out / "host")


def test_the_manifest_has_the_hash_of_every_file(built: Built) -> None:
    manifest = json.loads((built.out / "host/manifest.json").read_text())
    assert set(manifest["files"]) == {"model.onnx", "golden.npz", "run.py", "selftest.py", "README.md"}
    for name, said in manifest["files"].items():
        assert said["sha256"] == file_hash(built.out / "host" / name)
    assert (manifest["batch"], manifest["target"], manifest["golden_from"]) == (1, "host", "artifact")
    assert manifest["inputs"] == [{"name": "image", "shape": [1, 3, 8, 8], "dtype": "float32"}]
    assert manifest["pipeline"].endswith(KEPT)


def session(out: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(out / "host/model.onnx"), providers=["CPUExecutionProvider"])


def test_the_reported_score_is_that_of_the_emitted_file(built: Built) -> None:
    data = np.load(built.folder / "eval.npz")
    run = session(built.out)
    logits = np.concatenate([run.run(None, {"image": x[None]})[0] for x in data["x"]])
    score = built.report.score
    assert score is not None
    assert score.artifact == pytest.approx(100 * np.mean(logits.argmax(1) == data["y"]))
    assert (score.teacher, score.kind, score.samples) == (100.0, "measured", 64)


def test_the_golden_outputs_come_out_of_the_emitted_file(built: Built) -> None:
    golden = np.load(built.out / "host/golden.npz")
    run = session(built.out)
    found = run.run(None, {"image": golden["input:image"]})
    assert np.array_equal(found[0], golden["output:" + run.get_outputs()[0].name])
    assert np.array_equal(golden["input:image"][0], np.load(built.folder / "eval.npz")["x"][0])


def test_the_emitted_file_says_how_it_was_made(built: Built) -> None:
    said = session(built.out).get_modelmeta().custom_metadata_map
    assert said["pipeline"] == built.report.pipeline
    assert said["teacher"] == built.report.model.hash
    assert said["torch"] == built.report.versions["torch"]


def test_a_second_run_resumes_from_the_cache_and_gives_the_same_bytes(built: Built) -> None:
    entries = sorted((built.folder / "cache/entries").iterdir())
    report, stages = built.again("second")
    assert (built.folder / "second/host").readlink().name == built.link
    assert sorted((built.folder / "cache/entries").iterdir()) == entries
    done_once = {"emitting", "scoring", "running quantize", "running the teacher"}
    assert done_once <= set(built.stages)
    assert not done_once & set(stages)
    assert report.decisions == built.report.decisions


@pytest.mark.slow
def test_an_empty_cache_gives_the_same_bytes(built: Built) -> None:
    report = edgecompile.build(
        str(built.folder / "net.py") + ":net",
        cache=Cache(built.folder / "other cache"),
        out=str(built.folder / "fresh"),
        **inputs(built.folder),
    )
    assert report.exit_code == 0
    assert (built.folder / "fresh/host").readlink().name == built.link


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew_with_one_warning(built: Built) -> None:
    said: list[str] = []
    cache = Cache(built.folder / "cache", warn=said.append)
    for path in (built.folder / "cache/entries").rglob("model.onnx"):
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    model = str(built.folder / "net.py") + ":net"
    edgecompile.build(model, cache=cache, out=str(built.folder / "mended"), **inputs(built.folder))
    assert (built.folder / "mended/host").readlink().name == built.link
    assert said
    assert all("damaged" in line for line in said)


def test_a_recorded_decision_is_obeyed(built: Built) -> None:
    pays = [d for d in built.report.decisions if d.key.startswith("keep:")]
    assert len(pays) == 1
    flipped = {"yes": "no", "no": "yes"}[pays[0].value]
    body = written(built.out)
    for decision in body["decisions"]:
        decision["value"] = {"pipeline": "quantize", pays[0].key: flipped}[decision["key"]]
    (built.folder / "recorded.json").write_text(json.dumps(body))
    report, _ = built.again("replayed", pipeline=None, decisions=str(built.folder / "recorded.json"))
    step = next(s for s in report.steps if s.pass_ == "quantize")
    assert step.kept is (flipped == "yes"), step.reason
    assert "the recorded choice is replayed" in step.reason
    assert report.pipeline.endswith("quantize")
    assert {d.key: d.value for d in report.decisions}[pays[0].key] == flipped


@pytest.mark.slow
def test_layers_named_by_keep_float_stay_float_also_when_replayed(built: Built) -> None:
    report, _ = built.again("kept", keep_float=("middle*",))
    step = next(s for s in report.steps if s.pass_ == "quantize")
    assert step.stats["float_layers"] == 1
    assert any("middle" in note and "stays float" in note for note in step.notes)
    again, _ = built.again(
        "kept", pipeline=None, keep_float=("middle*",), decisions=str(built.folder / "kept/report.json")
    )
    assert again.pipeline == report.pipeline


class Turned(Pass):
    """Break the program: the head's weights are turned round."""

    name: ClassVar[str] = "turned"

    def run(self, program: Program, ctx: Context) -> Program:
        """Turn every matrix round."""
        for weight in program.weights().values():
            if weight.dim() == 2:
                weight.data.mul_(-0.5)
        return program


def small_teacher(folder: Path) -> Teacher:
    from edgecompile.models.loaders import load

    return load(str(folder / "net.py") + ":net")


@pytest.mark.slow
def test_a_teacher_object_and_pass_objects_can_be_given(built: Built, tmp_path: Path) -> None:
    teacher = small_teacher(built.folder)
    data = np.load(built.folder / "eval.npz")
    labelled = Arrays("mine", (torch.from_numpy(data["x"]),), torch.from_numpy(data["y"]))
    made = Teacher("mine", teacher.program, teacher.digest, evaluate=labelled, classes=True)
    report = edgecompile.build(
        made,
        passes=[Turned(keep="always")],
        max_drop="1pp",
        out=str(tmp_path / "o"),
        cache=Cache(built.folder / "cache"),
    )
    assert report.exit_code == 4
    assert report.pipeline.endswith("turned(keep=always)")
    assert report.verify is not None
    assert report.verify.first_drift is not None
    assert report.verify.first_drift.startswith("head")
    assert "text/html" not in report._repr_html_()[:20]
    assert "<iframe" in report._repr_html_()
    assert (tmp_path / "o/rejected/host/model.onnx").is_file()
    assert not (tmp_path / "o/host").exists()


def test_golden_inputs_can_be_random_and_seeded(built: Built) -> None:
    program = small_teacher(built.folder).program.specialised(2)
    (one, kind), (two, _) = (golden_inputs(program, None, "synthetic", seed) for seed in (1, 1))
    other, fallback = golden_inputs(program, None, "data", 2)
    assert (kind, fallback) == ("synthetic", "synthetic")  # without data, what is written says so
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], other[0])
    assert one[0].shape == (2, 3, 8, 8)


def test_golden_integers_stay_within_the_examples_range() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.table(ids)
            return out

    program = Program.capture(Table(), {"ids": torch.tensor([[0, 6], [3, 2]])}).specialised(1)
    (ids,), _ = golden_inputs(program, None, "synthetic", 0)
    assert ids.dtype == torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) <= 6


def test_the_first_layer_that_drifts_is_named(built: Built, tmp_path: Path) -> None:
    teacher = small_teacher(built.folder).program
    broken = teacher.clone()
    node = next(
        n for n in broken.graph.graph.nodes if n.op == "get_attr" and "middle" in n.target and "weight" in n.target
    )
    attribute(broken.graph, str(node.target)).data.mul_(3)
    target = Onnx()
    artifact = target.emit(broken.specialised(1), tmp_path, {})
    layers = layer_drift(
        teacher,
        broken,
        lambda names, x: target.tap(artifact, names, x),
        target.load(artifact),
        [(torch.randn(1, 3, 8, 8),), (torch.randn(1, 3, 8, 8),)],
    )
    first = first_drift(layers)
    assert first is not None
    assert first.startswith("middle")
    before = [db for _, db in layers[: next(i for i, (name, _) in enumerate(layers) if name == first)]]
    assert before
    assert all(db is None or db > 60 for db in before)


def test_first_drift_is_the_layer_from_which_it_stays_low() -> None:
    assert first_drift([("a", 40.0), ("b", 5.0), ("c", 30.0), ("d", 10.0), ("e", 1.0)]) == "d"
    assert first_drift([("a", 5.0), ("b", None)]) is None
    assert first_drift([("a", float("nan"))]) == "a"
    assert first_drift([("a", DRIFT_DB)]) is None


def test_errors_of_outputs_lose_no_nan_and_see_no_error_where_both_are_infinite() -> None:
    theirs = np.array([[1.0, np.inf]], dtype=np.float32)
    assert output_errors([(theirs.copy(),)], [(theirs,)]).snr_db is None
    nan = output_errors([(np.array([[np.nan, 1.0]], dtype=np.float32),)], [(np.ones((1, 2), np.float32),)])
    assert np.isnan(nan.max_abs)
    assert nan.snr_db is not None
    assert np.isnan(nan.snr_db)
    off = output_errors([(np.full((2, 2), 1.5, np.float32),)], [(np.ones((2, 2), np.float32),)])
    assert (off.samples, off.max_abs, off.mean_abs) == (2, 0.5, 0.5)
    assert off.snr_db == pytest.approx(20 * np.log10(2))


def test_a_fixed_batch_is_not_silently_another(built: Built, tmp_path: Path) -> None:
    program = small_teacher(built.folder).program.specialised(2)
    teacher = Teacher("two", program, digest_of(program))
    with pytest.raises(InputError) as caught:
        edgecompile.build(teacher, batch=4, out=str(tmp_path / "o"))
    assert str(caught.value) == "--batch 4: two takes batches of 2 only: leave --batch out"
    assert written(tmp_path / "o")["exit_code"] == 2


def test_every_unsupported_operator_is_listed_at_once(built: Built, tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        edgecompile.build(str(built.folder / "net.py") + ":unknown", pipeline="", out=str(tmp_path / "o"))
    assert "scaled_modified_bessel_k0" in str(caught.value)
    assert "airy_ai" in str(caught.value)
    body = written(tmp_path / "o")
    assert body["exit_code"] == 5
    assert [r["rule"] for r in body["refusals"]] == ["operator", "operator"]


@dataclass(frozen=True)
class NoNorms(Onnx):
    """ONNX for a runtime without batch norms."""

    def refuse(self, program: Program) -> list[str]:
        """Refuse every batch norm as well."""
        norms = [n for n in program.graph.graph.nodes if "batch_norm" in str(n.target)]
        return [f"{n.name}: no batch norms" for n in norms] + super().refuse(program)

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        """Write the file, unless there is a batch norm."""
        if reasons := self.refuse(program):
            raise Unsupported(self.name, reasons)
        return super().emit(program, folder, metadata)


def test_what_the_exact_passes_take_away_is_no_reason_to_refuse(built: Built, tmp_path: Path) -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    program = Program.capture(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).eval(), {"input": x[:2]})
    assert NoNorms().refuse(program)
    teacher = Teacher("norms", program, digest_of(program), evaluate=Arrays("input", (x,)))
    cache = Cache(built.folder / "cache")
    report = edgecompile.build(teacher, target=NoNorms(), pipeline="", out=str(tmp_path / "o"), cache=cache)
    assert report.exit_code == 0
    (step,) = report.steps
    assert step.latency_before is None
    assert step.latency_after is not None
    assert "no batch norms" in step.reason


def test_an_error_in_a_pass_says_how_to_go_on_from_there(built: Built, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Stops(Pass):
        name: ClassVar[str] = "stops"

        def run(self, program: Program, ctx: Context) -> Program:
            raise edgecompile.errors.PassError("stops: always")

    with pytest.raises(edgecompile.errors.PassError) as caught:
        edgecompile.build(
            small_teacher(built.folder), passes=[Stops()], out=str(tmp_path / "o"),
            cache=Cache(built.folder / "cache"),
        )  # fmt: skip
    assert str(caught.value) == "stops: always (in pass 12 of 12; --pipeline 'stops' runs from there)"
    assert written(tmp_path / "o")["refusals"][0]["text"] == str(caught.value)


class Raises:
    """A progress callback that raises: as good a place as any other inside a build."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, stage: str, done: int, total: int) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "text", "code"),
    [
        (ZeroDivisionError("a bug"), ZeroDivisionError, "a bug", 1),
        (KeyboardInterrupt(), KeyboardInterrupt, "", 130),
        (MemoryError(), InputError, "out of memory: use a smaller model", 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), InputError, "out of memory", 2),
        (OSError(28, "No space left on device", "/tmp/x"), OutputError, "/tmp/x: No space left on device; free", 2),
        (InputError("x.npz: empty"), InputError, "x.npz: empty", 2),
    ],
)
def test_every_error_leaves_a_report(
    tmp_path: Path, error: BaseException, kind: type[BaseException], text: str, code: int
) -> None:
    with pytest.raises(kind) as caught:
        edgecompile.build("digits", progress=Raises(error), out=str(tmp_path / "o"))
    assert str(caught.value).startswith(text)
    body = written(tmp_path / "o")
    assert (body["exit_code"], body["exit_codes"]) == (code, [code])
    assert "digits" in (tmp_path / "o/report.html").read_text()


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(built: Built, tmp_path: Path) -> None:
    report = edgecompile.build(
        str(built.folder / "net.py") + ":net", calib=inputs(built.folder)["calib"], dry_run=True,
        out=str(tmp_path / "o"), cache=Cache(tmp_path / "cache"),
    )  # fmt: skip
    assert report.dry_run
    assert report.pipeline.endswith("merge_linear, quantize")
    assert report.notes[0] == "pipeline: there is calibration data, and the target has integer kernels"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_empty_pipeline_is_the_exact_passes_only(built: Built) -> None:
    report, _ = built.again("exact", pipeline="")
    assert report.exit_code == 0
    assert "quantize" not in report.pipeline
    assert report.size_bytes == report.teacher_size_bytes
    assert report.score is not None
    assert report.score.artifact == 100.0


def test_options_and_keywords_are_not_mixed() -> None:
    with pytest.raises(SpecError, match="give options or keywords, not both"):
        edgecompile.build("digits", edgecompile.BuildOptions(), out="x")
    with pytest.raises(SpecError, match=r"build: unknown option 'sed'; did you mean seed\?"):
        edgecompile.build("digits", sed=1)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "o").write_text("mine")
    with pytest.raises(OutputError, match="a file is where a folder is needed"):
        edgecompile.build("digits", out=str(tmp_path / "o"))
    assert (tmp_path / "o").read_text() == "mine"


@dataclass(frozen=True)
class OneOutput(Target):
    """ONNX for a runtime that shows no inner values and takes one output alone."""

    name: ClassVar[str] = "one_output"

    def emit(self, program: Program, folder: Path, metadata: Mapping[str, str]) -> Artifact:
        """Write the file, of a program with one output."""
        if len(program.output_names) > 1:
            raise TargetError(f"{self.name}: two outputs")
        return Onnx().emit(program, folder, metadata)

    def load(self, artifact: Artifact, threads: int = 1) -> Run:
        """The file in ONNX Runtime."""
        return Onnx().load(artifact, threads)


@pytest.mark.slow
def test_layers_that_cannot_be_compared_are_told(built: Built, tmp_path: Path) -> None:
    teacher = small_teacher(built.folder)
    x = torch.from_numpy(np.load(built.folder / "eval.npz")["x"])
    made = Teacher("mine", teacher.program, teacher.digest, evaluate=Arrays("mine", (x,)))
    report = edgecompile.build(
        made, target=OneOutput(), passes=[Turned(keep="always")], out=str(tmp_path / "o"),
        cache=Cache(built.folder / "cache"),
    )  # fmt: skip
    assert report.verify is not None
    assert report.verify.layers == ()
    assert "layers were not compared: one_output: two outputs" in report.notes
