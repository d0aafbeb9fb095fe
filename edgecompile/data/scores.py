"""Scores in percent: top-1, agreement with the teacher, cosine, or the user's own; functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgecompile.data.interface import Interface
from edgecompile.data.types import Batch, Dataset
from edgecompile.errors import InputError
from edgecompile.reference import load_function

if TYPE_CHECKING:
    from edgecompile.teacher import Teacher

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Outputs = list[tuple[Array, ...]]
"""All outputs of a model, one tuple a chunk of the dataset."""
Run = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]

MAX_SNR_DB = 200.0
"""What equal outputs are given, whose ratio has no logarithm."""


@dataclass(frozen=True)
class Score:
    """How an artifact is judged: `top1`, `agreement`, `cosine`, or a user's function by its name.

    `mask` is the index of the input that says which positions of a sequence count, None when all do.
    """

    metric: str
    function: Callable[[Outputs, list[Array | None]], float] | None = None
    mask: int | None = None


@dataclass(frozen=True)
class Truth:
    """What a score needs of a dataset beside the outputs: targets and masks, one a chunk."""

    targets: list[Array | None]
    masks: list[Array | None]


@dataclass(frozen=True)
class Scored:
    """A score in percent over `samples`; `per_sample` in percent too, None for a user's score.

    `snr_db` is 10 log10 of the teacher's power over the power of the difference, over all float outputs; None
    without a teacher, or when the artifact gave NaN.
    """

    metric: str
    percent: float
    per_sample: Array | None
    samples: int
    snr_db: float | None = None


def choose_score(teacher: Teacher, data: Dataset, ref: str | None = None) -> Score:
    """The user's function, else top-1 with labels, agreement for class logits, mean cosine for the rest."""
    names = teacher.program.input_names
    mask = names.index("attention_mask") if "attention_mask" in names else None
    if ref is not None:
        function = load_function(ref)
        if not callable(function):
            raise InputError(f"--score {ref}: is a {type(function).__name__}, not a function of (outputs, targets)")
        return Score(ref, function)
    if data.labelled:
        targets = next(iter(data)).targets
        if targets is not None and not targets.is_floating_point():
            return Score("top1")
    columns = Interface.of(teacher.program).classes
    if teacher.classes or (columns is not None and not _an_embedding(teacher.program.output_names[0])):
        return Score("agreement")
    return Score("cosine", mask=mask)


def _an_embedding(name: str) -> bool:
    """Whether an output's own name says that its columns are no classes."""
    return any(word in name.lower() for word in ("embed", "feature", "hidden", "pool", "vector"))


def truth(data: Dataset, score: Score) -> Truth:
    """Targets and masks of one pass over the data; nothing is read when the score needs neither."""
    if score.metric in ("agreement", "cosine") and score.mask is None:
        return Truth([], [])
    found = Truth([], [])
    for batch in data:
        found.targets.append(None if batch.targets is None else batch.targets.numpy())
        found.masks.append(None if score.mask is None else batch.inputs[score.mask].numpy())
    return found


def outputs(run: Run, data: Dataset, batch: int | None = None) -> Outputs:
    """All outputs for one pass over the data, as numpy, chunk by chunk.

    `batch` is the fixed batch of what runs, None when it takes any: chunks are cut into pieces of it, the
    last filled up with its last sample, and what that gave is dropped.
    """
    with torch.no_grad():
        return [_run_chunk(run, chunk, batch) for chunk in data]


def _run_chunk(run: Run, chunk: Batch, batch: int | None) -> tuple[Array, ...]:
    whole = batch is None or any(not t.dim() or t.shape[0] != chunk.size for t in chunk.inputs)
    if whole or chunk.size == batch:
        return tuple(_numpy(o) for o in run(chunk.inputs))
    assert batch is not None
    parts: Outputs = []
    for start in range(0, chunk.size, batch):
        index = torch.arange(start, start + batch).clamp(max=chunk.size - 1)
        parts.append(tuple(_numpy(o) for o in run(tuple(t.index_select(0, index) for t in chunk.inputs))))
    joined: list[Array] = []
    for index_out, group in enumerate(zip(*parts, strict=True)):
        if any(o.ndim == 0 or o.shape[0] != batch for o in group):
            raise InputError(
                f"output {index_out}: {list(group[0].shape)} does not begin with the batch of {batch}:"
                " its samples cannot be told apart;"
                f" give the data in batches of {batch} with module:function"
            )
        joined.append(np.concatenate(group)[: chunk.size])
    return tuple(joined)


def evaluate(run: Run, data: Dataset, score: Score, batch: int | None = None, teacher: Outputs | None = None) -> Scored:
    """Run over the data and score; `teacher` holds the teacher's outputs on the same data."""
    return score_outputs(score, outputs(run, data, batch), teacher, truth(data, score))


def score_outputs(score: Score, found: Outputs, teacher: Outputs | None, known: Truth) -> Scored:
    """The score of outputs; raises `InputError` for targets or a user's function that misfit."""
    if not found:
        raise InputError("the evaluation data is empty")
    snr = None if teacher is None else snr_db(found, teacher)
    if score.function is not None:
        value: object = score.function(found, known.targets)
        number = float(value) if isinstance(value, (int, float, np.floating, np.integer)) else math.nan
        if not math.isfinite(number):
            raise InputError(f"--score {score.metric}: returned {value!r}; a finite number, in percent, is expected")
        return Scored(score.metric, number, None, sum(len(chunk[0]) for chunk in found), snr)
    match score.metric:
        case "top1":
            parts = [_top1(chunk[0], target) for chunk, target in zip(found, known.targets, strict=True)]
        case "agreement":
            parts = [_agreement(a[0], t[0]) for a, t in zip(found, _needed(teacher), strict=True)]
        case "cosine":
            masks = known.masks or [None] * len(found)
            parts = [_cosines(a, t, m) for a, t, m in zip(found, _needed(teacher), masks, strict=True)]
        case _:
            raise AssertionError(score.metric)
    per_sample = 100.0 * np.concatenate(parts)
    return Scored(score.metric, float(per_sample.mean()), per_sample, len(per_sample), snr)


def snr_db(found: Outputs, teacher: Outputs) -> float | None:
    """Signal-to-noise over all float outputs in dB, at most `MAX_SNR_DB`; None when not finite."""
    signal = noise = 0.0
    for ours, theirs in zip(found, teacher, strict=True):
        for a, t in zip(ours, theirs, strict=True):
            if t.dtype.kind == "f" and a.shape == t.shape:
                exact = t.astype(np.float64)
                signal += float(np.square(exact).sum())
                noise += float(np.square(a.astype(np.float64) - exact).sum())
    if not math.isfinite(signal + noise):
        return None
    if noise == 0:
        return MAX_SNR_DB
    return MAX_SNR_DB if signal and signal / noise > 1e20 else 10 * math.log10(max(signal, 1e-300) / noise)


def _top1(logits: Array, targets: Array | None) -> Array:
    """1 or 0 a sample; the mean over positions for dense labels (classes on axis 1, or on the last)."""
    if targets is None:
        raise InputError("top-1 needs labels in every batch of the evaluation data")
    if logits.ndim >= 2 and targets.shape == (logits.shape[0], *logits.shape[2:]):
        axis = 1
    elif logits.ndim >= 2 and targets.shape == logits.shape[:-1]:
        axis = logits.ndim - 1
    else:
        raise InputError(
            f"labels of shape {list(targets.shape)} do not fit outputs of shape {list(logits.shape)}:"
            " give one a sample, or --score"
        )
    right = (_argmax(logits, axis) == targets).reshape(len(targets), -1)
    return np.asarray(right.mean(axis=1), dtype=np.float64)


def _agreement(ours: Array, theirs: Array) -> Array:
    axis = 1 if ours.ndim > 1 else 0
    same = (_argmax(ours, axis) == _argmax(theirs, axis)).reshape(len(ours), -1)
    return np.asarray(same.mean(axis=1), dtype=np.float64)


def _argmax(logits: Array, axis: int) -> Array:
    """argmax that gives -1, which is no class, where a value is NaN."""
    best = np.asarray(np.argmax(logits, axis=axis))
    return np.where(np.isnan(logits).any(axis=axis), -1, best)


def _cosines(ours: Sequence[Array], theirs: Sequence[Array], mask: Array | None) -> Array:
    """The cosine of each sample, averaged over the float outputs; masked positions do not count."""
    found: list[Array] = []
    for a, t in zip(ours, theirs, strict=True):
        if t.dtype.kind != "f" or t.size == 0:
            continue
        if a.shape != t.shape:
            raise InputError(
                f"an output is {list(a.shape)} where the teacher's is {list(t.shape)}: they cannot be compared"
            )
        count = t.shape[0] if t.ndim else 1
        x, y = (v.astype(np.float64) for v in (a, t))
        if mask is not None and t.ndim >= 3 and t.shape[:2] == mask.shape:
            keep = (mask != 0).reshape(*mask.shape, *(1,) * (t.ndim - 2))
            x, y = np.where(keep, x, 0.0), np.where(keep, y, 0.0)
        found.append(_cosine(x.reshape(count, -1), y.reshape(count, -1)))
    if not found:
        raise InputError("the model has no float output to compare: give --score module:function")
    if len({len(f) for f in found}) > 1:
        return np.asarray([np.mean([f.mean() for f in found])])
    return np.asarray(np.mean(found, axis=0))


def _cosine(x: Array, y: Array) -> Array:
    """1 for two zero vectors, 0 for one of them or a value that is not finite."""
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.square(x).sum(1) * np.square(y).sum(1))
        value = np.where(norms > 0, (x * y).sum(1) / norms, 0.0)
    value = np.where((x == y).all(1), 1.0, value)
    return np.where(np.isfinite(value), value, 0.0)


def _needed(teacher: Outputs | None) -> Outputs:
    if teacher is None:
        raise InputError("this score compares with the teacher, whose outputs were not given")
    return teacher


def _numpy(value: object) -> Array:
    array = value.detach().cpu() if isinstance(value, Tensor) else value
    if isinstance(array, Tensor):
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return np.asarray(array)
