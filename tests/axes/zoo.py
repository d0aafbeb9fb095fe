"""Small instances of the field's architectures, in float64 with weights by fan-in and real statistics of norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgecompile.program import Program

Made = tuple[nn.Module, dict[str, Tensor]]


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that let a signal through: by fan-in, norms and biases that are not trivial."""
    generator = torch.Generator().manual_seed(seed)

    def normal(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator, dtype=value.dtype)

    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() >= 2:
                value.copy_(normal(value) / max(value[0].numel(), 1) ** 0.5)
            else:
                value.copy_((1.0 if name.endswith("weight") else 0.0) + 0.3 * normal(value))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + normal(buffer) ** 2)
    return model


def _hf(name: str, config: str, inputs: Callable[[], dict[str, Tensor]], **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        import transformers

        torch.manual_seed(0)
        made = getattr(transformers, config)(**options)
        return getattr(transformers, name)(made), inputs()

    return make


def image(size: int = 32, channels: int = 3) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": torch.randn(2, channels, size, size)}


def words(length: int = 12) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"input_ids": torch.randint(0, 50, (2, length))}


_TEXT = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20,
    "max_position_embeddings": 16,
}  # fmt: skip
_VIT = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20, "image_size": 32,
    "patch_size": 8, "num_labels": 5,
}  # fmt: skip

_BACKBONE = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "out_features": ["stage2"],
}  # fmt: skip


def _densenet() -> Made:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.blocks = nn.ModuleList()
            width = 8
            for _ in range(3):
                self.blocks.append(
                    nn.Sequential(
                        nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 12, 1, bias=False), nn.BatchNorm2d(12),
                        nn.ReLU(), nn.Conv2d(12, 6, 3, padding=1, bias=False),
                    )
                )  # fmt: skip
                width += 6
            self.last, self.head = nn.BatchNorm2d(width), nn.Linear(width, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = torch.cat([x, block(x)], 1)
            return self.head(torch.relu(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]

    return Dense(), {"input": torch.randn(2, 3, 8, 8)}


NETWORKS: dict[str, Callable[[], Made]] = {
    "resnet": _hf("ResNetForImageClassification", "ResNetConfig", image(), embedding_size=8, hidden_sizes=[16, 24],
                  depths=[2, 2], num_labels=5),
    "mobilenet_v2": _hf("MobileNetV2ForImageClassification", "MobileNetV2Config", image(), depth_multiplier=0.35,
                        image_size=32, num_labels=5),
    "efficientnet": _hf("EfficientNetForImageClassification", "EfficientNetConfig", image(), image_size=32,
                        width_coefficient=0.25, depth_coefficient=0.2, hidden_dim=320, num_labels=5),
    "convnext": _hf("ConvNextForImageClassification", "ConvNextConfig", image(), hidden_sizes=[8, 12], depths=[1, 2],
                    num_stages=2, num_labels=5),
    "regnet": _hf("RegNetForImageClassification", "RegNetConfig", image(), embedding_size=8, hidden_sizes=[16, 24],
                  depths=[1, 2], groups_width=8, num_labels=5),
    "densenet": _densenet,
    "vit": _hf("ViTForImageClassification", "ViTConfig", image(), **_VIT),
    "deit": _hf("DeiTForImageClassification", "DeiTConfig", image(), **_VIT),
    "swin": _hf("SwinForImageClassification", "SwinConfig", image(), image_size=32, patch_size=2, embed_dim=8,
                depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5),
    "beit": _hf("BeitForImageClassification", "BeitConfig", image(), **_VIT, use_relative_position_bias=True,
                layer_scale_init_value=0.5),
    "mobilevit": _hf("MobileViTForImageClassification", "MobileViTConfig", image(64), image_size=64,
                     hidden_sizes=[12, 16, 20], neck_hidden_sizes=[8, 8, 12, 16, 16, 20, 24], num_labels=5),
    "segformer": _hf("SegformerForSemanticSegmentation", "SegformerConfig", image(64), depths=[1, 1, 1, 1],
                     hidden_sizes=[8, 12, 16, 20], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16,
                     num_labels=5),
    "detr": _hf("DetrForObjectDetection", "DetrConfig", image(64), use_timm_backbone=False, backbone=None,
                use_pretrained_backbone=False, backbone_config=_BACKBONE, d_model=16, encoder_layers=1,
                decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=20,
                decoder_ffn_dim=20, num_queries=5, num_labels=4),
    "yolos": _hf("YolosForObjectDetection", "YolosConfig", image(), **{**_VIT, "image_size": [32, 32]},
                 num_detection_tokens=4),
    "bert": _hf("BertForSequenceClassification", "BertConfig", words(), **_TEXT),
    "distilbert": _hf("DistilBertForSequenceClassification", "DistilBertConfig", words(), vocab_size=50, dim=24,
                      n_layers=2, n_heads=4, hidden_dim=20, max_position_embeddings=16),
    "roberta": _hf("RobertaForSequenceClassification", "RobertaConfig", words(), **_TEXT),
    "albert": _hf("AlbertForSequenceClassification", "AlbertConfig", words(), **_TEXT, embedding_size=10),
    "electra": _hf("ElectraForSequenceClassification", "ElectraConfig", words(), **_TEXT, embedding_size=10),
    "gpt2": _hf("GPT2LMHeadModel", "GPT2Config", words(), vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=4,
                use_cache=False),
    "llama": _hf("LlamaForCausalLM", "LlamaConfig", words(), **_TEXT, num_key_value_heads=2, use_cache=False),
    "t5 encoder": _hf("T5EncoderModel", "T5Config", words(), vocab_size=50, d_model=24, d_kv=6, d_ff=20, num_layers=2,
                      num_heads=4),
    "whisper encoder": _hf("WhisperForAudioClassification", "WhisperConfig",
                           lambda: {"input_features": torch.randn(2, 8, 24)}, num_mel_bins=8, encoder_layers=2,
                           encoder_attention_heads=4, encoder_ffn_dim=20, d_model=24, max_source_positions=12,
                           classifier_proj_size=16, num_labels=5),
    "wav2vec2": _hf("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config",
                    lambda: {"input_values": torch.randn(2, 400)}, hidden_size=24, num_hidden_layers=2,
                    num_attention_heads=4, intermediate_size=20,
                    conv_dim=[8, 12], conv_kernel=[10, 3], conv_stride=[5, 2], num_conv_pos_embeddings=8,
                    num_conv_pos_embedding_groups=4, num_labels=5),
    "clip vision": _hf("CLIPVisionModel", "CLIPVisionConfig", image(), hidden_size=24, intermediate_size=20,
                       num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8),
    "vgg-like": lambda: (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3),
                                       nn.Flatten(), nn.Linear(12 * 5 * 5, 16), nn.PReLU(), nn.Linear(16, 4)),
                         {"input": torch.randn(2, 3, 16, 16)}),
}  # fmt: skip
"""Name -> model and example inputs, batch 2."""


def captured(name: str) -> Program:
    """A network in float64 as a program, weight norms and the like computed."""
    from edgecompile.pass_manager import Context, PassManager, parse
    from edgecompile.passes import PASSES

    model, inputs = NETWORKS[name]()
    model = lively(model.double().eval())
    ((word, x),) = inputs.items()
    program = Program.capture(_Plain(model, word), (x.double() if x.is_floating_point() else x,))
    made, _ = PassManager(parse("fold_constants", PASSES)).run(program, Context(program))
    return made


class _Plain(nn.Module):
    """The first tensor that a model returns."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        found = self.model(x) if self.name == "input" else self.model(**{self.name: x})
        return found if isinstance(found, Tensor) else found[0]  # type: ignore[no-any-return]
