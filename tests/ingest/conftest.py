"""One valid file of every kind, made once."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from safetensors.torch import save

from tests.ingest import makers


@pytest.fixture(scope="session")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """File name to its bytes; each is accepted by the library that it belongs to."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    programs = makers.exported(tmp_path_factory.mktemp("pt2"))
    npy, npz, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, np.arange(6, dtype=np.float32).reshape(2, 3))
    np.savez(npz, x=np.ones((4, 3), np.float32), y=np.array([1, 2, 3, 4]), name=np.array(["a", "bc"]))
    np.savez_compressed(packed, x=np.zeros((4000, 3), np.float32), y=np.random.default_rng(0).normal(size=999))
    return {
        "net.onnx": makers.onnx_model().SerializeToString(),
        "one.pt2": programs["one"],
        "two.pt2": programs["two"],
        "weights.pt": makers.saved(makers.state_dict()),
        "weights.safetensors": save(
            {"a": torch.ones(2, 3), "b.c": torch.zeros(4, dtype=torch.bfloat16)}, {"format": "pt"}
        ),
        "x.npy": npy.getvalue(),
        "x.npz": npz.getvalue(),
        "packed.npz": packed.getvalue(),
    }
