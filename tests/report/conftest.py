"""One report with every field filled, as a build of three steps would write it."""

from __future__ import annotations

import math

import pytest

from edgecompile.report import (
    ArtifactFile,
    Budget,
    BuildRow,
    Decision,
    Figure,
    InputSpec,
    LayerDrift,
    Model,
    Ratio,
    Refusal,
    Report,
    Rounds,
    Score,
    StepRow,
    Verify,
)


def predicted(value_ms: float) -> Figure:
    return Figure(value_ms, round(value_ms * 0.85, 3), round(value_ms * 1.2, 3), "predicted")


@pytest.fixture
def report() -> Report:
    wave = [math.sin(12.9898 * index) for index in range(30)]
    return Report(
        edgecompile="0.1.0",
        model=Model("efficientnet_lite0", "ab" * 32, 4_652_008, 385_000_000),
        target="host",
        device="host-cpu",
        pipeline="fold_bn, fold_constants, quantize(weights=int8), prune(ratio=0.2)",
        exit_code=0,
        threads=2,
        inputs=(InputSpec("image", (1, 3, 224, 224), "float32"),),
        artifacts=(ArtifactFile("onnx", "host/model.onnx", "9f" * 32, 4_912_345),),
        latency_ms=Figure(4.1, 4.06, 4.14),
        teacher_latency_ms=Figure(8.92, 8.81, 9.03),
        latency_ratio=Ratio(0.4596, 0.4531, 0.4662),
        rounds=Rounds(tuple(8.92 + 0.1 * w for w in wave), tuple(4.1 + 0.06 * w for w in wave)),
        size_bytes=4_912_345,
        teacher_size_bytes=18_612_345,
        score=Score("agreement", 100.0, 98.67, 96.6, 99.6, False, "measured", 300, "crops of 12 photographs"),
        budgets=(
            Budget("latency", "60%", 5.352, "ms", 4.1, "pass", 4.06, 4.14),
            Budget("drop", "2pp", 2.0, "pp", 1.33, "pass", 0.4, 3.4),
            Budget("size", "5MB", 5_000_000, "bytes", 4_912_345, "pass"),
        ),
        steps=(
            StepRow("fold_bn", True, "", ("fold_bn", "fold_constants"), 1.2, 320, predicted(9.4),
                    predicted(8.3), 18_612_345, 18_390_000, 100.0, 100.0, {"folded": 49}, ("one note",)),
            StepRow("quantize", True, "", (), 31.4, 420, predicted(8.3),
                    predicted(4.0), 18_390_000, 4_912_345, 100.0, 98.67),
            StepRow("prune", False, "no gain on host: 3.98 ms against 4.00 ms, and 3.2 pp lost", (), 12.0,
                    420, predicted(4.0), predicted(3.98), 4_912_345, 4_100_000, 98.67, 95.4),
        ),
        verify=Verify(300, 1.84, 0.112, 27.3, "blocks.2.project",
                      tuple(LayerDrift(f"blocks.{i}.project", 45.0 - 6 * i, 0.01 * i) for i in range(4))),
        refusals=(Refusal("EC-OP-001", "head.topk", "top-k over a dynamic axis"),),
        decisions=(Decision("runtime", "onnxruntime", "4.10 ms against 5.02 ms of TVM", {"tvm_ms": 5.02}),),
        notes=("calibrated on 100 crops of 12 photographs",),
        preprocessing={"size": 224, "crop": "center", "mean": [0.498, 0.498, 0.498]},
        golden="data",
        machine={"processor": "Xeon 2.20 GHz", "cores": 2, "features": ["avx2", "fma"]},
        versions={"torch": "2.13.0", "onnxruntime": "1.32.0"},
        builds=(BuildRow("tvm", False, 0, "tvm/report.json", Figure(5.02, 4.9, 5.1), 98.5, 5_000_000),),
    )  # fmt: skip
