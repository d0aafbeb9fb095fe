"""Scores: their laws, then the real teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompile.data import (
    Arrays,
    Score,
    Truth,
    choose_score,
    evaluate,
    outputs,
    score_outputs,
    snr_db,
    truth,
)
from edgecompile.errors import InputError
from edgecompile.models.digits import teacher
from edgecompile.teacher import Teacher

NOTHING = Truth([], [])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> Teacher:
    return teacher()


def random_outputs(seed: int, *shapes: tuple[int, ...]) -> list[tuple[np.ndarray, ...]]:
    draw = np.random.RandomState(seed)
    return [tuple(draw.randn(*shape).astype(np.float32) for shape in shapes)]


@given(st.integers(0, 2**31 - 1), st.floats(0.01, 100), st.integers(1, 9))
@settings(max_examples=40)
def test_cosine_and_agreement_ignore_a_positive_scale(seed: int, scale: float, samples: int) -> None:
    theirs = random_outputs(seed, (samples, 7))
    ours = [(theirs[0][0] * np.float32(scale),)]
    for metric in ("cosine", "agreement"):
        scored = score_outputs(Score(metric), ours, theirs, NOTHING)
        assert scored.percent == pytest.approx(100, abs=1e-4)
        assert scored.samples == samples
    opposite = score_outputs(Score("cosine"), [(-theirs[0][0],)], theirs, NOTHING)
    assert opposite.percent == pytest.approx(-100, abs=1e-4)


@given(st.integers(0, 2**31 - 1), st.floats(-40, 60))
@settings(max_examples=40)
def test_snr_is_the_ratio_of_powers(seed: int, wanted_db: float) -> None:
    theirs = random_outputs(seed, (5, 11), (5, 3, 2))
    noise = random_outputs(seed ^ 1, (5, 11), (5, 3, 2))
    power = [sum(float(np.square(a).sum()) for a in chunk[0]) for chunk in (theirs, noise)]
    gain = math.sqrt(power[0] / power[1] / 10 ** (wanted_db / 10))
    ours = [tuple(t.astype(np.float64) + gain * n for t, n in zip(theirs[0], noise[0], strict=True))]
    assert snr_db(ours, theirs) == pytest.approx(wanted_db, abs=1e-3)
    assert snr_db(theirs, theirs) == 200.0


def test_nan_never_helps() -> None:
    theirs = random_outputs(0, (4, 6))
    broken = theirs[0][0].copy()
    broken[1, theirs[0][0][1].argmax()] = np.nan  # where the right class is
    for metric, known in (("agreement", NOTHING), ("cosine", NOTHING)):
        scored = score_outputs(Score(metric), [(broken,)], theirs, known)
        assert scored.per_sample is not None
        assert scored.per_sample[1] == 0
        assert scored.percent == pytest.approx(75)
        assert scored.snr_db is None
    labels = Truth([theirs[0][0].argmax(1)], [])
    assert score_outputs(Score("top1"), [(broken,)], None, labels).percent == 75


def test_masked_positions_do_not_count() -> None:
    theirs = random_outputs(0, (2, 5, 3))
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    ours = theirs[0][0].copy()
    ours[0, 2:], ours[1, 4] = 9, -9
    assert score_outputs(Score("cosine", mask=1), [(ours,)], theirs, Truth([None], [mask])).percent == 100
    assert score_outputs(Score("cosine"), [(ours,)], theirs, NOTHING).percent < 95


def test_dense_labels_count_by_position() -> None:
    logits = np.zeros((2, 3, 4, 4), np.float32)
    logits[:, 1] = 1
    target = np.ones((2, 4, 4), np.int64)
    target[0, :2] = 2
    scored = score_outputs(Score("top1"), [(logits,)], None, Truth([target], []))
    assert scored.per_sample is not None
    assert list(scored.per_sample) == [50, 100]
    last = np.moveaxis(logits, 1, -1)
    assert score_outputs(Score("top1"), [(last,)], None, Truth([target], [])).percent == 75


def test_errors() -> None:
    theirs = random_outputs(0, (4, 6))
    with pytest.raises(InputError, match=r"labels of shape \[4, 1\] do not fit outputs of shape \[4, 6\]"):
        score_outputs(Score("top1"), theirs, None, Truth([np.zeros((4, 1), np.int64)], []))
    with pytest.raises(InputError, match=r"an output is \[4, 5\] where the teacher's is \[4, 6\]"):
        score_outputs(Score("cosine"), random_outputs(0, (4, 5)), theirs, NOTHING)
    whole = [(np.zeros((2, 2), np.int64),)]
    with pytest.raises(InputError, match="no float output to compare"):
        score_outputs(Score("cosine"), whole, whole, NOTHING)
    with pytest.raises(InputError, match="returned nan; a finite number, in percent, is expected"):
        score_outputs(Score("mine", lambda found, targets: math.nan), theirs, None, NOTHING)
    with pytest.raises(InputError, match="the evaluation data is empty"):
        score_outputs(Score("cosine"), [], [], NOTHING)


@pytest.mark.parametrize("batch", [1, 7, 32, 50])
def test_a_fixed_batch_gives_what_a_free_one_gives(digits: Teacher, batch: int) -> None:
    assert digits.evaluate is not None
    data = digits.evaluate.take(75)
    seen: list[int] = []

    def fixed(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        seen.append(len(inputs[0]))
        return digits.program(*inputs)

    free = outputs(lambda x: digits.program(*x), data)
    found = outputs(fixed, data, batch)
    assert set(seen) == {batch}
    assert [len(c[0]) for c in found] == [len(c[0]) for c in free] == [32, 32, 11]
    for a, b in zip(found, free, strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=1e-5)


def test_an_output_without_the_batch_is_refused_with_a_fixed_batch() -> None:
    data = Arrays("d", (torch.zeros(5, 2),))
    with pytest.raises(InputError, match=r"output 0: \[\] does not begin with the batch of 2"):
        outputs(lambda x: (x[0].sum(),), data, 2)


def test_the_score_follows_labels_outputs_and_the_user(digits: Teacher, tmp_path: Path) -> None:
    assert digits.evaluate is not None
    data = digits.evaluate
    assert choose_score(digits, data).metric == "top1"
    bare = Arrays("bare", next(iter(data)).inputs)
    assert choose_score(digits, bare).metric == "agreement"
    code = tmp_path / "mine.py"
    code.write_text("def half(outputs, targets):\n    assert len(outputs) == len(targets)\n    return 50\nx = 3\n")
    score = choose_score(digits, data, f"{code}:half")
    scored = evaluate(lambda x: digits.program(*x), data.take(40), score)
    assert (scored.percent, scored.per_sample, scored.samples) == (50, None, 40)
    with pytest.raises(InputError, match="is a int, not a function of"):
        choose_score(digits, data, f"{code}:x")


def test_noise_costs_the_real_teacher_accuracy(digits: Teacher) -> None:
    assert digits.evaluate is not None
    score = choose_score(digits, digits.evaluate)
    clean = evaluate(lambda x: digits.program(*x), digits.evaluate, score)
    assert clean.percent >= 98.5
    known = truth(digits.evaluate, score)
    assert sum(len(t) for t in known.targets if t is not None) == 450
    found = outputs(lambda x: digits.program(*x), digits.evaluate)
    noisy = [(c[0] + np.random.RandomState(0).randn(*c[0].shape) * 8,) for c in found]
    worse = score_outputs(score, noisy, found, known)
    assert worse.percent < clean.percent - 5
    assert worse.snr_db is not None
    assert worse.snr_db < 10
