"""In-place operators leave a graph without changing what it computes; batch norm comes back whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F

from edgecompile.functional import first_write, functional, mutates, number_paddings, restore_batch_norm


class Writes(nn.Module):
    """Each way to write: on a value that is read before and after, through a slice, a view, behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        z = self.act(y) + y
        z[:, 1] = 2.0
        z.flatten(1).mul_(3)
        w = F.dropout(z, 0.5, False)
        w += 1
        return z + self.norm(w)


@pytest.fixture
def exported() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return export(Writes().eval(), (torch.randn(2, 3, 5, 5),), dynamic_shapes=({0: Dim("batch", min=1)},))


def test_no_write_stays_and_outputs_are_equal(exported: torch.export.ExportedProgram) -> None:
    assert first_write(exported.graph) is not None
    module = functional(exported).module(check_guards=False)
    restore_batch_norm(module)
    names = [str(n.target) for n in module.graph.nodes]
    assert first_write(module.graph) is None
    assert names.count("aten.batch_norm.default") == 2
    assert not [n for n in names if "native" in n or "getitem" in n]
    for batch in (1, 3):
        x = torch.randn(batch, 3, 5, 5)
        torch.testing.assert_close(module(x), exported.module()(x))


def test_a_program_without_writes_is_returned_as_it_is() -> None:
    program = export(nn.Linear(3, 3), (torch.zeros(2, 3),))
    assert functional(program) is program


def test_dropout_that_is_off_and_detach_write_nothing() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    aten = torch.ops.aten
    calls = [
        graph.call_function(target, args)
        for target, args in [
            (aten.dropout_.default, (x, 0.5, False)),
            (aten.detach_.default, (x,)),
            (aten.dropout_.default, (x, 0.5, True)),
            (aten.relu_.default, (x,)),
            (aten.relu.default, (x,)),
        ]
    ]
    assert [mutates(n) for n in calls] == [False, False, True, True, False]


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@settings(max_examples=25)
@given(
    st.integers(1, 3).flatmap(lambda rank: st.tuples(*[st.tuples(st.integers(1, 4), st.integers(1, 3))] * rank)),
    st.sampled_from(["same", "valid"]),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_paddings_in_words_become_numbers(
    axes: tuple[tuple[int, int], ...], padding: str, groups: int, bias: bool
) -> None:
    """Kernels and dilations of every parity; the sizes of the result, and the source of its nodes, are as before."""
    kernel, dilation = (tuple(a[i] for a in axes) for i in (0, 1))
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(axes) - 1]
    module = nn.Sequential(layer(2, 4, kernel, padding=padding, dilation=dilation, groups=groups, bias=bias)).eval()
    x = torch.randn(2, 2, *(10 + a for a in range(len(axes))))  # the widest kernel spans ten
    exported = export(module, (x,)).module()
    assert isinstance(exported, torch.fx.GraphModule)
    number_paddings(exported)
    targets = [n.target for n in exported.graph.nodes if "conv" in str(n.target)]
    assert [str(t) for t in targets] == [f"aten.conv{len(axes)}d.default"]
    with torch.no_grad():
        torch.testing.assert_close(exported(x), module(x), rtol=0, atol=1e-6)
    for node in exported.graph.nodes:
        if node.op == "call_function" and "val" in node.meta:
            assert node.meta["nn_module_stack"]
