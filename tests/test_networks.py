"""The reference networks are the published ones: parameters, multiply-accumulates, and a network for every name."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import pytest
import torch
from torch import nn

from tests.networks import ABSENT, NETWORKS, find
from tests.networks.macs import macs, parameters

pytest.importorskip("transformers")

# every pair of model and input shape in the tables of measured latencies
TABLES = {
    "3x224x224": (
        "beit, convnext_base, convnext_tiny, densenet121, dla102x, efficientformer, efficientnet_b0, efficientvit_b1, "
        "efficientvit_b2, efficientvit_b2_cls, efficientvit_b3, efficientvit_l2_cls, googlenet, inception_v3, levit, "
        "MobileNet-v1, MobileNet-v2, MobileNetv2-1.0, MobileNetv3-small, mnasnet05, mobile_vit, mobilenet_v2, "
        "mobilenet_v3_large, mobilenet_v3_small, mobileone_s0, mobileone_s1, mobileone_s2, mobileone_s3, mobileone_s4, "
        "nasnet, regnet, regnet_y_800mf, repvit_m0_9, repvit_m1_0, repvit_m1_1, repvit_m1_5, repvit_m2_3, "
        "ResNet101-v1, ResNet101-v2, ResNet50, ResNet50-v1, ResNet50-v2, resnet101, resnet18, resnet50, resnet50_v1.5, "
        "resnext101, resnext50, sequencer2d, shufflenet_v2, squeezenet1_1, vit, wideresnet50"
    ),
    "3x256x256": "efficientvit_b1, efficientvit_b2, efficientvit_b3, MobileViTv2-1.0",
    "3x288x288": "efficientvit_b1, efficientvit_b2, efficientvit_b3",
    "3x299x299": "Inception-v3",
    "3x300x300": "ssd-mobilenet",
    "3x380x380": "efficientnet_b4",
    "3x384x384": "efficientnet_v2_s",
    "3x512x512": "CenterNet (ResNet34 backbone)",
    "3x640x640": "yolov10_det, yolov11_det, yolov11_seg, yolov5, yolov7, yolov8_det, yolov8_seg, yolox",
    "3x800x800": "retinanet",
    "3x1200x1200": "ssd-resnet34",
    "seq 128": ("nomic_embed_text, bert_base (SQuAD head), bert_large (SQuAD head), megatron bert_large (sparse QAT)"),
    "seq 384": (
        "albert_base_v2_hf, bert_base_uncased_hf, distil_bert_base_uncased_hf, electra_bert_base_discrim_google, "
        "mobile_bert_uncased_google, bert_base (SQuAD head), bert_large (SQuAD head), megatron bert_large (sparse QAT)"
    ),
    "SQuAD, variable length <=384": "bert-99",
    "LibriSpeech utterances": "rnnt",
    "KiTS19 volumes (BraTS before v2.0)": "3d-unet-99",
}
PAIRS = [(model, shape) for shape, models in TABLES.items() for model in models.split(", ")]


def agrees(counted: int, unit: float, published: float, share: float) -> bool:
    """Within `share` of the published figure, and half a unit of its last digit for its rounding."""
    rounding = 0.5 * 10.0 ** int(Decimal(repr(published)).as_tuple().exponent)
    return abs(counted / unit - published) <= share * published + rounding


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if i % 3 else n for i, n in enumerate(NETWORKS)]
)
def test_sizes_are_the_published_ones(name: str) -> None:
    network = NETWORKS[name]
    with torch.device("meta"):
        module, inputs = network.build()
    assert not module.training
    assert all(len(x) == 2 for x in inputs)
    if network.params_m is not None:
        assert agrees(parameters(module), 1e6, network.params_m, 0.01)
    if network.gmacs is not None:
        assert agrees(macs(module, inputs), 1e9, network.gmacs, 0.02)


def test_every_row_has_one_network_or_a_reason() -> None:
    served = Counter((model, network.input) for network in NETWORKS.values() for model in network.stands_for)
    assert max(served.values()) == 1
    absent = {pair for pair in PAIRS if pair[0] in ABSENT}
    assert {model for model, _ in absent} == set(ABSENT)
    assert served.keys() | absent == set(PAIRS)
    assert not served.keys() & absent
    assert all(find(*pair) for pair in served)
    assert not any(find(*pair) for pair in absent)


def test_weights_are_the_same_every_time() -> None:
    (one, given), (two, again) = (NETWORKS["squeezenet1_1"].build() for _ in range(2))
    assert torch.equal(given[0], again[0])
    torch.testing.assert_close(one(*given), two(*again), rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_counts(device: str) -> None:
    """By hand: products of every kind, attention among them, on real tensors and on meta ones."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
            self.up = nn.ConvTranspose2d(6, 8, 2, 2)
            self.norm, self.linear, self.twice = nn.BatchNorm2d(8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.twice.weight = self.linear.weight
            self.recurrent = nn.LSTM(8, 4, batch_first=True, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.up(self.conv(x).relu())).flatten(2).transpose(1, 2)
            y = self.recurrent(self.twice(self.linear(y)))[0].unsqueeze(1)
            return nn.functional.scaled_dot_product_attention(y, y, y) @ y.transpose(2, 3)

    with torch.device(device):
        net, x = Net().eval(), torch.randn(3, 4, 5, 5)
    conv, up, linear, recurrent = 25 * 6 * 2 * 9, 25 * 6 * 8 * 4, 100 * 8 * 8, 100 * 2 * 4 * 4 * (8 + 4)
    assert macs(net, (x,)) == conv + up + 2 * linear + recurrent + 3 * 100 * 100 * 8
    lstm = 2 * 4 * 4 * (8 + 4 + 2)
    assert parameters(net) == (6 * 2 * 9 + 6) + (6 * 8 * 4 + 8) + 16 + (64 + 8 + 8) + lstm
