"""Real networks as packages: the shipped teachers, and attention with windows, heads and masks from transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.program import Program
from edgecompile.targets.coreml import CoreMl, Interpreted
from tests.targets.coreml_nets import packaged

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def lite0() -> Program:
    from edgecompile.models.efficientnet_lite0 import network

    return Program.capture(network().eval(), (torch.randn(2, 3, 224, 224),))


def minilm() -> Program:
    from edgecompile.models.minilm import teacher

    return teacher().program


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x).logits
        return result


def hugging_face(kind: str, config: str, example: Tensor, **options: Any) -> Program:
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(num_labels=100, **options)).eval()
    return Program.capture(Logits(model).eval(), (example,))


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS = {
    "lite0": lite0,
    "minilm": minilm,
    "vit": lambda: hugging_face("ViTForImageClassification", "ViTConfig", IMAGE, image_size=64, patch_size=16, **SMALL),
    "swin": lambda: hugging_face(
        "SwinForImageClassification",
        "SwinConfig",
        IMAGE,
        image_size=64,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=4,
    ),
    "convnext": lambda: hugging_face(
        "ConvNextForImageClassification", "ConvNextConfig", IMAGE, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1]
    ),
    "bert": lambda: hugging_face(
        "BertForSequenceClassification", "BertConfig", torch.arange(32).reshape(2, 16), vocab_size=100, **SMALL
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("name", list(MODELS))
def test_models_equal_eager(name: str, dtype: str, tmp_path: Path) -> None:
    program = MODELS[name]()
    assert CoreMl().refuse(program) == []
    inputs = tuple(t[:1] for t in program.inputs)
    loaded = Interpreted(packaged(program, tmp_path / "work", dtype))
    for found, wanted in zip(loaded(inputs), program(*inputs), strict=True):
        assert (found - wanted).abs().max() <= {"fp16": 5e-3, "fp32": 1e-4}[dtype] * wanted.abs().max()
        assert F.cosine_similarity(found.flatten(), wanted.flatten(), 0) > 0.9999
