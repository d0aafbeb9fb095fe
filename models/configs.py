"""Architectures of the field at their real sizes with seeded weights: what `edgecompile bench matrix` builds.

No weights are downloaded. So that equal outputs mean something, weights have the spread of their fan-in, norms and
scales are not trivial, and batch norms hold the statistics of data that has really gone through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgecompile.data.digest import digest_of
from edgecompile.data.types import Arrays
from edgecompile.errors import InputError
from edgecompile.program import Program
from edgecompile.teacher import Teacher

_CALIB, _EVAL = 8, 4
_QUERIES = {"query", "key", "q_lin", "k_lin", "q_proj", "k_proj", "c_attn"}
"""Layers of queries and keys: with the plain spread all places look alike, with twice of it every rounding grows."""
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

CONFIGS: dict[str, str] = {
    name: f"edgecompile.models.configs:{name}"
    for name in (
        "resnet50",
        "mobilenet_v2",
        "efficientnet_b0",
        "convnext_tiny",
        "vit_small",
        "swin_tiny",
        "bert_base",
        "distilbert",
        "yolos_tiny",
        "segformer_b0",
        "wav2vec2_base",
        "gpt2",
    )
}
"""Name -> `module:function` that returns a `Teacher`, as `edgecompile build` takes it too."""


def resnet50() -> Teacher:
    """ResNet-50, 224x224 to 1000 classes."""
    return _classifier("resnet50", "ResNet")


def mobilenet_v2() -> Teacher:
    """MobileNetV2 at width 1, 224x224 to 1001 classes (the first is the background)."""
    return _classifier("mobilenet_v2", "MobileNetV2", num_labels=1001)


def efficientnet_b0() -> Teacher:
    """EfficientNet-B0, 224x224 to 1000 classes."""
    sizes = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 224}
    return _classifier("efficientnet_b0", "EfficientNet", **sizes)


def convnext_tiny() -> Teacher:
    """ConvNeXt-T, 224x224 to 1000 classes."""
    return _classifier("convnext_tiny", "ConvNext")


def vit_small() -> Teacher:
    """ViT-S/16, 224x224 to 1000 classes."""
    return _classifier("vit_small", "ViT", hidden_size=384, num_attention_heads=6, intermediate_size=1536)


def swin_tiny() -> Teacher:
    """Swin-T with windows of 7, 224x224 to 1000 classes."""
    return _classifier("swin_tiny", "Swin")


def bert_base() -> Teacher:
    """BERT-base, 128 tokens to their hidden states and the pooled one."""
    return _words("bert_base", _made("BertModel", "BertConfig"), 30522, mask=True)


def distilbert() -> Teacher:
    """DistilBERT, 128 tokens to their hidden states."""
    return _words("distilbert", _made("DistilBertModel", "DistilBertConfig"), 30522, mask=True)


def yolos_tiny() -> Teacher:
    """YOLOS-tiny, 512x864 to 100 boxes and their classes."""
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "image_size": [512, 864]}
    plain = {"use_mid_position_embeddings": False, "num_labels": 91}
    model = _made("YolosForObjectDetection", "YolosConfig", **sizes, **plain)
    return _teacher("yolos_tiny", model, {"pixel_values": _noise(3, 512, 864)})


def segformer_b0() -> Teacher:
    """SegFormer-B0, 512x512 to a map of 150 classes at a quarter of the size."""
    model = _made("SegformerForSemanticSegmentation", "SegformerConfig", num_labels=150)
    return _teacher("segformer_b0", model, {"pixel_values": _noise(3, 512, 512)})


def wav2vec2_base() -> Teacher:
    """The encoder of wav2vec 2.0 base, one second of sound at 16 kHz to 49 hidden states."""
    return _teacher("wav2vec2_base", _made("Wav2Vec2Model", "Wav2Vec2Config"), {"input_values": _noise(16000)})


def gpt2() -> Teacher:
    """GPT-2 (124 M), a single forward of 64 tokens to the next ones' logits."""
    return _words("gpt2", _made("GPT2LMHeadModel", "GPT2Config", use_cache=False), 50257, length=64)


def _made(model: str, config: str, **options: Any) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise InputError("transformers is not installed: pip install 'edgecompile[hf]'") from error
    torch.manual_seed(0)
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
    return made.eval()


def _classifier(name: str, word: str, **options: Any) -> Teacher:
    model = _made(f"{word}ForImageClassification", f"{word}Config", **{"num_labels": 1000, **options})
    return _teacher(name, model, {"pixel_values": _noise(3, 224, 224)})


def _words(name: str, model: nn.Module, vocabulary: int, mask: bool = False, length: int = 128) -> Teacher:
    """Token numbers in range; with `mask`, every second text is shorter than the length."""
    generator = torch.Generator().manual_seed(1)
    count = _CALIB + _EVAL
    inputs = {"input_ids": torch.randint(0, vocabulary, (count, length), generator=generator)}
    if mask:
        ends = torch.where(torch.arange(count) % 2 == 0, length, 3 * length // 4)
        inputs["attention_mask"] = (torch.arange(length) < ends[:, None]).long()
    return _teacher(name, model, inputs)


def _noise(*shape: int) -> Tensor:
    return torch.randn(_CALIB + _EVAL, *shape, generator=torch.Generator().manual_seed(1))


def _teacher(name: str, model: nn.Module, inputs: Mapping[str, Tensor]) -> Teacher:
    """The model, brought to life, with generated data to calibrate on and to compare outputs on."""
    _enliven(model)
    _settle_norms(model, {key: value[:4] for key, value in inputs.items()})
    program = Program.capture(model, {key: value[:2].clone() for key, value in inputs.items()})
    calib, evaluate = (
        Arrays(f"generated ({what})", tuple(value[part] for value in inputs.values()), batch_size=_EVAL)
        for what, part in (("calib", slice(_CALIB)), ("eval", slice(_CALIB, None)))
    )
    return Teacher(name, program, digest_of(program), calib, evaluate)


@torch.no_grad()
def _enliven(model: nn.Module) -> None:
    """Draw every parameter anew: a fresh network has zero biases, unit scales and branches that add next to nothing."""
    generator = torch.Generator().manual_seed(2)
    drawn: set[int] = set()
    for path, owner in model.named_modules():
        for name, value in owner.named_parameters(recurse=False):
            if id(value) in drawn:  # tied: GPT-2's last layer is its table of words
                continue
            drawn.add(id(value))
            if name == "bias":
                # centred, behind 50 random layers every rounding grows a hundredfold; no trained network does that
                value.normal_(0.5 if isinstance(owner, _BATCH_NORMS) else 0, 0.1, generator=generator)
            elif isinstance(owner, (nn.LayerNorm, nn.GroupNorm, *_BATCH_NORMS)):
                value.uniform_(0.7, 1.3, generator=generator)
            elif isinstance(owner, nn.Embedding):
                value.normal_(0, 1, generator=generator)
            elif "scale" in name:  # ConvNeXt's, 1e-6 when fresh
                value.uniform_(0.2, 0.6, generator=generator)
            elif name == "weight" and value.dim() > 1:
                # transformers' Conv1D, of GPT-2, has the input's channels first
                width = value.shape[0] if type(owner).__name__ == "Conv1D" else value[0].numel()
                sharp = 1.4 if path.rpartition(".")[2] in _QUERIES else 1
                value.normal_(0, sharp * width**-0.5, generator=generator)
            elif value.dim() > 1 and "original" not in name:  # tokens, positions; a weight norm's parts stay
                value.normal_(0, 0.5, generator=generator)


@torch.no_grad()
def _settle_norms(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Give batch norms the statistics of these inputs."""
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS)]
    if not norms:
        return
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    model(**inputs)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
        norm.eval()
