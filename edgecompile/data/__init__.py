"""Data: datasets, how pictures and texts become inputs, and scores."""

from edgecompile.data.digest import digest_of
from edgecompile.data.interface import Interface
from edgecompile.data.preprocess import Image, image_from_dict, image_from_huggingface, parse_image
from edgecompile.data.scores import (
    Outputs,
    Score,
    Scored,
    Truth,
    choose_score,
    evaluate,
    outputs,
    score_outputs,
    snr_db,
    truth,
)
from edgecompile.data.sources import open_dataset
from edgecompile.data.types import Arrays, Batch, Dataset

__all__ = [
    "Arrays",
    "Batch",
    "Dataset",
    "Image",
    "Interface",
    "Outputs",
    "Score",
    "Scored",
    "Truth",
    "choose_score",
    "digest_of",
    "evaluate",
    "image_from_dict",
    "image_from_huggingface",
    "open_dataset",
    "outputs",
    "parse_image",
    "score_outputs",
    "snr_db",
    "truth",
]
