"""Packages that take a picture and give a label: the same numbers as the program behind its own preparation."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgecompile.errors import SpecError, TargetError, Unsupported
from edgecompile.program import Program
from edgecompile.targets import _coreml_convert, _coreml_image
from edgecompile.targets._coreml_image import Picture, picture_of
from edgecompile.targets._mil_read import parse_spec
from edgecompile.targets.coreml import CoreMl, Interpreted
from tests.targets.coreml_nets import captured, packaged

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABELS = ["cat", "dog", "bird", "fish", "none of these"]


def network(channels: int = 3) -> Program:
    layers = {"c": nn.Conv2d(channels, 8, 3, padding=1), "l": nn.Linear(8, 5)}
    return captured(lambda m, x: m.l(m.c(x).relu().mean((2, 3))), channels, 12, 16, **layers)


def bytes_of(channels: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, channels, 12, 16)).astype(np.float32))


def prepared(picture: Picture, raw: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (picture.mean, picture.std))
    return (raw * picture.scale - mean) / std


def described(package: Path) -> Any:
    return parse_spec((package / "Data" / "com.apple.CoreML" / "model.mlmodel").read_bytes()).description


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("picture", "channels", "colours"),
    [
        (Picture(MEAN, STD), 3, "RGB"),
        (Picture((0.5,), (0.5,), order="bgr"), 3, "BGR"),
        (Picture((0.1307,), (0.3081,)), 1, "GRAYSCALE"),
    ],
)
def test_bytes_give_what_the_prepared_picture_gives(
    picture: Picture, channels: int, colours: str, dtype: str, tmp_path: Path
) -> None:
    program = network(channels)
    package = packaged(program, tmp_path / "work", dtype, image=dataclasses.asdict(picture))
    loaded, raw = Interpreted(package), bytes_of(channels)
    wanted = program(prepared(picture, raw))[0].detach()
    found = loaded.interpreter.run({"x": raw})[program.output_names[0]]
    bound = {"fp32": 1e-5, "fp16": 5e-3}[dtype] * wanted.abs().max()
    assert (found - wanted).abs().max() <= bound
    again = loaded((prepared(picture, raw),))[0]
    assert torch.equal(again, found)  # prepared numbers are turned back into the very bytes
    kind = described(package).input[0].type.imageType
    assert (kind.width, kind.height) == (16, 12)
    assert type(kind).ColorSpace.Name(kind.colorSpace) == colours


def test_the_shipped_script_and_the_mac_get_the_same_picture() -> None:
    runner = runpy.run_path(str(Path(_coreml_convert.__file__).parent / "runners" / "coreml_run.py"))
    raw = bytes_of()
    for order in ("rgb", "bgr"):
        picture = Picture(MEAN, STD, order=order)
        said = dataclasses.asdict(picture)
        entry = {"name": "x", "core": "x", "dtype": "float32", "shape": [1, 3, 12, 16], "image": said}
        fed = runner["core_inputs"]({"inputs": [entry]}, {"x": prepared(picture, raw).numpy()}, np)["x"]
        wanted = raw[0].numpy().astype(np.uint8)
        assert np.array_equal(np.asarray(fed).transpose(2, 0, 1), wanted[::-1] if order == "bgr" else wanted)
        assert np.array_equal(np.asarray(_coreml_image.shown(said, raw.numpy())), np.asarray(fed))
    grey = {"mean": [0.0], "std": [1.0], "scale": 1 / 255, "order": "rgb"}
    fed = runner["picture"](grey, bytes_of(1).numpy() / 255, np)
    assert np.array_equal(np.asarray(fed), bytes_of(1)[0, 0].numpy())


def test_labels_make_a_classifier_beside_the_outputs(tmp_path: Path) -> None:
    program = network()
    package = packaged(program, tmp_path / "work", labels=LABELS, image=dataclasses.asdict(Picture(MEAN, STD)))
    loaded, raw = Interpreted(package), bytes_of()
    x = prepared(Picture(MEAN, STD), raw)
    wanted = program(x)[0].detach()
    assert (loaded((x,))[0] - wanted).abs().max() <= 5e-3 * wanted.abs().max()
    found: dict[str, Any] = dict(loaded.interpreter.run({"x": raw}))
    assert found["classLabel"] == LABELS[int(wanted.argmax())]
    assert (found["classLabel_probs"] - wanted.softmax(-1)).abs().max() < 5e-3
    said = described(package)
    assert (said.predictedFeatureName, said.predictedProbabilitiesName) == ("classLabel", "classLabel_probs")


def test_a_program_that_ends_in_probabilities_gets_no_second_softmax(tmp_path: Path) -> None:
    program = captured(lambda m, x: m.l(x).softmax(-1), 8, l=nn.Linear(8, 5))
    loaded = Interpreted(packaged(program, tmp_path / "work", "fp32", labels=LABELS))
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    found: dict[str, Any] = dict(loaded.interpreter.run({"x": x}))
    wanted = program(x)[0].detach()
    assert (found["classLabel_probs"] - wanted).abs().max() < 1e-6
    assert (found[program.output_names[0]] - wanted).abs().max() < 1e-6


def test_the_teachers_preprocessing_is_used_and_nothing_is_guessed(tmp_path: Path) -> None:
    known = {"size": [12, 16], "mean": list(MEAN), "std": list(STD), "scale": 1 / 255, "layout": "nchw", "order": "bgr"}
    found = picture_of((), (), 1 / 255, "rgb", {"preprocessing": json.dumps({"image": known})})
    assert found == Picture(MEAN, STD, 1 / 255, "bgr")
    with pytest.raises(TargetError, match=r"^coreml: image=yes needs to know how pictures are prepared: coreml\("):
        CoreMl(image="yes").emit(network().specialised(1), tmp_path, {})
    with pytest.raises(TargetError, match="channels last"):
        picture_of((), (), 1 / 255, "rgb", {"preprocessing": json.dumps({"image": {**known, "layout": "nhwc"}})})
    with pytest.raises(SpecError, match=r"std \(0.0,\)"):
        picture_of((0.5,), (0.0,), 1 / 255, "rgb", {})


def test_refusals_of_pictures_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("a\nb\n")
    assert CoreMl(labels=str(path)).refuse(network()) == [
        f"labels={str(path)!r} has 2 lines, and output output has 5 classes: give one line a class"
    ]
    two = CoreMl(image="yes", mean=(0.5,), std=(0.5,))
    with pytest.raises(Unsupported, match="the batch is 2, and a picture comes alone"):
        two.emit(network().specialised(2), tmp_path, {})
    assert two.refuse(captured(lambda m, x: m.l(x), 8, l=nn.Linear(8, 5))) == [
        "image=yes: no input has the form of a picture, 1x3xHEIGHTxWIDTH or 1x1xHEIGHTxWIDTH"
    ]
    path.write_text("a\na\n")
    with pytest.raises(TargetError, match="'a' stands in it twice"):
        CoreMl(labels=str(path)).refuse(network())
    with pytest.raises(TargetError, match=r"labels='nowhere.txt' cannot be read: No such file"):
        CoreMl(labels="nowhere.txt").refuse(network())
