"""The ONNX target: same bytes, names, refusals that hold, outputs equal to eager, integer kernels for each rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompile.data import Arrays
from edgecompile.errors import TargetError
from edgecompile.pass_manager import Context, PassManager, parse
from edgecompile.passes import PASSES
from edgecompile.program import Program, op_name
from edgecompile.target import loaded
from edgecompile.targets.onnx import Onnx, Session, integer_kernels


class Small(nn.Module):
    """A forward function over layers."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, one in layers.items():
            self.add_module(name, one)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def captured(function: Callable[..., Any], *shape: int, **layers: nn.Module) -> Program:
    torch.manual_seed(0)
    for one in layers.values():
        for value in one.parameters():
            nn.init.uniform_(value, -0.5, 0.5)
    example = noise(2, *shape)
    return Program.capture(Small(function, **layers).eval(), (example,))


def emitted(program: Program, folder: Path, batch: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    return Onnx().emit(program.specialised(batch), folder, {"pipeline": "none"}).path


def attention(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))  # type: ignore[operator]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


IMAGE, TOKENS = (4, 8, 8), (6, 8)
ZOO: dict[str, Callable[[], Program]] = {
    "conv": lambda: captured(lambda m, x: m.c(x).relu(), *IMAGE, c=nn.Conv2d(4, 6, 3, padding=1)),
    "squeeze": lambda: captured(lambda m, x: x.mean((2, 3), keepdim=True).squeeze((2, 3)), *IMAGE),
    "lstm": lambda: captured(lambda m, x: m.r(x)[0], *TOKENS, r=nn.LSTM(8, 5, batch_first=True)),
    "gru": lambda: captured(lambda m, x: m.r(x)[0], *TOKENS, r=nn.GRU(8, 5, batch_first=True)),
    "attention": lambda: captured(attention, *TOKENS, qkv=nn.Linear(8, 24)),
    "one_head": lambda: captured(lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True), *TOKENS),
    "layer_norm": lambda: captured(lambda m, x: F.gelu(m.n(x)), *TOKENS, n=nn.LayerNorm(8)),
    "group_norm": lambda: captured(lambda m, x: F.silu(m.n(x)), *IMAGE, n=nn.GroupNorm(2, 4)),
    "embedding": lambda: captured(lambda m, x: m.e((x > 0).long()), *TOKENS, e=nn.Embedding(3, 4)),
    "up": lambda: captured(lambda m, x: m.c(x), *IMAGE, c=nn.ConvTranspose2d(4, 3, 2, stride=2)),
    "interpolate": lambda: captured(lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), *IMAGE),
    "pools": lambda: captured(lambda m, x: F.avg_pool2d(F.max_pool2d(x, 2), 2), *IMAGE),
    "softmax_topk": lambda: captured(lambda m, x: x.softmax(-1).topk(2).values, *TOKENS),
    "einsum": lambda: captured(lambda m, x: torch.einsum("bij,bkj->bik", x, x), *TOKENS),
    "pixel_shuffle": lambda: captured(lambda m, x: F.pixel_shuffle(F.hardswish(x), 2), *IMAGE),
    "where": lambda: captured(lambda m, x: torch.where(x > 0, x.exp(), x.sin()).cumsum(1), *TOKENS),
    "adaptive": lambda: captured(lambda m, x: F.adaptive_avg_pool2d(x, (3, 5)), *IMAGE),
    "adaptive_even": lambda: captured(lambda m, x: F.adaptive_avg_pool2d(x, (4, 2)), *IMAGE),
    "adaptive_1d": lambda: captured(lambda m, x: F.adaptive_avg_pool1d(x, 3), *TOKENS),
    "norm": lambda: captured(lambda m, x: m.n(x), *IMAGE, n=nn.BatchNorm2d(4)),
    "airy": lambda: captured(lambda m, x: torch.special.airy_ai(x), *TOKENS),
    "bessel": lambda: captured(lambda m, x: torch.special.bessel_j0(x.relu()), *TOKENS),
    "lgamma": lambda: captured(lambda m, x: torch.lgamma(x.abs() + 1), *TOKENS),
}


@pytest.mark.parametrize("name", list(ZOO))
def test_refuse_is_empty_exactly_where_the_artifact_works_and_equals_eager(name: str, tmp_path: Path) -> None:
    program = ZOO[name]()
    reasons = Onnx().refuse(program)
    assert bool(reasons) == (name in ("airy", "bessel", "lgamma"))
    if reasons:
        with pytest.raises(TargetError, match=r"^onnx: torch [\d.]+\S* exporter failed at node \w+: [^\n]+$"):
            emitted(program, tmp_path)
        return
    for batch in (1, 4):
        x = noise(batch, *program.inputs[0].shape[1:], seed=3)
        found = Session(emitted(program, tmp_path / str(batch), batch))((x,))
        for one, wanted in zip(found, program(x), strict=True):
            assert one.shape == wanted.shape
            assert (one - wanted).abs().max() <= 1e-4 * wanted.abs().max().clamp_min(1)


def test_every_unsupported_operator_is_listed_with_its_layer() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.modified_bessel_k0(x)

    program = captured(
        lambda m, x: torch.special.airy_ai(m.odd(m.c(x)).relu()), *IMAGE, c=nn.Conv2d(4, 4, 1), odd=Odd()
    )
    assert Onnx().refuse(program) == [
        "odd: special_modified_bessel_k0 (special_modified_bessel_k0) has no ONNX form",
        f"{program.outputs()[0].meta['custom']['origin']}: special_airy_ai (special_airy_ai) has no ONNX form",
    ]


def test_the_same_program_gives_the_same_bytes_and_tells_nothing_of_this_machine(tmp_path: Path) -> None:
    first, again = (emitted(ZOO[n](), tmp_path / f"{n}{i}").read_bytes() for n in ["attention"] for i in (0, 1))
    assert first == again
    assert b"site-packages" not in first
    assert str(Path(__file__).parent).encode() not in first
    assert not re.search(rb"/(home|root|usr|tmp|work|opt)/\w", first)
    model = onnx.load_from_string(first)
    assert {p.key: p.value for p in model.metadata_props} == {"pipeline": "none"}
    assert (model.producer_name, model.doc_string) == ("edgecompile", "")


def names(program: Program, folder: Path) -> tuple[list[str], tuple[Tensor, ...], tuple[Tensor, ...]]:
    path = emitted(program, folder)
    x = noise(1, *program.inputs[0].shape[1:], seed=3)
    return [o.name for o in onnx.load(path).graph.output], Session(path)((x,)), program(x)


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda m, x: {"relu": m.c(x), "conv2d": m.c(x).relu().sigmoid()}, ["relu", "conv2d"]),
        (lambda m, x: {"embedding": m.e((x > 0).long()) + 1, "x_": x * 2}, ["embedding", "x_"]),
        (lambda m, x: (lambda y: {"one": y, "two": y})(m.c(x)), ["one", "two"]),
        (lambda m, x: {"same": x, "sum": x + 1}, ["same", "sum"]),
        (lambda m, x: (x, x, m.c(x)), ["output_0", "output_1", "output_2"]),
    ],
    ids=["inner_names", "embedding", "twice", "input", "input_twice"],
)
def test_outputs_keep_their_names(function: Callable[..., Any], wanted: list[str], tmp_path: Path) -> None:
    program = captured(function, 4, c=nn.Linear(4, 4), e=nn.Embedding(2, 3))
    found, values, expected = names(program, tmp_path)
    assert found == wanted == list(program.output_names)
    for value, right in zip(values, expected, strict=True):
        assert torch.allclose(value, right, atol=1e-5)


def test_tap_gives_inner_values_of_those_that_are_there(tmp_path: Path) -> None:
    program = captured(lambda m, x: m.b(m.a(x).relu()).sigmoid(), 4, a=nn.Linear(4, 5), b=nn.Linear(5, 3))
    target = Onnx()
    artifact = target.emit(program.specialised(1), tmp_path, {})
    x = noise(1, 4, seed=3)
    found = target.tap(artifact, ["relu", "linear_1", "no_such_node", program.outputs()[0].name], (x,))
    assert {"relu", "linear_1"} <= set(found) <= {"relu", "linear_1", program.outputs()[0].name}
    values = {k: v.detach() for k, v in program.weights().items()}
    relu = (x @ values["a.weight"].T + values["a.bias"]).relu()
    assert torch.allclose(torch.from_numpy(found["relu"]), relu, atol=1e-5)


def conv(m: nn.Module, x: Tensor) -> Tensor:
    return m.c(x)  # type: ignore[operator, no-any-return]


aten = torch.ops.aten
RULES: dict[Any, tuple[Callable[[], Program], dict[str, int], tuple[str, ...]]] = {
    aten.conv1d.default: (
        lambda: captured(lambda m, x: m.c(x).relu(), 4, 16, c=nn.Conv1d(4, 8, 3)),
        {"QLinearConv": 1},
        ("Conv", "Relu"),
    ),
    aten.conv2d.default: (
        lambda: captured(lambda m, x: m.c(x).relu(), *IMAGE, c=nn.Conv2d(4, 8, 3)),
        {"QLinearConv": 1},
        ("Conv", "Relu"),
    ),
    aten.linear.default: (lambda: captured(conv, 8, c=nn.Linear(8, 4)), {"QGemm": 1}, ("Gemm", "MatMul")),
    aten.add.Tensor: (
        lambda: captured(lambda m, x: m.c(x) + m.d(x), *IMAGE, c=nn.Conv2d(4, 8, 1), d=nn.Conv2d(4, 8, 1)),
        {"QLinearConv": 2, "QLinearAdd": 1},
        ("Conv", "Add"),
    ),
    aten.max_pool2d.default: (
        lambda: captured(
            lambda m, x: m.d(F.max_pool2d(m.c(x), 2)), *IMAGE, c=nn.Conv2d(4, 16, 1), d=nn.Conv2d(16, 4, 1)
        ),
        {"QLinearConv": 2, "QuantizeLinear": 1},
        ("Conv",),
    ),
    aten.adaptive_avg_pool2d.default: (
        lambda: captured(lambda m, x: F.adaptive_avg_pool2d(m.c(x), 1), *IMAGE, c=nn.Conv2d(4, 8, 1)),
        {"QLinearConv": 1, "QLinearGlobalAveragePool": 1},
        ("Conv", "GlobalAveragePool", "ReduceMean"),
    ),
}
SHARED = {
    aten.flatten.using_ints: lambda x: x.flatten(1),
    aten.reshape.default: lambda x: x.reshape(-1, 8 * 64),
    aten.view.default: lambda x: x.view(-1, 8 * 64),
    aten.permute.default: lambda x: x.permute(0, 2, 3, 1).flatten(1),
    aten.transpose.int: lambda x: x.transpose(1, 2).flatten(1),
    aten.pad.default: lambda x: F.pad(x, (0, 1, 0, 1)).flatten(1)[:, : 8 * 64],
}


@pytest.mark.parametrize("rule", sorted(Onnx().quantizable(), key=str), ids=str)
def test_each_rule_of_the_table_runs_in_integers(rule: Any, tmp_path: Path) -> None:
    if rule in RULES:
        make, wanted, gone = RULES[rule]
        program = make()
    elif rule in SHARED and rule is not aten.pad.default:
        layers = {"c": nn.Conv2d(4, 8, 1), "l": nn.Linear(8 * 64, 4)}
        program = captured(lambda m, x: m.l(SHARED[rule](m.c(x))), *IMAGE, **layers)
        wanted, gone = {"QLinearConv": 1, "QGemm": 1, "QuantizeLinear": 1}, ("Conv", "Gemm", "MatMul")
    else:
        layers = {"c": nn.Conv2d(4, 8, 1), "l": nn.Conv2d(8, 4, 3)}
        pad = F.pad if rule is aten.pad.default else aten.constant_pad_nd
        program = captured(lambda m, x: m.l(pad(m.c(x), (0, 1, 0, 1))), *IMAGE, **layers)
        wanted, gone = {"QLinearConv": 2, "QuantizeLinear": 1}, ("Conv", "Pad")
    assert rule in {n.target for n in program.graph.graph.nodes}, [op_name(n) for n in program.graph.graph.nodes]
    data = Arrays("noise", (noise(16, *program.inputs[0].shape[1:], seed=2),))
    context = Context(program, target=Onnx(), calib=data)
    result, _ = PassManager(parse("quantize", PASSES)).run(program, context)
    kernels = integer_kernels(emitted(result, tmp_path))
    assert {k: kernels.get(k) for k in wanted} == wanted, kernels
    assert not set(gone) & set(kernels), kernels
    x = noise(1, *program.inputs[0].shape[1:], seed=3)
    found, right = Session(tmp_path / "model.onnx")((x,))[0], program(x)[0]
    assert (found - right).square().sum() < 0.01 * right.square().sum()


def test_what_another_device_computes_is_asked_of_no_kernel_of_this_one(tmp_path: Path) -> None:
    """On x86 without VNNI the sum below saturates, in ONNX Runtime's kernel and on no phone."""
    layer = nn.Conv2d(64, 8, 1)
    program = captured(lambda m, x: m.c(x.relu()), 64, 4, 4, c=layer)
    weight = next(w for name, w in program.weights().items() if w.dim() == 4)
    weight.data.fill_(1.0)
    data = Arrays("bright", (noise(16, 64, 4, 4).abs() + 3,))
    context = Context(program, target=Onnx(), calib=data)
    result, _ = PassManager(parse("quantize(reduce_range=no)", PASSES)).run(program, context)
    x = noise(1, 64, 4, 4, seed=3).abs() + 3
    artifact = Onnx().emit(result.specialised(1), tmp_path, {})
    there, stands_in = loaded(Onnx(), artifact, 1, here=False)
    assert stands_in
    assert there is not None
    right = program(x)[0]
    assert (there((x,))[0] - right).abs().max() < 0.02 * right.abs().max()
    here, stands_in = loaded(Onnx(), artifact, 1, here=True)
    assert isinstance(here, Session)
    assert not stands_in


@pytest.mark.parametrize("activations", ["u8", "s8"])
def test_the_kernels_of_this_cpu_do_not_saturate_at_the_range_that_is_chosen_for_it(
    tmp_path: Path, activations: str
) -> None:
    program = captured(lambda m, x: m.c(x.relu()), 64, 4, 4, c=nn.Conv2d(64, 8, 1))
    next(w for w in program.weights().values() if w.dim() == 4).data.fill_(1.0)
    data = Arrays("bright", (noise(16, 64, 4, 4).abs() + 3,))
    context = Context(program, target=Onnx(), calib=data)
    passes = parse(f"quantize(activations={activations}, calibration=mse)", PASSES)
    result, _ = PassManager(passes).run(program, context)
    artifact = Onnx().emit(result.specialised(1), tmp_path, {})
    x = noise(1, 64, 4, 4, seed=3).abs() + 3
    wanted = Onnx().reference(artifact)((x,))[0]
    assert (Onnx().load(artifact)((x,))[0] - wanted).abs().max() < 0.02 * wanted.abs().max()
