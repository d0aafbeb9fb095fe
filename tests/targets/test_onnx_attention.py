"""Masked attention in the emitted file equals torch's, for every row that sees something."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program
from edgecompile.targets.onnx import Onnx


class Attention(nn.Module):
    """Two heads over a mask of positions, then a residual layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (t.view(batch, length, 2, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        seen = mask.bool()[:, None, None, :].expand(batch, 1, length, length)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.norm(x + out.transpose(1, 2).reshape(batch, length, 8))


@pytest.mark.parametrize("seen", [6, 3, 1])
def test_masked_attention_equals_eager(seen: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attention().eval()
    x, mask = torch.randn(1, 6, 8), (torch.arange(6) < seen).long()[None]
    program = Program.capture(model, {"x": torch.randn(2, 6, 8), "mask": torch.ones(2, 6, dtype=torch.long)})
    target = Onnx()
    artifact = target.emit(program.specialised(1), tmp_path, {})
    (found,) = target.load(artifact)((x, mask))
    assert torch.allclose(found, program(x, mask)[0], atol=1e-5)
    assert "attention mask hides everything" in artifact.notes[0]
    kinds = {n.op_type for n in onnx.load(artifact.path).graph.node}
    assert "Sum" in kinds


def test_a_constant_mask_that_leaves_every_row_something_needs_no_note(tmp_path: Path) -> None:
    class Causal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen = torch.ones(6, 6, dtype=torch.bool).tril()
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=seen)

    program = Program.capture(Causal().eval(), (torch.randn(2, 6, 8),))
    program, _ = PassManager(parse("fold_constants", PASSES)).run(program, Context(program))
    assert Onnx().emit(program.specialised(1), tmp_path, {}).notes == ()
