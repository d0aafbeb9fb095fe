"""Multiply-accumulates and parameters of a module."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _recurrent(x: Any, from_input: Any, from_state: Any, *_: Any, **__: Any) -> int:
    """One direction of one layer; `x` is [steps, batch, channels]."""
    return 2 * x[0] * x[1] * (prod(from_input) + prod(from_state))


# kernels of the processor that the counter does not know
_KNOWN = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
}


def macs(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Multiply-accumulates of one sample of the batch, counted without arithmetic, on real and on meta tensors.

    Convolutions, transposed ones too, linear and recurrent layers and matrix products count, the two of attention among
    them: the published figures of BERT and ViT hold these. Norms, activations, pooling, sums and biases do not count.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_KNOWN)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():

        def fake(x: Tensor) -> Tensor:
            return FakeTensor(mode, x.detach().to("meta"), torch.device("cpu"))

        state = {name: fake(x) for name, x in (*module.named_parameters(), *module.named_buffers())}
        with counter:
            torch.func.functional_call(module, state, tuple(fake(x) for x in inputs))
    return int(counter.get_total_flops()) // 2 // len(inputs[0])


def parameters(module: nn.Module) -> int:
    """Numbers in all parameters, a shared one once; running statistics are none."""
    return sum(p.numel() for p in module.parameters())
