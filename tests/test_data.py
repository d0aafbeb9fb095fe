"""Datasets: arrays, functions, texts, their laws, and each kind of bad input with its line."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompile.data import Arrays, Dataset, digest_of, open_dataset
from edgecompile.errors import InputError, Refused
from edgecompile.program import Program

GOOD = np.arange(5 * 6, dtype=np.float32).reshape(5, 6)


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(6, 3)
        torch.nn.init.constant_(self.head.weight, 0.5)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, a: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.head(a) + ids.sum(1, keepdim=True)


@pytest.fixture(scope="module")
def one() -> Program:
    return Program.capture(torch.nn.Linear(6, 3), {"input": torch.zeros(2, 6)})


@pytest.fixture(scope="module")
def two() -> Program:
    return Program.capture(Two(), {"a": torch.zeros(2, 6), "ids": torch.zeros(2, 4, dtype=torch.int64)})


def joined(data: Dataset) -> tuple[list[torch.Tensor], list[int]]:
    batches = list(data)
    inputs = [torch.cat(parts) for parts in zip(*(b.inputs for b in batches), strict=True)]
    return inputs, [b.size for b in batches]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 50))
@settings(max_examples=60)
def test_passes_repeat_and_take_is_a_prefix(count: int, batch: int, first: int) -> None:
    x = torch.arange(count * 2.0).reshape(count, 2)
    data = Arrays("d", (x,), torch.arange(count), batch)
    (found,), sizes = joined(data)
    assert torch.equal(found, x)
    assert all(size == batch for size in sizes[:-1])
    assert sum(sizes) == data.samples == count
    part = data.take(first)
    (some,), parts = joined(part)
    assert 0 not in parts
    assert torch.equal(some, x[:first])
    assert part.samples == min(first, count)
    assert torch.equal(torch.cat([b.targets for b in part if b.targets is not None]), torch.arange(len(some)))
    assert torch.equal(joined(part)[0][0], some)


def test_digests_follow_content() -> None:
    x = torch.arange(12.0).reshape(6, 2)
    same = Arrays("a", (x,)).digest
    assert Arrays("b", (x.clone(),)).digest == same
    other = x.clone()
    other[3, 1] += 1
    digests = {same, Arrays("a", (other,)).digest, Arrays("a", (x.reshape(6, 1, 2),)).digest}
    digests |= {Arrays("a", (x,), torch.zeros(6)).digest, Arrays("a", (x,)).take(3).digest}
    assert len(digests) == 5


def test_digest_of_a_program_follows_weights(two: Program) -> None:
    assert digest_of(
        Program.capture(Two(), {"a": torch.zeros(2, 6), "ids": torch.zeros(2, 4, dtype=torch.int64)})
    ) == digest_of(two)
    changed = two.clone()
    with torch.no_grad():
        changed.weights()["head.bias"][1] += 1e-6
    assert digest_of(changed) != digest_of(two)
    assert digest_of(two.specialised(1)) != digest_of(two)


def test_arrays(tmp_path: Path, one: Program, two: Program) -> None:
    np.savez(tmp_path / "d.npz", x=GOOD, y=np.array([0, 1, 2, 0, 1], np.uint8))
    data = open_dataset(str(tmp_path / "d.npz"), one, batch_size=2)
    assert joined(data)[1] == [2, 2, 1]
    assert [b.targets.tolist() for b in data if b.targets is not None] == [[0, 1], [2, 0], [1]]
    np.save(tmp_path / "d.npy", np.asfortranarray(GOOD))
    assert np.array_equal(joined(open_dataset(str(tmp_path / "d.npy"), one))[0][0].numpy(), GOOD)
    np.savez_compressed(tmp_path / "two.npz", ids=np.zeros((5, 4), np.int64), a=GOOD.astype(">f4"))
    inputs, _ = joined(open_dataset(str(tmp_path / "two.npz"), two))
    assert [list(i.shape) for i in inputs] == [[5, 6], [5, 4]]
    assert np.array_equal(inputs[0].numpy(), GOOD)


def nan() -> Any:
    bad = GOOD.copy()
    bad[3, 0] = np.nan
    return bad


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": GOOD[:, :5]}, "input: is [5, 5]; the model takes float32 [n, 6]: reshape the data"),
        ({"x": GOOD.astype(np.float64)}, "input: is float64; the model takes float32: convert it"),
        ({"x": GOOD.astype(np.uint8)}, "input: is uint8; the model takes float32"),
        ({"x": GOOD[:0]}, "is empty [0, 6]"),
        ({"x": nan()}, "NaN or infinite values in 1 samples, first in 3"),
        ({"inptu": GOOD}, "found inptu; the model takes x or input: rename the arrays; did you mean input?"),
        ({"x": GOOD, "z": GOOD}, "found x, z; the model takes x or input"),
        ({"y": np.zeros(5, np.int64)}, "found nothing; the model takes x or input"),
        ({"x": GOOD, "y": np.zeros(5)}, "y: labels are float64; integers are expected"),
        ({"x": GOOD, "y": np.zeros(4, np.int64)}, "y: [4] labels for 5 samples"),
        ({"x": GOOD, "y": np.array([0, 1, 3, 0, 0])}, "y: label 3 is out of range 0..2, first at sample 2"),
        ({"x": GOOD, "y": np.array([0, -1, 1, 0, 0])}, "y: label -1 is out of range 0..2, first at sample 1"),
        ({"x": np.array(["a", "b"])}, "where a tensor or a numeric array is expected"),
    ],
)
def test_bad_arrays(arrays: dict[str, Any], message: str, tmp_path: Path, one: Program) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as caught:
        open_dataset(str(path), one)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_and_hostile_arrays(tmp_path: Path, one: Program, two: Program) -> None:
    marker = tmp_path / "fired"

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return open, (str(marker), "w")

    np.save(tmp_path / "p.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    marker.unlink(missing_ok=True)
    with pytest.raises(Refused) as caught:
        open_dataset(str(tmp_path / "p.npy"), one)
    assert (caught.value.rule, caught.value.exit_code) == ("EC-IN-040", 8)
    assert not marker.exists()

    np.savez(tmp_path / "t.npz", x=GOOD)
    (tmp_path / "t.npz").write_bytes((tmp_path / "t.npz").read_bytes()[:-40])
    with pytest.raises((InputError, Refused)):
        open_dataset(str(tmp_path / "t.npz"), one)
    np.save(tmp_path / "t.npy", GOOD)
    (tmp_path / "t.npy").write_bytes((tmp_path / "t.npy").read_bytes()[:-4])
    with pytest.raises(InputError, match="truncated or corrupt"):
        open_dataset(str(tmp_path / "t.npy"), one)
    with zipfile.ZipFile(tmp_path / "n.npz", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises((InputError, Refused)):
        open_dataset(str(tmp_path / "n.npz"), one)
    np.savez(tmp_path / "l.npz", a=GOOD, ids=np.zeros((4, 4), np.int64))
    with pytest.raises(InputError, match=r"inputs of different lengths \(a 5, ids 4\)"):
        open_dataset(str(tmp_path / "l.npz"), two)


CODE = """
import numpy as np, torch
def good():
    for i in range(3):
        yield np.full((2, 6), i, np.float32), [torch.zeros(2, dtype=torch.int32)][0]
def named():
    return [({"ids": torch.zeros(2, 4, dtype=torch.int64), "a": torch.zeros(2, 6)}, None)]
def bare():
    return [torch.zeros(2, 6)]
def shape():
    yield torch.zeros(2, 5), None
def empty():
    return []
def number():
    return 3
def later():
    yield torch.zeros(2, 6), None
    yield torch.full((2, 6), float("nan")), None
def text():
    yield "hello", None
once = iter([(torch.zeros(2, 6), None)])
kept = [(torch.zeros(2, 6), torch.zeros(2))]
"""


def test_functions(tmp_path: Path, one: Program, two: Program) -> None:
    code = tmp_path / "d.py"
    code.write_text(CODE)
    data = open_dataset(f"{code}:good", one)
    for _ in range(2):
        assert [int(b.inputs[0][0, 0]) for b in data] == [0, 1, 2]
    assert data.labelled
    assert data.samples is None
    assert data.digest == open_dataset(f"{code}:good", one).digest
    assert [b.size for b in data.take(5)] == [2, 2, 1]
    assert [list(i.shape) for i in next(iter(open_dataset(f"{code}:named", two))).inputs] == [[2, 6], [2, 4]]
    assert not open_dataset(f"{code}:bare", one).labelled
    assert open_dataset(f"{code}:kept", one).labelled


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shape", "batch 0: input: is [2, 5]; the model takes float32 [n, 6]"),
        ("empty", "yielded nothing"),
        ("number", "returned a int, not an iterable of (inputs, targets)"),
        ("once", "is a generator that can be read once"),
        ("text", "batch 0: str where a tensor or a numeric array is expected"),
        ("goood", "the module has no 'goood'; did you mean good?"),
    ],
)
def test_bad_functions(name: str, message: str, tmp_path: Path, one: Program) -> None:
    code = tmp_path / "d.py"
    code.write_text(CODE)
    with pytest.raises(InputError) as caught:
        open_dataset(f"{code}:{name}", one)
    assert message in str(caught.value)
    assert str(code) in str(caught.value)


def test_a_late_fault_names_its_batch(tmp_path: Path, one: Program) -> None:
    code = tmp_path / "d.py"
    code.write_text(CODE)
    with pytest.raises(InputError, match="batch 1: input: NaN or infinite values in 2 samples"):
        list(open_dataset(f"{code}:later", one))


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("absent.npz", "absent.npz: does not exist; data can be .npz, .npy, a folder of pictures"),
        ("no.such.module:f", "no.such.module:f: no module named 'no'"),
        ("absent.py:f", "absent.py does not exist"),
    ],
)
def test_absent(ref: str, message: str, one: Program) -> None:
    with pytest.raises(InputError) as caught:
        open_dataset(ref, one)
    assert message in str(caught.value)


def test_other_files(tmp_path: Path, one: Program) -> None:
    (tmp_path / "d.csv").write_text("1,2\n")
    with pytest.raises(InputError, match="data of this kind is not read; it can be"):
        open_dataset(str(tmp_path / "d.csv"), one)
    (tmp_path / "d.txt").write_text("hello\n")
    with pytest.raises(InputError, match="texts need a tokenizer"):
        open_dataset(str(tmp_path / "d.txt"), one)
    np.savez(tmp_path / "d.npz", x=GOOD)
    with pytest.raises(InputError, match=r"labels of .* come with it"):
        open_dataset(str(tmp_path / "d.npz"), one, labels=tmp_path / "d.csv")
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(InputError, match="line 1: invalid syntax"):
        open_dataset(f"{tmp_path / 'bad.py'}:f", one)


def tokenizer_file(folder: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "the": 2, "cat": 3, "sat": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


class Bag(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return (input_ids * attention_mask).float() @ torch.ones(4, 3)


def test_texts(tmp_path: Path) -> None:
    text = {"tokenizer": str(tokenizer_file(tmp_path)), "length": 4}
    ids = torch.zeros(2, 4, dtype=torch.int64)
    program = Program.capture(Bag(), {"input_ids": ids, "attention_mask": ids.clone()})
    file, labels = tmp_path / "t.txt", tmp_path / "l.txt"
    file.write_text("the cat\n\nthe cat sat the cat\ndog\n")
    labels.write_text("0\n2\n1\n")
    data = open_dataset(str(file), program, {"text": text}, labels, batch_size=2)
    inputs, sizes = joined(data)
    assert inputs[0].tolist() == [[2, 3, 0, 0], [2, 3, 4, 2], [1, 0, 0, 0]]
    assert inputs[1].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert (sizes, data.samples, data.labelled) == ([2, 1], 3, True)
    labels.write_text("0\n3\n1\n")
    with pytest.raises(InputError, match=r"line 2: label 3 is out of range 0\.\.2"):
        open_dataset(str(file), program, {"text": text}, labels)
    labels.write_text("0\n")
    with pytest.raises(InputError, match="1 labels for 3 texts"):
        open_dataset(str(file), program, {"text": text}, labels)
    file.write_text("\n")
    with pytest.raises(InputError, match="is empty: one text a line"):
        open_dataset(str(file), program, {"text": text})
    file.write_bytes(b"ok\n\xff\n")
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        open_dataset(str(file), program, {"text": text})
    (tmp_path / "tokenizer.json").write_text("{")
    file.write_text("x\n")
    with pytest.raises(InputError, match=r"not a tokenizer\.json that can be read"):
        list(open_dataset(str(file), program, {"text": text}))
