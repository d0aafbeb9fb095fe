"""Losses of distillation, one file a family; `LOSSES` says where each lives."""

from __future__ import annotations

LOSSES: dict[str, str] = {
    "kl": "edgecompile.passes.losses.outputs:Kl",
    "bce": "edgecompile.passes.losses.outputs:Bce",
    "outputs": "edgecompile.passes.losses.outputs:Outputs",
    "labels": "edgecompile.passes.losses.outputs:Labels",
    "mse": "edgecompile.passes.losses.features:Mse",
    "l1": "edgecompile.passes.losses.features:L1",
    "cosine": "edgecompile.passes.losses.features:Cosine",
    "energy": "edgecompile.passes.losses.features:Energy",
    "samples": "edgecompile.passes.losses.relations:Samples",
    "positions": "edgecompile.passes.losses.relations:Positions",
    "flow": "edgecompile.passes.losses.relations:Flow",
    "attention": "edgecompile.passes.losses.attention:Attention",
}
