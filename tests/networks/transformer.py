"""Networks whose graph in the package transformers is the published one, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.networks.network import Built


def _make(model: str, config: str, **options: Any) -> nn.Module:
    import transformers

    module: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
    return module.eval()


def encoder(word: str, head: str, length: int, **options: Any) -> Built:
    """`word` with a head, ids and mask of [2, length]; what `options` leave out is as in the base one."""
    ids = torch.arange(2 * length).reshape(2, length) % 1000
    return _make(word + head, f"{word}Config", **options), (ids, torch.ones_like(ids))


def classifier(word: str, **options: Any) -> nn.Module:
    """`word` with a classifier of 1000 classes."""
    return _make(f"{word}ForImageClassification", f"{word}Config", num_labels=1000, **options)


def bert_squad(length: int) -> Built:
    return encoder("Bert", "ForQuestionAnswering", length)


def bert_large_squad(length: int) -> Built:
    options = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return encoder("Bert", "ForQuestionAnswering", length, **options)


def bert_words(length: int) -> Built:
    return encoder("Bert", "ForMaskedLM", length)


def distilbert_words(length: int) -> Built:
    return encoder("DistilBert", "ForMaskedLM", length)


def albert_words(length: int) -> Built:
    options = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    return encoder("Albert", "ForMaskedLM", length, **options)


def electra_discriminator(length: int) -> Built:
    options = {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    return encoder("Electra", "ForPreTraining", length, **options)


def nomic(length: int) -> Built:
    """Rotary positions and a gated feed-forward part."""
    return encoder("NomicBert", "Model", length)


def beit_base() -> nn.Module:
    """A relative position bias of its own in every layer, and the mean of the patches for the head."""
    return classifier("Beit", use_relative_position_bias=True, use_mean_pooling=True)


def convnext_tiny() -> nn.Module:
    return classifier("ConvNext")


def convnext_base() -> nn.Module:
    return classifier("ConvNext", hidden_sizes=[128, 256, 512, 1024], depths=[3, 3, 27, 3])


def regnet_x_3_2gf() -> nn.Module:
    widths = [96, 192, 432, 1008]
    return classifier("RegNet", layer_type="x", hidden_sizes=widths, depths=[2, 6, 15, 2], groups_width=48)


def regnet_y_800mf() -> nn.Module:
    """With gates; torchvision's second and third widths, which are not those of the paper."""
    widths = [64, 144, 320, 784]
    return classifier("RegNet", layer_type="y", hidden_sizes=widths, depths=[1, 3, 8, 2], groups_width=16)


def levit_128s() -> nn.Module:
    return classifier("Levit", num_attention_heads=[4, 6, 8], depths=[2, 3, 4])


def mobilevit_small() -> nn.Module:
    return classifier("MobileViT")


def mobilevit_v2() -> nn.Module:
    return classifier("MobileViTV2")
