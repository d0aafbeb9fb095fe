"""Texts: a file with one text a line, or a list, tokenised to the fixed length of a program."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecompile.data.interface import Interface
from edgecompile.data.labels import label_lines, read_lines
from edgecompile.data.types import BATCH_SIZE, Batch, Dataset
from edgecompile.errors import InputError

NAMES = ("input_ids", "attention_mask", "token_type_ids")
"""The inputs that can be made from a text."""


@dataclass(frozen=True, eq=False)
class Texts(Dataset):
    """Texts cut and padded to `length` tokens; `names` are the program's inputs, each one of `NAMES`."""

    name: str
    texts: tuple[str, ...]
    tokenizer: Path
    length: int
    names: tuple[str, ...] = ("input_ids", "attention_mask")
    labels: tuple[int, ...] | None = None
    batch_size: int = BATCH_SIZE
    independent: str = ""
    notes: tuple[str, ...] = ()
    dtype: torch.dtype = torch.int64

    @property
    def samples(self) -> int:
        return len(self.texts)

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    @cached_property
    def digest(self) -> str:
        head = repr((self.texts, self.labels, self.length, self.names, self.batch_size, str(self.dtype)))
        digest = hashlib.sha256(head.encode("utf-8", "surrogateescape"))
        digest.update(self.tokenizer.read_bytes())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        tokenizer = open_tokenizer(self.tokenizer, self.length)
        for start in range(0, len(self.texts), self.batch_size):
            texts = self.texts[start : start + self.batch_size]
            tensors = encode(tokenizer, texts, self.names, self.dtype)
            labels = None if self.labels is None else torch.tensor(self.labels[start : start + len(texts)])
            yield Batch(tensors, labels)


def open_tokenizer(path: Path, length: int) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json, set to cut and pad to `length`; raises `InputError`."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError(f"{path}: texts need the tokenizers package: pip install 'edgecompile[hf]'") from error
    if not path.is_file():
        raise InputError(f"{path}: the tokenizer is missing")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: not a tokenizer.json that can be read: {error}") from error
    found = tokenizer.padding or {}
    pad_id, pad_token = found.get("pad_id"), found.get("pad_token")
    if pad_id is None:
        pad_token = next(
            (t for t in ("[PAD]", "<pad>", "<|endoftext|>", "</s>") if tokenizer.token_to_id(t) is not None),
            None,
        )
        if pad_token is None:
            raise InputError(f"{path}: has no padding token: give token arrays in a .npz")
        pad_id = tokenizer.token_to_id(pad_token)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=pad_token)
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[str], names: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The inputs called `names` for these texts, each [texts, length]."""
    encoded = tokenizer.encode_batch(list(texts))
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return tuple(torch.tensor([getattr(e, fields[name]) for e in encoded], dtype=dtype) for name in names)


def open_texts(
    path: Path, interface: Interface, text: Mapping[str, object] | None, labels: Path | None, batch_size: int
) -> Texts:
    """One text a line, empty lines left out; `text` is the teacher's `tokenizer` (a path) and `length`."""
    if text is None:
        raise InputError(
            f"{path}: texts need a tokenizer: give a Hugging Face folder with tokenizer.json, or token arrays in a .npz"
        )
    odd = [name for name in interface.names if name not in NAMES]
    if odd:
        raise InputError(f"{path}: the model takes {', '.join(odd)}, which no tokenizer makes: give arrays in a .npz")
    lines = read_lines(path)
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise InputError(f"{path}: is empty: one text a line is expected")
    numbers = None if labels is None else label_lines(labels, len(texts), interface.classes)
    length = interface.shapes[0][-1]
    length = int(str(text["length"])) if length is None else length
    return Texts(
        str(path),
        texts,
        Path(str(text["tokenizer"])),
        length,
        interface.names,
        numbers,
        batch_size,
        dtype=interface.dtypes[0],
    )
