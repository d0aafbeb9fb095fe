"""Public networks whose measured latencies calibrate and check the latency predictor, as modules with random weights.

Names and published figures are those of the tables of measured latencies. Most figures of multiply-accumulates there
come from counters that add a little for norms and activations; where a figure counts something else altogether, the
entry says so and states what the network itself must have.
"""

from __future__ import annotations

from functools import partial

from tests.networks import (
    classic,
    detectors,
    efficientvit,
    hybrid,
    inception,
    mobile,
    nasnet,
    repvgg_like,
    resnet,
    transformer,
    yolo,
)
from tests.networks.network import Network, image, text

R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)
_bottlenecks, _mobileone, _repvit = resnet.resnet, repvgg_like.mobileone, repvgg_like.repvit
_b1 = partial(efficientvit.efficientvit_b, (16, 32, 64, 128, 256), (1, 2, 3, 3, 4), 16, (1536, 1600))
_b2 = partial(efficientvit.efficientvit_b, (24, 48, 96, 192, 384), (1, 3, 4, 4, 6), 32, (2304, 2560))
_b3 = partial(efficientvit.efficientvit_b, (32, 64, 128, 256, 512), (1, 4, 6, 6, 9), 32, (2304, 2560))
_l2 = partial(efficientvit.efficientvit_l, (32, 64, 128, 256, 512), (1, 2, 2, 8, 8), (3072, 3200))
_b4 = partial(mobile.efficientnet, mobile.B0, 32, 1280, 1.4, 1.8)

_RESNETS = (
    image("resnet18", resnet.resnet18, 11.69, 1.82, "resnet", "resnet18"),
    # the stride in the 3x3 convolution: torchvision's, MLPerf's and the one that others call v1.5
    image("resnet50", partial(_bottlenecks, R50), 25.56, 4.11, "resnet", "resnet50", "resnet50_v1.5", "ResNet50"),
    image("resnet101", partial(_bottlenecks, R101), 44.55, 7.83, "resnet", "resnet101"),
    image("resnext50_32x4d", partial(_bottlenecks, R50, 32, 4), 25.03, 4.26, "resnext", "resnext50"),
    image("resnext101_32x8d", partial(_bottlenecks, R101, 32, 8), 88.79, 16.48, "resnext", "resnext101"),
    image("wide_resnet50_2", partial(_bottlenecks, R50, 1, 128), 68.88, 11.43, "resnet", "wideresnet50"),
    # Keras' v1 has the stride in the first convolution and biases, its v2 is pre-activated: three different networks
    image("resnet50_v1", partial(_bottlenecks, R50, early=True), 25.6, None, "resnet", "ResNet50-v1"),
    image("resnet101_v1", partial(_bottlenecks, R101, early=True), 44.7, None, "resnet", "ResNet101-v1"),
    image("resnet50_v2", partial(resnet.resnet_v2, R50), 25.6, None, "resnet", "ResNet50-v2"),
    image("resnet101_v2", partial(resnet.resnet_v2, R101), 44.7, None, "resnet", "ResNet101-v2"),
)

_CLASSIC = (
    image("densenet121", classic.densenet, 7.98, 2.87, "densenet", "densenet121"),
    image("dla102x", classic.dla102x, 26.31, 5.89, "dla", "dla102x"),
    image("googlenet", inception.googlenet, 6.62, 1.498, "inception", "googlenet"),
    # measured at 224, not at the paper's 299
    image("inception_v3_224", inception.inception_v3, 23.83, None, "inception", "inception_v3"),
    image("inception_v3_299", inception.inception_v3, 23.9, 5.73, "inception", "Inception-v3", size=299),
    # measured at 224, not at the paper's 331
    image("nasnet_a_large", nasnet.NasNet, 88.75, None, "nasnet", "nasnet"),
    image("regnet_x_3_2gf", transformer.regnet_x_3_2gf, 15.3, 3.2, "regnet", "regnet"),
    image("regnet_y_800mf", transformer.regnet_y_800mf, 6.43, 0.834, "regnet", "regnet_y_800mf"),
    image("shufflenet_v2_x0_5", classic.shufflenet_v2, 1.37, 0.04, "shufflenet", "shufflenet_v2"),
    image("squeezenet1_1", classic.squeezenet1_1, 1.24, 0.349, "squeezenet", "squeezenet1_1"),
)

_MOBILE = (
    # the table's 4.25 counts running statistics
    image("mobilenet_v1", mobile.mobilenet_v1, 4.25, 0.569, "mobilenet", "MobileNet-v1"),
    # Keras' one, MobileNet-v2, pads before a stride on one side only: the same layers of the same sizes
    image(
        "mobilenet_v2", mobile.mobilenet_v2, 3.5, 0.31, "mobilenet", "mobilenet_v2", "MobileNet-v2", "MobileNetv2-1.0"
    ),
    # 0.219 is the paper's; the table's 0.23 counts more than products
    image(
        "mobilenet_v3_large",
        partial(mobile.mobilenet_v3, mobile.V3_LARGE, 1280),
        5.48,
        0.219,
        "mobilenet",
        "mobilenet_v3_large",
    ),
    image(
        "mobilenet_v3_small",
        partial(mobile.mobilenet_v3, mobile.V3_SMALL, 1024),
        2.54,
        0.06,
        "mobilenet",
        *("mobilenet_v3_small", "MobileNetv3-small"),
    ),
    image("mnasnet0_5", partial(mobile.mnasnet, 0.5), 2.22, 0.104, "mnasnet", "mnasnet05"),
    image(
        "efficientnet_b0",
        partial(mobile.efficientnet, mobile.B0, 32, 1280),
        5.29,
        0.4,
        "efficientnet",
        "efficientnet_b0",
    ),
    image("efficientnet_b4", _b4, 19.34, 4.394, "efficientnet", "efficientnet_b4", size=380),
    image(
        "efficientnet_v2_s",
        partial(mobile.efficientnet, mobile.V2_S, 24, 1280),
        21.46,
        8.44,
        "efficientnet",
        "efficientnet_v2_s",
        size=384,
    ),
    # published and built as deployed, every block one convolution
    image("mobileone_s0", partial(_mobileone, (0.75, 1, 1, 2)), 2.1, 0.275, "mobileone", "mobileone_s0"),
    image("mobileone_s1", partial(_mobileone, (1.5, 1.5, 2, 2.5)), 4.8, 0.825, "mobileone", "mobileone_s1"),
    image("mobileone_s2", partial(_mobileone, (1.5, 2, 2.5, 4)), 7.8, 1.299, "mobileone", "mobileone_s2"),
    image("mobileone_s3", partial(_mobileone, (2, 2.5, 3, 4)), 10.1, 1.896, "mobileone", "mobileone_s3"),
    image("mobileone_s4", partial(_mobileone, (3, 3.5, 3.5, 4), True), 14.8, 2.978, "mobileone", "mobileone_s4"),
    image("repvit_m0_9", partial(_repvit, (48, 96, 192, 384), (2, 2, 14, 2)), 5.1, 0.8, "repvit", "repvit_m0_9"),
    image("repvit_m1_0", partial(_repvit, (56, 112, 224, 448), (2, 2, 14, 2)), 6.8, 1.1, "repvit", "repvit_m1_0"),
    image("repvit_m1_1", partial(_repvit, (64, 128, 256, 512), (2, 2, 12, 2)), 8.2, 1.3, "repvit", "repvit_m1_1"),
    image("repvit_m1_5", partial(_repvit, (64, 128, 256, 512), (4, 4, 24, 4)), 14.0, 2.3, "repvit", "repvit_m1_5"),
    image("repvit_m2_3", partial(_repvit, (80, 160, 320, 640), (6, 6, 34, 2)), 22.9, 4.5, "repvit", "repvit_m2_3"),
)

_HYBRID = (
    image("beit_base", transformer.beit_base, 86.53, 17.58, "vit", "beit"),
    image("vit_b_16", hybrid.VisionTransformer, 86.57, 17.58, "vit", "vit"),
    image("convnext_tiny", transformer.convnext_tiny, 28.59, 4.47, "convnext", "convnext_tiny"),
    image("convnext_base", transformer.convnext_base, 88.59, 15.38, "convnext", "convnext_base"),
    image("efficientformer_l1", hybrid.efficientformer, 12.29, 1.3, "hybrid-vit", "efficientformer"),
    image("efficientvit_b1_224", _b1, 9.1, 0.52, "efficientvit", "efficientvit_b1"),
    image("efficientvit_b1_256", _b1, 9.1, 0.68, "efficientvit", "efficientvit_b1", size=256),
    image("efficientvit_b1_288", _b1, 9.1, 0.86, "efficientvit", "efficientvit_b1", size=288),
    image("efficientvit_b2_224", _b2, 24.33, 1.6, "efficientvit", "efficientvit_b2", "efficientvit_b2_cls"),
    image("efficientvit_b2_256", _b2, 24, 2.1, "efficientvit", "efficientvit_b2", size=256),
    image("efficientvit_b2_288", _b2, 24, 2.6, "efficientvit", "efficientvit_b2", size=288),
    image("efficientvit_b3_224", _b3, 49, 4.0, "efficientvit", "efficientvit_b3"),
    image("efficientvit_b3_256", _b3, 49, 5.2, "efficientvit", "efficientvit_b3", size=256),
    image("efficientvit_b3_288", _b3, 49, 6.5, "efficientvit", "efficientvit_b3", size=288),
    image("efficientvit_l2", _l2, 63.71, 6.97, "efficientvit", "efficientvit_l2_cls"),
    # the published 7.78 holds a second head, for distillation; the measured network has one
    image("levit_128s", transformer.levit_128s, 7.78 - 0.386, 0.31, "hybrid-vit", "levit"),
    # the tables say 224, the measured network takes 256
    image(
        "mobilevit_small", transformer.mobilevit_small, 5.58, None, "hybrid-vit", "mobile_vit", size=256, written=224
    ),
    image("mobilevit_v2_1_0", transformer.mobilevit_v2, 4.9, 1.84, "hybrid-vit", "MobileViTv2-1.0", size=256),
    # 8.4 is the paper's; the tables' 4.96 leaves out all that the recurrent layers compute
    image("sequencer2d_s", hybrid.sequencer2d, 27.65, 8.4, "mixer", "sequencer2d"),
)

# a hidden linear layer and one to the vocabulary for each of 384 places: the tables' figures hold the encoder alone,
# and what was measured fills in masked words
_WORDS, _ALBERT_WORDS = 384 * (768 * 768 + 768 * 30522) / 1e9, 384 * (768 * 128 + 128 * 30000) / 1e9
_LARGE = ("bert_large (SQuAD head)", "megatron bert_large (sparse QAT)")
_TEXT = (
    # the tables' figures of these four are for the whole batch
    text("bert_base_128", transformer.bert_squad, 110, 11.174, "bert_base (SQuAD head)", length=128),
    text("bert_base_384", transformer.bert_squad, 110, 35.333, "bert_base (SQuAD head)"),
    text("bert_large_128", transformer.bert_large_squad, 336, 39.46, *_LARGE, length=128),
    text("bert_large_384", transformer.bert_large_squad, 336, 123.212, *_LARGE),
    text("bert_base_words", transformer.bert_words, 110, 35.33 + _WORDS, "bert_base_uncased_hf"),
    text("distilbert_words", transformer.distilbert_words, 66, 17.67 + _WORDS, "distil_bert_base_uncased_hf"),
    # the published 11.8 holds a pooler, whose output this head does not read
    text("albert_base_words", transformer.albert_words, 11.8 - 0.59, 35.33 + _ALBERT_WORDS, "albert_base_v2_hf"),
    text("electra_base", transformer.electra_discriminator, 109, 35.33, "electra_bert_base_discrim_google"),
    text("nomic_embed", transformer.nomic, 137, 14.8, "nomic_embed_text", length=128),
)

# the published figures count the transposed convolution of the masks four times, once for each place of its kernel
_MASKS = 3 * 64 * 64 * 160 * 160 / 1e9
_DETECTORS = (
    image("yolov7_tiny", detectors.YoloV7Tiny, 6.2, 6.85, "yolo", "yolov7", size=640),
    image("yolov8n", yolo.yolov8n, 3.2, 4.35, "yolo", "yolov8_det", size=640),
    image("yolov8n_seg", partial(yolo.yolov8n, masks=True), 3.4, 6.3 - _MASKS, "yolo", "yolov8_seg", size=640),
    image("yolov10n", yolo.yolov10n, 2.3, 3.35, "yolo", "yolov10_det", size=640),
    image("yolo11n", yolo.yolo11n, 2.6, 3.25, "yolo", "yolov11_det", size=640),
    image("yolo11n_seg", partial(yolo.yolo11n, masks=True), 2.9, 5.2 - _MASKS, "yolo", "yolov11_seg", size=640),
    image("yolox_s", detectors.YoloX, 9.0, 13.4, "yolo", "yolox", size=640),
)

NETWORKS: dict[str, Network] = {
    network.name: network for network in (*_RESNETS, *_CLASSIC, *_MOBILE, *_HYBRID, *_TEXT, *_DETECTORS)
}

# names in the tables without a network here, and why
ABSENT: dict[str, str] = {
    "3d-unet-99": "no fixed input size",
    "CenterNet (ResNet34 backbone)": "the layers behind the backbone are not published",
    "bert-99": "no fixed input length",
    "mobile_bert_uncased_google": "the published parameters fit neither the encoder nor the measured network",
    "retinanet": "only bounds are published for it",
    "rnnt": "no fixed input length",
    "ssd-mobilenet": "only bounds are published for it",
    "ssd-resnet34": "only bounds are published for it",
    "yolov5": "the published figures are of the one with anchors, the measured weights of the one without",
}


def find(model: str, shape: str) -> Network | None:
    """The network that a row of the tables is about, by its model and its input shape, or None."""
    return next((n for n in NETWORKS.values() if model in n.stands_for and shape == n.input), None)
