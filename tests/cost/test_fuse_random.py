"""Random networks as kernels: counts that agree with independent ones, whatever joined what."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import prod

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from torch import fx, nn

from edgecompile.cost.fuse import workload
from edgecompile.cost.work import Work
from edgecompile.program import Program, op_name
from tests.networks.macs import macs
from tests.random_nets import Recipe, build, example, recipes

RANDOM = settings(max_examples=10, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
# what computes nothing by itself; a turn or a slice costs a copy only where no product takes it in
FREE = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "clone", "contiguous",
    "to", "_to_copy", "dropout", "alias", "detach", "detach_", "lift_fresh_copy", "sym_size", "permute", "transpose",
    "movedim", "chunk", "split", "slice", "select", "pad", "constant_pad_nd", "getitem", "_assert_tensor_metadata",
}  # fmt: skip
MADE = {"arange", "full", "zeros", "ones", "zeros_like", "ones_like", "full_like", "scalar_tensor", "empty", "new_ones"}


@lru_cache(maxsize=64)
def captured(recipe: Recipe) -> tuple[nn.Module, Program]:
    module = build(recipe)
    return module, Program.capture(module, (example(),))


def computing(program: Program) -> set[fx.Node]:
    """The calls that read, through any calls, an input and whose result is not made while building."""
    live = {n for n in program.graph.graph.nodes if n.op == "placeholder"}
    for node in program.graph.graph.nodes:
        made = op_name(node).partition(".")[0] in MADE
        if node.op == "call_function" and not made and any(n in live for n in node.all_input_nodes):
            live.add(node)
    return {n for n in live if n.op == "call_function"}


@given(recipe=recipes())
@RANDOM
def test_macs_of_random_networks(recipe: Recipe) -> None:
    module, program = captured(recipe)
    assert workload(program).macs == macs(module, (example(),))


@given(recipe=recipes())
@RANDOM
def test_every_call_that_computes_is_in_exactly_one_operator(recipe: Recipe) -> None:
    program = captured(recipe)[1]
    load = workload(program)
    nodes = [name for work in load.works for name in work.nodes]
    assert len(nodes) == len(set(nodes))
    live = computing(program)
    assert set(nodes) <= {n.name for n in live}
    assert {n.name for n in live if op_name(n).partition(".")[0] not in FREE} <= set(nodes)
    assert not load.unknown


@given(recipe=recipes())
@RANDOM
@pytest.mark.slow
def test_a_batch_is_the_sample_times_its_size(recipe: Recipe) -> None:
    program = captured(recipe)[1]
    static = workload(program.specialised(3))
    assert static.batch == 3
    grown = tuple(work.at(3) for work in workload(program).works)
    # constants that are made as large as the batch are weights of one sample; capture names some nodes otherwise
    assert [replace(w, weights=0, name="") for w in grown] == [replace(w, weights=0, name="") for w in static.works]


def most_alive(program: Program, works: tuple[Work, ...]) -> int:
    """The peak by playing the operators one after another; sizes are those of a fixed program."""
    graph = program.graph.graph
    step = {name: index for index, work in enumerate(works) for name in work.nodes}
    live, root = computing(program), {}
    for node in graph.nodes:
        if node.op == "placeholder" or node.name in step:
            root[node] = node
        elif node in live:  # reads the bytes of another
            root[node] = next(root[n] for n in node.all_input_nodes if n in root)
    last: dict[fx.Node, int] = {}
    for node in graph.nodes:
        for n in node.all_input_nodes:
            if node.name in step and n in root:
                last[root[n]] = max(last.get(root[n], 0), step[node.name])
    last |= {root[n]: len(works) for n in program.outputs() if n in root}
    born = {node: step.get(node.name, 0) for node in last}
    inside = {n for n in last if n.name in step and last[n] == step[n.name]}
    sizes = {n: prod(n.meta["val"].shape) for n in last if n not in inside}
    return max(sum(sizes[n] for n in sizes if born[n] <= now <= last[n]) for now in range(len(works)))


@given(recipe=recipes())
@RANDOM
def test_the_peak_is_that_of_playing_the_operators(recipe: Recipe) -> None:
    program = captured(recipe)[1].specialised(3)
    load = workload(program)
    if load.works:
        assert load.peak_elements == most_alive(program, load.works)
