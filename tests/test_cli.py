"""The command line: every mistake is one line with its exit code, and nothing heavy is imported for help."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgecompile.errors import REFUSED, UNSUPPORTED, USAGE
from edgecompile.report.json_form import json_schema
from tests import warm

HEAVY = {"torch", "scipy", "ray", "numpy", "onnx", "onnxruntime", "transformers", "nncf", "torchao", "sklearn", "PIL"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli")
    warm.write_user_files(made)
    x = np.zeros((4, 3, 8, 8), np.float32)
    np.savez(made / "empty.npz")
    np.savez(made / "none.npz", x=x[:0])
    np.savez(made / "shape.npz", x=x[:, :2])
    np.savez(made / "dtype.npz", x=np.full((4, 3, 8, 8), "a"))
    np.savez(made / "nan.npz", x=np.where(np.arange(768).reshape(4, 3, 8, 8) == 5, np.nan, x).astype(np.float32))
    (made / "cut.npz").write_bytes((made / "calib.npz").read_bytes()[:1000])
    (made / "file").write_text("a file")
    (made / "bad.toml").write_text("[build]\nmodel = 'digits'\nseed = zero\n")
    (made / "report.txt").write_text("no report")
    torch.save(torch.nn.Linear(2, 2), made / "module.pt")
    torch.save({"first.weight": torch.zeros(1)}, made / "other.pt")
    _external(made / "external.onnx")
    return made


def _external(path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../../etc/passwd")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    path.write_bytes(
        helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weight])).SerializeToString()
    )
    assert onnx.load_model_from_string(path.read_bytes()).graph.initializer


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.marker,)


NET = ("build", "net.py:net")
CASES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "model": (("build", "digit"), USAGE, "unknown model 'digit'; did you mean digits?"),
    "model file": (("build", "gone/model.onnx"), USAGE, "gone/model.onnx: does not exist; a model is"),
    "function": (("build", "net.py:nett"), USAGE, "did you mean net?"),
    "target": ((*NET, "--target", "hots"), USAGE, "unknown deployment 'hots'; did you mean host?"),
    "artifact": ((*NET, "--target", "onxn@host"), USAGE, "unknown word 'onxn' at character 1; did you mean onnx?"),
    "target option": ((*NET, "--target", "onnx(opst=18)@host"), USAGE, "unknown option 'opst'; did you mean opset?"),
    "device": ((*NET, "--device", "hosts"), USAGE, "unknown device 'hosts'; did you mean host?"),
    "pass": ((*NET, "--pipeline", "quantise"), USAGE, "unknown word 'quantise' at character 1; did you mean quantize?"),
    "pass option": ((*NET, "--pipeline", "quantize(weight=int8)"), USAGE, "'weight'; did you mean weights?"),
    "pass value": ((*NET, "--pipeline", "quantize(weights=int9)"), USAGE, "'int9' is not one of the choices"),
    "pipeline": ((*NET, "--pipeline", "quantize("), USAGE, "write it as a, b(option=value)"),
    "flag": ((*NET, "--max-latncy", "4ms"), USAGE, "No such option: --max-latncy"),
    "verb": (("biuld", "digits"), USAGE, "No such command 'biuld'"),
    "no model": (("build",), USAGE, "build: no model: name one"),
    "latency": ((*NET, "--max-latency", "fast"), USAGE, "--max-latency 'fast': expected a time or a share"),
    "drop": ((*NET, "--max-drop", "1"), USAGE, "--max-drop '1': expected percent points"),
    "size": ((*NET, "--max-size", "-4MB"), USAGE, "--max-size '-4MB': expected a size"),
    "batch": ((*NET, "--batch", "0"), USAGE, "--batch 0: must be 1 or more"),
    "batch text": ((*NET, "--batch", "many"), USAGE, "Invalid value for '--batch': Input should be a valid integer"),
    "image": ((*NET, "--image", "siz=3"), USAGE, "did you mean size?"),
    "input": ((*NET, "--input", "image=3by3"), USAGE, "--input 'image=3by3' is not NAME=1x3x224x224:float32"),
    "toml": (("build", "--config", "bad.toml"), USAGE, "bad.toml: not TOML: Invalid value (at line 3, column 8)"),
    "no toml": (("build", "--config", "gone.toml"), USAGE, "gone.toml: cannot be read: No such file"),
    "decisions": ((*NET, "--decisions", "report.txt"), USAGE, "report.txt: not a report of edgecompile"),
    "no decisions": ((*NET, "--decisions", "gone.json"), USAGE, "--decisions gone.json: cannot be read"),
    "NaN weights": (("build", "net.py:poisoned"), USAGE, "middle.weight"),
    "control flow": (("build", "net.py:branching"), USAGE, "its control flow depends on the data"),
    "no example": (("build", "net.py:bare"), USAGE, "returned no example inputs"),
    "no data": ((*NET, "--calib", "gone.npz"), USAGE, "gone.npz"),
    "empty data": ((*NET, "--calib", "empty.npz"), USAGE, "empty.npz"),
    "no samples": ((*NET, "--eval", "none.npz"), USAGE, "none.npz"),
    "shape": ((*NET, "--eval", "shape.npz"), USAGE, "shape.npz"),
    "dtype": ((*NET, "--calib", "dtype.npz"), USAGE, "dtype.npz"),
    "NaN data": ((*NET, "--calib", "nan.npz"), USAGE, "nan.npz"),
    "keep-float unread": (
        (*NET, "--pipeline", "", "--keep-float", "head"),
        USAGE,
        "no pass of this build quantizes: drop it",
    ),
    "labels unread": ((*NET, "--labels", "l.txt"), USAGE, "labels belong to --eval, which is not given"),
    "train unread": ((*NET, "--train", "calib.npz"), USAGE, "no pass of this build trains: drop it"),
    "cut data": ((*NET, "--train", "cut.npz"), USAGE, "cut.npz"),
    "score": ((*NET, "--eval", "eval.npz", "--score", "net.py:gone"), USAGE, "net.py:gone"),
    "calibration": ((*NET, "--pipeline", "quantize"), USAGE, "quantize: needs calibration data: give --calib"),
    "out": ((*NET, "--out", "file"), USAGE, "file: a file is where a folder is needed"),
    "out below a file": ((*NET, "--out", "file/o"), USAGE, "a file is where a folder is needed"),
    "weights": ((*NET, "--weights", "other.pt"), USAGE, "other.pt"),
    "pickle": ((*NET, "--weights", "module.pt"), REFUSED, "refused by EC-IN-"),
    "external data": (("build", "external.onnx"), REFUSED, "refused by EC-IN-"),
    "operators": (("build", "net.py:unknown", "--pipeline", ""), UNSUPPORTED, "2 reasons: "),
    "explain": (("explain", "quantise"), USAGE, "explain: nothing is called 'quantise'; did you mean quantize?"),
    "compare": (("compare", "gone", "gone"), USAGE, "gone: cannot be read"),
    "inspect": (("inspect", "net.py:unknown", "--no-text"), UNSUPPORTED, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_and_its_exit_code(folder: Path, case: str) -> None:
    arguments, code, text = CASES[case]
    out = folder / "outs" / case
    own = () if arguments[0] != "build" or "--out" in arguments else ("--out", f"outs/{case}")
    ended = warm.cli(folder, *arguments, *own).wait()
    said = [line for line in ended.err.splitlines() if line.startswith("edgecompile: ")]
    assert ended.err.splitlines() == said, ended.err
    last = said[-1] if said else ""
    assert text in last
    assert (ended.code, "Traceback" in ended.err) == (code, False)
    early = case in ("flag", "no model", "toml", "no toml", "batch text", "batch", "verb")  # before OUT is known
    if own and not early:
        body = json.loads((out / "report.json").read_text())
        jsonschema.validate(body, json_schema())
        assert (body["exit_code"], body["exit_codes"]) == (code, [code])
        assert last.removeprefix("edgecompile: ") in body["refusals"][0]["text"] or len(body["refusals"]) > 1
        assert sorted(p.name for p in out.iterdir()) == [".store", "report.html", "report.json"]


def test_a_payload_is_not_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"first.weight": Payload(str(marker))}, folder / "payload.pt")
    for extra in ((), ("--trust-model",)):
        ended = warm.cli(folder, *NET, "--weights", "payload.pt", "--out", "payload", *extra).wait()
        assert not marker.exists()
        assert ended.code == (USAGE if extra else REFUSED)


def test_json_of_a_failure_is_its_report(folder: Path) -> None:
    ended = warm.cli(folder, *NET, "--max-drop", "much", "--out", "failed", "--json").wait()
    assert ended.code == USAGE
    assert ended.out == (folder / "failed/report.json").read_text()


def test_a_dry_run_prints_the_pipeline_and_writes_nothing(folder: Path) -> None:
    ended = warm.cli(folder, *NET, "--calib", "calib.npz", "--out", "dry", "--dry-run", "--keep-float", "head*").wait()
    assert ended.code == 0
    words = ended.out.replace("\n", " ").split()
    assert {"DRY", "RUN", "fold_bn,", "quantize(keep_float=('head*',))"} <= set(words)
    assert not (folder / "dry").exists()


@pytest.mark.slow
def test_dump_writes_one_numbered_text_a_pass(folder: Path) -> None:
    ended = warm.cli(folder, *NET, "--pipeline", "", "--out", "dumped", "--dump", "texts", "--verbose").wait()
    assert ended.code == 0
    names = sorted(p.name for p in (folder / "texts").iterdir())
    body = json.loads((folder / "dumped/report.json").read_text())
    assert names == [f"{i:02d}_{word}.txt" for i, word in enumerate(body["pipeline"].split(", "), 1)]
    before, after = ((folder / "texts" / f"{word}.txt").read_text() for word in ("01_remove_identity", names[-1][:-4]))
    assert before.startswith("program(image: float32[batch, 3, 8, 8])")
    assert "batch_norm" in before
    assert "batch_norm" not in after
    assert re.search(r"edgecompile: +\d+ fold_bn: ", ended.err)


def python(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[1])
    own = {"PYTHONPATH": root, "HOME": str(cwd), "XDG_CACHE_HOME": str(cwd / "cache"), "COLUMNS": "200", **env}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, **own}, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("arguments", [("--help",), ("build", "--help"), ("--version",), ("list",)])
def test_help_imports_nothing_heavy(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ended = python("-X", "importtime", "-m", "edgecompile", *arguments, cwd=tmp_path)
    assert ended.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
    assert "typer" in imported
    assert not HEAVY & imported


def test_help_names_every_flag(tmp_path: Path) -> None:
    import dataclasses

    from edgecompile.building.options import BuildOptions

    text = python("-m", "edgecompile", "build", "--help", cwd=tmp_path).stdout
    for field in dataclasses.fields(BuildOptions):
        assert f"--{field.name.replace('_', '-')}" in text


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"TERM": "dumb", "LC_ALL": "C"}, {"NO_COLOR": "1"}])
def test_plain_terminals(tmp_path: Path, env: dict[str, str]) -> None:
    ended = python("-m", "edgecompile", "list", cwd=tmp_path, **env)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "digits" in ended.stdout
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("list | head -1", 0),
        ("list >/dev/full", 2),
        ("list >&-", 0),
        ("build nothing 2>&-", 2),
        ("list </dev/null 2>/dev/full", 0),
    ],
)
def test_closed_and_full_outputs(tmp_path: Path, shell: str, code: int) -> None:
    line = f'set -o pipefail; "$0" -m edgecompile {shell}'
    root = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, "PYTHONPATH": root, "HOME": str(tmp_path)}
    ended = subprocess.run(
        ["bash", "-c", line, sys.executable], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr
    assert ended.returncode == code


def test_exit_codes_of_a_process_of_its_own(tmp_path: Path) -> None:
    """The same through the interpreter, without a warm server: what a shell sees."""
    ended = python("-m", "edgecompile", "build", "digts", "--json", "--out", "o", cwd=tmp_path)
    assert ended.returncode == USAGE
    assert ended.stderr.splitlines()[-1].startswith("edgecompile: unknown model 'digts'; did you mean digits?")
    assert json.loads(ended.stdout) == json.loads((tmp_path / "o/report.json").read_text())
    assert python("-m", "edgecompile", cwd=tmp_path).returncode == USAGE
