"""The networks of the benchmarks: two trained teachers and two ResNet shapes with seeded weights."""

from __future__ import annotations

import torch
from torch import nn

from edgecompile.data import Arrays, digest_of
from edgecompile.program import Program
from edgecompile.teacher import Teacher

NAMES = ("efficientnet_lite0", "resnet18", "resnet50", "minilm")


def teacher(name: str) -> Teacher:
    """A teacher by name, with calibration and evaluation data."""
    if name in ("efficientnet_lite0", "minilm", "digits", "fashion"):
        from edgecompile.models import MODELS
        from edgecompile.reference import load_function

        found: Teacher = load_function(MODELS[name])()
        return found
    return _resnet(name)


def _resnet(name: str) -> Teacher:
    """ResNet-18 or ResNet-50 with seeded weights and batch-norm statistics that are not trivial."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    basic = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**(basic if name == "resnet18" else {}), num_labels=1000)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    program = Program.capture(model, {"pixel_values": torch.randn(2, 3, 224, 224)})
    calib, evaluate = (Arrays(f"noise {n}", (torch.randn(n, 3, 224, 224),), batch_size=8) for n in (100, 32))
    return Teacher(name, program, digest_of(program), calib, evaluate)
