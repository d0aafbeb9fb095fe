"""The passes by name: `PASSES` says where each lives, `EXACT` is the order in which the exact ones run by default."""

from __future__ import annotations

PASSES: dict[str, str] = {
    "remove_identity": "edgecompile.passes.remove_identity:RemoveIdentity",
    "fold_constants": "edgecompile.passes.fold_constants:FoldConstants",
    "remove_branches": "edgecompile.passes.remove_branches:RemoveBranches",
    "common_subexpressions": "edgecompile.passes.common_subexpressions:CommonSubexpressions",
    "cancel_transposes": "edgecompile.passes.cancel_transposes:CancelTransposes",
    "fold_pad": "edgecompile.passes.fold_pad:FoldPad",
    "fold_bn": "edgecompile.passes.fold_bn:FoldBn",
    "fold_scale": "edgecompile.passes.fold_scale:FoldScale",
    "fold_lora": "edgecompile.passes.fold_lora:FoldLora",
    "reparameterize": "edgecompile.passes.reparameterize:Reparameterize",
    "merge_linear": "edgecompile.passes.merge_linear:MergeLinear",
    "student": "edgecompile.passes.student:Student",
    "drop_layers": "edgecompile.passes.drop_layers:DropLayers",
    "l0": "edgecompile.passes.l0:L0",
    "merge_layers": "edgecompile.passes.merge_layers:MergeLayers",
    "exits": "edgecompile.passes.exits:Exits",
    "fit": "edgecompile.passes.fit:Fit",
    "prune": "edgecompile.passes.prune:Prune",
    "distill": "edgecompile.passes.distill:Distill",
    "quantize": "edgecompile.passes.quantize:Quantize",
    "compress_weights": "edgecompile.passes.compress_weights:CompressWeights",
    "palettize": "edgecompile.passes.palettize:Palettize",
}

EXACT: tuple[str, ...] = (
    "remove_identity",
    "fold_constants",
    "remove_branches",
    "common_subexpressions",
    "cancel_transposes",
    "fold_bn",
    "fold_pad",
    "fold_scale",
    "fold_lora",
    "reparameterize",
    "merge_linear",
)
