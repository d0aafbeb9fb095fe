"""The names of torchao that passes need, imported without its chatter on the user's terminal."""

from __future__ import annotations

from edgecompile.silence import silenced

with silenced("torchao", "torch.utils._pytree"):  # it logs each native library it has no use for here
    from torchao.quantization.pt2e import (
        MinMaxObserver,
        PerChannelMinMaxObserver,
        UniformQuantizationObserverBase,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

__all__ = [
    "MinMaxObserver",
    "PerChannelMinMaxObserver",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "Quantizer",
    "SharedQuantizationSpec",
    "UniformQuantizationObserverBase",
    "convert_pt2e",
    "prepare_pt2e",
]
