"""The exact passes on real architectures with seeded weights and statistics: equal outputs, fewer operators."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from edgecompile.program import Program
from tests.passes.test_exact_passes import WHOLE, run, worst
from tests.random_nets import randomise

transformers = pytest.importorskip("transformers")

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 2, 1]}),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.35, "tf_padding": False}),
    "mobilenet_v2_padded": ("MobileNetV2", {"depth_multiplier": 0.35, "tf_padding": True}),
    "efficientnet": (
        "EfficientNet",
        {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    ),
    "convnext": ("ConvNext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    "regnet": ("RegNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 4}),
    "vit": (
        "ViT",
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    ),
    "swin": ("Swin", {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}),
    "bert": (
        "Bert",
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    ),
}
SLOW = ("mobilenet_v2", "mobilenet_v2_padded", "efficientnet", "swin")


def network(name: str) -> tuple[nn.Module, Mapping[str, Tensor] | tuple[Tensor]]:
    word, options = FAMILIES[name]
    if name == "bert":
        config = transformers.BertConfig(vocab_size=50, **options)
        model = transformers.BertForSequenceClassification(config)
        ids = torch.arange(24).reshape(2, 12)
        return randomise(model, 0), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sized = {"image_size": 64} if name in ("vit", "swin") else {}
    config = getattr(transformers, f"{word}Config")(num_labels=5, **sized, **options)
    model = getattr(transformers, f"{word}ForImageClassification")(config)
    return randomise(model, 0), (torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_architecture(name: str) -> None:
    program = Program.capture(*network(name))
    after, _ = run(WHOLE, program.clone())
    assert worst(after(*program.inputs), program(*program.inputs)) < 1e-4
    assert after.interface == program.interface
    assert len(after.graph.graph.nodes) < len(program.graph.graph.nodes)
    assert "batch_norm" not in str(after)
    again, counts = run(WHOLE, after.clone())
    assert counts == {}
    assert str(again) == str(after)
