"""digits: the committed weights are as good as promised, the splits are apart, the training command works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgecompile.data import evaluate
from edgecompile.data.scores import Score
from edgecompile.errors import InputError
from edgecompile.models import digits
from edgecompile.models.training import load_weights

pytest.importorskip("sklearn", reason="scikit-learn, which brings the digits, is not installed")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_committed_weights() -> None:
    teacher = digits.teacher()
    assert teacher.evaluate is not None
    scored = evaluate(lambda x: teacher.program(*x), teacher.evaluate, Score("top1"))
    assert scored.samples == 450
    assert scored.percent >= 98.5
    assert teacher.program.batch is None
    assert digits.WEIGHTS.stat().st_size < 1_000_000
    assert teacher.digest == digits.teacher().digest


def test_splits_share_no_picture() -> None:
    data = digits.splits()
    seen = {name: {t.numpy().tobytes() for t in part.inputs[0]} for name, part in data.items()}
    assert {name: part.samples for name, part in data.items()} == {"train": 1147, "calib": 200, "eval": 450}
    assert not seen["train"] & seen["eval"]
    assert not seen["calib"] & seen["eval"]
    assert not seen["calib"] & seen["train"]
    x = data["eval"].inputs[0]
    assert float(x.min()) == 0
    assert float(x.max()) == 1
    assert torch.equal(x[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), x)


@pytest.mark.slow
def test_the_training_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits.main(["--epochs", "1", "--out", str(tmp_path / "digits.safetensors")])
    printed = capsys.readouterr().out
    assert "epoch 1/1 loss " in printed
    assert "% of 450" in printed
    model = load_weights(digits.network(), tmp_path / "digits.safetensors")
    assert not model.training
    assert [p.name for p in tmp_path.iterdir()] == ["digits.safetensors"]


def test_missing_and_foreign_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train them with python -m edgecompile\.models\.digits"):
        load_weights(digits.network(), tmp_path / "digits.safetensors")
    with pytest.raises(InputError, match=r"weights of another network \(differs in bias, head\.bias"):
        load_weights(torch.nn.Linear(2, 2), digits.WEIGHTS)
