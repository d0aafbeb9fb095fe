"""load: every form that a user can write, with real files, and every mistake with its line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from edgecompile.errors import EdgeCompileError, InputError, Refused, SpecError
from edgecompile.models import digits
from edgecompile.models.examples import capture, parse_inputs
from edgecompile.models.loaders import load
from edgecompile.models.weights import fill

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, image):
        return self.head(self.norm(self.conv(image)).mean((2, 3)))

def bare():
    return Net()

def whole():
    return Net(), (torch.zeros(1, 3, 8, 8),)

def named():
    return Net(), {"image": torch.zeros(2, 3, 8, 8)}

def tensor():
    return Net(), torch.zeros(2, 3, 8, 8)

def broken():
    net = Net()
    with torch.no_grad():
        net.head.weight[1, 2] = float("nan")
        net.norm.running_var[0] = float("inf")
    return net, torch.zeros(2, 3, 8, 8)

def masked():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        def forward(self, x):
            return (x + self.mask).softmax(-1)
    return Masked(), torch.zeros(2, 2)

def control():
    class Control(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x
    return Control(), torch.zeros(2, 2)

def fixed():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(1, 6) + 1
    return Fixed(), torch.zeros(1, 2, 3)

def word():
    return "net"

def odd():
    return Net(), 3

def needs(x):
    return Net()

def fails():
    raise ValueError("no such file")

def ready():
    from edgecompile.models.digits import teacher
    return teacher()
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("code") / "net.py"
    path.write_text(CODE)
    return str(path)


@pytest.mark.parametrize("name", ["whole", "named", "tensor", "Net"])
def test_functions(code: str, name: str) -> None:
    inputs = ["image=1x3x8x8"] if name == "Net" else []
    teacher = load(f"{code}:{name}", inputs=inputs)
    assert teacher.program.batch is None
    assert teacher.program.input_names == ("image",)
    x = torch.rand(3, 3, 8, 8)
    assert teacher.program(x)[0].shape == (3, 5)
    assert teacher.digest == load(f"{code}:{name}", inputs=inputs).digest
    assert teacher.name == f"{code}:{name}"


def test_examples_of_the_command_line_win_and_a_teacher_passes_through(code: str) -> None:
    assert (
        load(f"{code}:whole", inputs=["image=2x3x6x9:float32"]).program.interface[0] == "image: float32[batch, 3, 6, 9]"
    )
    assert load(f"{code}:ready").evaluate is not None
    image = load(f"{code}:whole", image="size=8,mean=0.5,std=0.5").preprocessing["image"]
    assert isinstance(image, dict)
    assert image["size"] == [8, 8]


def test_a_model_of_one_batch_is_kept_at_it(code: str) -> None:
    teacher = load(f"{code}:fixed")
    assert teacher.program.batch == 1
    assert any(note.startswith("static batch: ") for note in teacher.notes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "bare",
            "returned no example inputs: return (module, inputs), or say --input NAME=1x3x224x224:float32",
        ),
        ("control", "its control flow depends on the data"),
        ("word", "returned a str; a torch module, (module, example inputs) or a Teacher is expected"),
        ("odd", "its example inputs are a int"),
        ("needs", "raised TypeError: needs() missing 1 required positional argument"),
        ("fails", "raised ValueError: no such file"),
        ("hwole", "the module has no 'hwole'; did you mean whole?"),
        ("broken", "NaN or infinite values in 2 weights: "),
    ],
)
def test_bad_functions(code: str, name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(f"{code}:{name}")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{code}:{name}: ")
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite(code: str) -> None:
    with pytest.raises(InputError) as caught:
        load(f"{code}:broken")
    assert "head.weight (1 of 20)" in str(caught.value)
    assert "norm.running_var (1 of 4)" in str(caught.value)
    assert load(f"{code}:broken", allow_nonfinite=True).program is not None
    assert load(f"{code}:masked").program.batch is None


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (
            "digitz",
            "unknown model 'digitz'; did you mean digits? (known: digits, efficientnet_lite0, fashion",
        ),
        ("absent.onnx", "absent.onnx: does not exist; a model is a name, an .onnx or .pt2 file"),
        ("some/where", "some/where: does not exist"),
        ("no.such:f", "no.such:f: no module named 'no'"),
    ],
)
def test_absent(ref: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(ref)
    assert message in str(caught.value)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for name in ("m.h5", "m.keras", "m.tflite", "m.pb"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match="files are not read: export the model to ONNX with tf2onnx"):
            load(str(tmp_path / name))
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "m.pt")
    save_file({"w": torch.zeros(2)}, tmp_path / "m.safetensors")
    for name in ("m.pt", "m.safetensors"):
        with pytest.raises(InputError, match=r"holds weights alone.*edgecompile build module:function --weights"):
            load(str(tmp_path / name))
    np.savez(tmp_path / "m.npz", x=np.zeros(2))
    with pytest.raises(InputError, match="holds arrays, not a model"):
        load(str(tmp_path / "m.npz"))
    (tmp_path / "m.py").write_text("")
    with pytest.raises(InputError, match="say which function of it returns the model"):
        load(str(tmp_path / "m.py"))
    with pytest.raises(InputError, match=r"a folder without config\.json"):
        load(str(tmp_path))
    with pytest.raises(InputError, match="digits brings its own weights and inputs: drop --weights"):
        load("digits", weights=tmp_path / "m.pt")
    with pytest.raises(InputError, match="--input x: digits brings its own weights and inputs: drop --input"):
        load("digits", inputs=["x=1x2"])


@pytest.mark.parametrize("form", ["pt", "safetensors", "wrapped"])
def test_weights(code: str, tmp_path: Path, form: str) -> None:
    plain = load(f"{code}:whole")
    state = {name: value.detach() + 1 for name, value in plain.program.weights().items()}
    path = tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'pt'}"
    match form:
        case "safetensors":
            save_file(state, path)
        case "pt":
            torch.save(state, path)
        case "wrapped":
            torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    teacher = load(f"{code}:whole", weights=path)
    assert teacher.digest != plain.digest
    for name, value in teacher.program.weights().items():
        torch.testing.assert_close(value.detach(), state[name])


def test_weights_that_do_not_fit_are_listed_at_once(code: str, tmp_path: Path) -> None:
    state = load(f"{code}:whole").program.weights()
    state = {name: value.detach().clone() for name, value in state.items()}
    state["head.weigth"] = state.pop("head.weight")
    state["conv.bias"] = torch.zeros(9)
    state["extra"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load(f"{code}:whole", weights=tmp_path / "w.safetensors")
    text = str(caught.value)
    assert "1 missing: head.weight (the file has head.weigth)" in text
    assert "2 unexpected: " in text
    assert "1 of another shape: conv.bias is [9], the model has [4]" in text
    with pytest.raises(InputError, match=r"80 missing: .*, \.\.\. 74 more"):
        fill(torch.nn.Sequential(*[torch.nn.Linear(1, 1) for _ in range(40)]), {}, Path("w"))


class _Payload:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (self.path, "w")


def test_a_hostile_state_dict_is_refused(code: str, tmp_path: Path) -> None:
    marker = tmp_path / "fired"
    torch.save({"w": torch.zeros(1), "x": _Payload(str(marker))}, tmp_path / "w.pt")
    with pytest.raises(Refused) as caught:
        load(f"{code}:whole", weights=tmp_path / "w.pt")
    assert caught.value.exit_code == 8
    assert not marker.exists()


def test_an_exported_program_comes_back_equal(tmp_path: Path) -> None:
    teacher = digits.teacher()
    torch.export.save(teacher.program.exported(), tmp_path / "m.pt2")
    again = load(str(tmp_path / "m.pt2"))
    x = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(again.program(x)[0], teacher.program(x)[0], atol=1e-5, rtol=1e-5)
    assert again.name == "m"
    assert again.program.batch is None


def test_an_onnx_file_gives_what_onnx_says(tmp_path: Path) -> None:
    helper = onnx.helper
    weight = np.random.RandomState(0).randn(3, 6).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), helper.make_node("Relu", ["y"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    teacher = load(str(tmp_path / "m.onnx"), inputs=["x=2x6"])
    x = np.random.RandomState(1).randn(2, 6).astype(np.float32)
    found = teacher.program(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(found, np.maximum(x @ weight.T, 0), rtol=1e-5, atol=1e-6)
    (tmp_path / "m.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:-30])
    with pytest.raises(EdgeCompileError, match=r"m\.onnx"):
        load(str(tmp_path / "m.onnx"))


def test_inputs() -> None:
    found = parse_inputs(["a=1x3x4", "ids=2x5:int64", "flag=2:bool", "sr=scalar:int64"])
    assert [(k, list(v.shape), v.dtype) for k, v in found.items()] == [
        ("a", [1, 3, 4], torch.float32),
        ("ids", [2, 5], torch.int64),
        ("flag", [2], torch.bool),
        ("sr", [], torch.int64),
    ]
    assert torch.equal(found["a"], parse_inputs(["a=1x3x4"])["a"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["1x3"], "--input '1x3' is not NAME=1x3x224x224:float32"),
        (["a=1x3:flaot32"], "unknown dtype 'flaot32'; did you mean float32?"),
        (["a=1x0"], "1x0 has 0 elements"),
        (["a=99999x99999x99999"], "elements; 1 to"),
        (["a=1", "a=2"], "--input a is given twice"),
        (["a=1xb"], "is not NAME="),
    ],
)
def test_bad_inputs(texts: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_inputs(texts)
    assert message in str(caught.value)


def test_capture_of_a_batch_of_one_stays_dynamic() -> None:
    program = capture(torch.nn.Linear(2, 3), (torch.zeros(1, 2),))
    assert program.batch is None
    assert dataclasses.replace(program).notes == ()
