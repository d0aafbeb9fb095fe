"""fashion: the reader of IDX files, the committed weights on the official test set."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgecompile.data import evaluate
from edgecompile.data.scores import Score
from edgecompile.errors import InputError
from edgecompile.models import fashion
from edgecompile.models.training import load_weights

HEAD = bytes((0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def idx(folder: Path, data: bytes, cut: int | None = None) -> Path:
    path = folder / "f.gz"
    path.write_bytes(gzip.compress(data)[:cut])
    return path


def test_read_idx(tmp_path: Path) -> None:
    assert fashion.read_idx(idx(tmp_path, HEAD + bytes(range(6))), 2).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("data", "cut", "message"),
    [
        (b"\1" + HEAD[1:] + bytes(6), None, "not an IDX file of bytes with 2 axes (begins with 01000802)"),
        (HEAD[:3] + b"\3" + HEAD[4:] + bytes(6), None, "not an IDX file of bytes with 2 axes"),
        (HEAD + bytes(5), None, "holds 5 values where its head promises 6"),
        (HEAD + bytes(7), None, "holds 7 values where its head promises 6"),
        (HEAD[:4] + b"\xff" * 8, None, "not an IDX file"),
        (HEAD + bytes(6), -9, "damaged: "),
        (HEAD + bytes(6), 5, "damaged: "),
    ],
)
def test_bad_idx(data: bytes, cut: int | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fashion.read_idx(idx(tmp_path, data, cut), 2)
    assert message in str(caught.value)


def test_absent_data_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="apt-get install dataset-fashion-mnist"):
        fashion.splits(tmp_path)


def test_weights_fit() -> None:
    model = load_weights(fashion.network(), fashion.WEIGHTS)
    assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert fashion.WEIGHTS.stat().st_size < 3_000_000


@pytest.mark.skipif(not fashion.FOLDER.is_dir(), reason="Debian package dataset-fashion-mnist absent")
@pytest.mark.slow
def test_the_committed_weights() -> None:
    teacher = fashion.teacher()
    assert teacher.evaluate is not None
    assert teacher.calib is not None
    assert (teacher.evaluate.samples, teacher.calib.samples) == (10_000, 500)
    scored = evaluate(lambda x: teacher.program(*x), teacher.evaluate.take(3000), Score("top1"))
    assert scored.percent >= 92
    assert teacher.program.batch is None
