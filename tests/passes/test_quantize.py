"""INT8: the graph that each calibration leaves, weights, overrides, the search for float layers, what is deployed."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from edgecompile.data import Arrays
from edgecompile.errors import PassError
from edgecompile.pass_manager import Context, PassManager, Step, parse, show
from edgecompile.passes import EXACT, PASSES
from edgecompile.program import Program, op_name
from edgecompile.rewrite import layer
from edgecompile.target import Target
from edgecompile.targets.onnx import Onnx, Session, integer_kernels
from edgecompile.targets.tvm import Tvm
from tests.random_nets import Recipe, build, example, randomise, recipes

CALIBRATIONS = ["min_max", "percentile", "mse", "entropy"]


class Cnn(nn.Module):
    """Convolutions with and without bias, a residual sum, pools and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.left = nn.Conv2d(16, 16, 3, padding=1)
        self.right = nn.Conv2d(16, 16, 1, bias=False)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = F.max_pool2d(torch.relu(self.left(y) + self.right(y)), 2)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Transformer(nn.Module):
    """One encoder block."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.qkv(self.first(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


def seeded(model: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return model().eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CNN = Program.capture(seeded(Cnn), (noise(2, 3, 8, 8),))
TRANSFORMER = Program.capture(seeded(Transformer), (noise(2, 6, 16),))
DATA = {id(CNN): noise(40, 3, 8, 8, seed=2), id(TRANSFORMER): noise(40, 6, 16, seed=2)}


def quantized(
    options: str = "", program: Program = CNN, data: Tensor | None = None, **context: object
) -> tuple[Program, Step]:
    """The program after `quantize(options)`, through the pass manager, and its step."""
    calib = Arrays("noise", (DATA[id(program)] if data is None else data,), batch_size=16)
    ctx = Context(program, **{"target": Onnx(), "calib": calib, **context})  # type: ignore[arg-type]
    result, steps = PassManager(parse(f"quantize({options})", PASSES)).run(program, ctx)
    return result, steps[0]


def operators(program: Program) -> Counter[str]:
    return Counter(op_name(n) for n in program.graph.graph.nodes if n.op == "call_function")


def snr_db(wanted: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10(wanted.square().sum() / (wanted - found).square().sum()).detach())


def integers(program: Program) -> dict[str, Tensor]:
    return {n.removesuffix("_int8"): w for n, w in program.weights().items() if n.endswith("_int8")}


def float_layers(program: Program) -> set[str]:
    """Layers whose weight is read in float."""
    nodes = [n for n in program.graph.graph.nodes if op_name(n) in ("conv2d", "linear")]
    return {layer(n) for n in nodes if isinstance(n.args[1], fx.Node) and n.args[1].op == "get_attr"}


def emitted(program: Program, folder: Path, batch: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    return Onnx().emit(program.specialised(batch), folder, {}).path


PROGRAMS = {"cnn": CNN, "transformer": TRANSFORMER}


@lru_cache
def deployed(name: str, calibration: str) -> tuple[Program, dict[str, int], Tensor]:
    """The quantized program, the kernels of its artifact, and what that computes on four samples."""
    program = PROGRAMS[name]
    result, _ = quantized(f"calibration={calibration}, reduce_range=yes, smooth=False", program)
    with TemporaryDirectory() as folder:
        path = emitted(result, Path(folder), 4)
        return result, integer_kernels(path), Session(path)((DATA[id(program)][:4],))[0]


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_calibration_leaves_the_same_clean_graph(calibration: str, name: str) -> None:
    program = PROGRAMS[name]
    reference, reference_kernels, _ = deployed(name, "min_max")
    result, kernels, _ = deployed(name, calibration)
    assert operators(result) == operators(reference)
    assert {n: (w.shape, w.dtype) for n, w in result.weights().items()} == {
        n: (w.shape, w.dtype) for n, w in reference.weights().items()
    }
    assert result.origin == reference.origin
    assert set(result.origin.values()) <= set(program.weights())
    assert integers(result)
    for weight, stored in integers(result).items():
        assert result.origin[f"{weight}_int8"] == weight
        assert stored.dtype == torch.int8
        scale = result.weights()[f"{weight}_scale"].reshape(-1, *[1] * (stored.dim() - 1))
        assert torch.allclose(stored * scale, program.weights()[weight], atol=0.01)
    for node in result.graph.graph.nodes:
        if op_name(node) == "quantized_decomposed.quantize_per_tensor":
            assert isinstance(node.args[0], fx.Node)
            assert node.args[0].op != "get_attr"  # weights are stored as integers
            same = [u for u in node.args[0].users if u.target is node.target]
            assert same == [node]  # one tensor is rounded once
    assert kernels == reference_kernels
    assert {"cnn": ("QLinearConv", 3), "transformer": ("QGemm", 4)}[name] in kernels.items()
    x = DATA[id(program)]
    assert snr_db(program(x)[0], result(x)[0]) > 28


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_onnx_runtime_computes_what_the_graph_says(calibration: str, name: str) -> None:
    result, _, found = deployed(name, calibration)
    assert snr_db(result(DATA[id(PROGRAMS[name])][:4])[0], found) > 30


def test_batch_stays_dynamic_and_interface_and_input_program_are_kept() -> None:
    before = str(CNN)
    for calibration in ("min_max", "entropy"):
        result, step = quantized(f"calibration={calibration}")
        assert result.interface == CNN.interface
        assert result.batch is None
        assert result(noise(5, 3, 8, 8))[0].shape == (5, 8)
        assert result.dynamic_shapes == CNN.dynamic_shapes
        assert step.stats["quantized_layers"] == 4
        assert step.stats["calibration_samples"] == 40
    assert str(CNN) == before


@pytest.mark.slow
def test_same_data_same_program() -> None:
    for calibration in ("min_max", "mse"):
        first, again = (quantized(f"calibration={calibration}")[0] for _ in range(2))
        assert str(first) == str(again)
        assert all(torch.equal(w, again.weights()[n]) for n, w in first.weights().items())


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])
@given(recipe=recipes(2), calibration=st.sampled_from(CALIBRATIONS))
@pytest.mark.slow
def test_random_networks_keep_their_interface_and_are_quantized_once(recipe: Recipe, calibration: str) -> None:
    program = Program.capture(build(recipe), (example(),))
    program, _ = PassManager(parse(", ".join(EXACT), PASSES)).run(program, Context(program))
    data = torch.cat([example(8, seed) for seed in range(3)])
    result, _ = quantized(f"calibration={calibration}", program, data)
    assert result.interface == program.interface
    assert result.batch is None
    assert integers(result)
    with pytest.raises(PassError, match="no layer of this program has an integer kernel"):
        quantized("", result, data)


def pair_sums(weights: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """What x86 without VNNI adds (pmaddubsw): two u8 x s8 products to 16 bits, with saturation."""
    products = activations.astype(np.int64) * weights.astype(np.int64)
    return np.clip(products[..., 0::2] + products[..., 1::2], -(2**15), 2**15 - 1)


@pytest.mark.parametrize("calibration", ["min_max", "mse"])
@pytest.mark.parametrize("reduce_range", ["yes", "no"])
def test_reduced_weights_cannot_saturate_16_bit_pair_sums(reduce_range: str, calibration: str) -> None:
    program = Program.capture(seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU())), (noise(2, 2, 4, 4),))
    with torch.no_grad():
        program.weights()["0.weight"].copy_(torch.tensor([[1.0, 1], [1, -1], [-1, -1], [0.3, 1]])[..., None, None])
    result, step = quantized(f"calibration={calibration}, reduce_range={reduce_range}", program, noise(16, 2, 4, 4))
    (stored,) = (w.flatten(1).numpy() for w in integers(result).values())
    extreme = np.full(2, 255)
    exact = (stored.astype(np.int64) * extreme).sum(-1, keepdims=True)
    saturated = not np.array_equal(pair_sums(stored, extreme), exact)
    assert saturated == (reduce_range == "no")
    assert (np.abs(stored).max() <= 64) == (reduce_range == "yes")
    assert any("at reduced range" in n for n in step.notes) == (reduce_range == "yes")


@pytest.mark.parametrize("flags", [["avx2"], ["avx2", "avx512_vnni"]])
@pytest.mark.parametrize("target", [Onnx(), Tvm()])
def test_the_range_is_reduced_for_kernels_that_saturate_on_this_cpu(
    flags: list[str], target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecompile.measure.machine", lambda: {"flags": flags})
    _, step = quantized(target=target)
    reduced = any("at reduced range" in note for note in step.notes)
    assert reduced == (isinstance(target, Onnx) and flags == ["avx2"])


def test_reduced_weights_are_the_nearest_seven_bit_integers_of_the_float_ones() -> None:
    result, _ = quantized("reduce_range=yes")
    for name, stored in integers(result).items():
        wanted = CNN.weights()[name].detach()
        scale = wanted.abs().flatten(1).amax(1).reshape(-1, *[1] * (wanted.dim() - 1)) / 63
        assert (stored * scale - wanted).abs().max() <= scale.max() / 2 * 1.001
        assert stored.abs().flatten(1).amax(1).eq(63).all()


@pytest.mark.parametrize("calibration", ["min_max", "mse"])
def test_weights_that_are_nowhere_negative_have_no_zero_point(calibration: str) -> None:
    program = Program.capture(seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())), (noise(2, 2, 8, 8),))
    program.weights()["0.weight"].data.abs_()
    result, _ = quantized(f"calibration={calibration}, reduce_range=no", program, noise(16, 2, 8, 8))
    (zeros,) = (w for name, w in result.weights().items() if name.endswith("zero_point"))
    assert not zeros.any()
    x = noise(4, 2, 8, 8, seed=5)
    right = program(x)[0]
    assert (result(x)[0] - right).abs().max() < 0.03 * right.abs().max()


def test_s8_activations_are_symmetric() -> None:
    for calibration in ("mse", "entropy"):
        result, _ = quantized(f"calibration={calibration}, activations=s8")
        for node in result.graph.graph.nodes:
            if op_name(node) == "quantized_decomposed.quantize_per_tensor":
                assert node.args[2:] == (0, -128, 127, torch.int8)


@pytest.mark.parametrize("glob", ["left", "le*", "conv2d_1"])  # a layer, a glob over layers, a node
def test_layers_stay_float_by_name(glob: str) -> None:
    for options in (f"keep_float={glob!r}", f"layers=(({glob!r}, float),)"):
        result, step = quantized(options)
        assert float_layers(result) == {"left"}
        assert "left stays float: kept in float" in step.notes
        assert step.stats["quantized_layers"] == 3


def test_layers_match_by_the_teachers_node_name_too() -> None:
    program = CNN.clone()
    node = next(n for n in program.graph.graph.nodes if layer(n) == "head")
    node.meta["custom"] = {"origin": "classifier"}
    assert float_layers(quantized("keep_float=classifier", program, DATA[id(CNN)])[0]) == {"head"}


@pytest.mark.parametrize("calibration", ["min_max", "mse"])
def test_one_weight_scale_for_a_layer(calibration: str, tmp_path: Path) -> None:
    layers = '(("head", per_tensor), ("right", float), ("*", per_tensor))'
    text = f"quantize(calibration={calibration}, reduce_range=no, layers={layers})"
    assert show(parse(text, PASSES)) == show(parse(show(parse(text, PASSES)), PASSES))
    result, _ = quantized(text.removeprefix("quantize(").removesuffix(")"))
    assert float_layers(result) == {"right"}
    found = operators(result)
    assert found["quantized_decomposed.dequantize_per_channel"] == 0
    wanted = CNN.weights()["head.weight"].detach()
    scale = float(wanted.abs().max()) / 127
    assert torch.equal(
        integers(result)["head.weight"], (wanted.detach() / scale).round().clamp(-127, 127).to(torch.int8)
    )
    kernels = integer_kernels(emitted(result, tmp_path))
    assert (kernels["QLinearConv"], kernels["QGemm"]) == (2, 1)
    x = DATA[id(CNN)]
    assert snr_db(CNN(x)[0], result(x)[0]) > 28


@pytest.mark.parametrize("options", ['keep_float="heed.*"', 'layers=(("heed.*", float),)'])
def test_a_glob_that_matches_nothing_is_an_error_with_near_spellings(options: str) -> None:
    program = Program.capture(
        seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))), (noise(2, 3, 4, 4),)
    )
    with pytest.raises(PassError) as error:
        quantized(options.replace("heed.*", "heed"), TRANSFORMER)
    text = str(error.value).split(" (in pass")[0]
    assert text == f"quantize: {options.split('=')[0]}: 'heed' matches no layer (known: down, out, qkv, up)"
    with pytest.raises(
        PassError, match=r"'hed' matches no layer; did you mean head\? \(known: head, left, right, stem.0\)"
    ):
        quantized(options.replace("heed.*", "hed"))
    with pytest.raises(PassError, match=r"known: 0, 1\)"):
        quantized(options, program, noise(8, 3, 4, 4))


def test_what_cannot_be_quantized_is_an_error() -> None:
    with pytest.raises(PassError, match=r"quantize: the target has no integer kernels; leave the pass out"):
        PassManager(parse("quantize", PASSES)).run(CNN, Context(CNN))
    with pytest.raises(PassError, match="quantize: needs calibration data: give --calib"):
        PassManager(parse("quantize", PASSES)).run(CNN, Context(CNN, target=Onnx()))
    program = Program.capture(nn.ReLU(), (noise(2, 3),))
    with pytest.raises(PassError, match="no layer of this program has an integer kernel"):
        quantized("", program, noise(4, 3))
    with pytest.raises(PassError, match="an activation is NaN or infinite on the calibration data"):
        quantized("calibration=mse", CNN, torch.full((4, 3, 8, 8), math.nan))


@pytest.mark.parametrize("calibration", ["min_max", "mse"])
def test_batch_norms_are_folded_first_and_named(calibration: str) -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)]
    program = Program.capture(randomise(nn.Sequential(*layers), 0), (noise(2, 3, 8, 8),))
    data = noise(16, 3, 8, 8)
    result, _ = quantized(f"calibration={calibration}", program, data)
    assert snr_db(program(data)[0], result(data)[0]) > 25
    assert result.origin["3.bias_corrected"] == "4.bias"


@pytest.mark.parametrize("calibration", ["min_max", "mse"])
def test_a_batch_norm_that_does_not_fold_leaves_shared_weights_alone(calibration: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.a, self.b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.c(self.a(self.c(x)).relu()))

    program, data = Program.capture(randomise(Tied(), 0), (noise(2, 4, 4, 4),)), noise(16, 4, 4, 4)
    result, _ = quantized(f"calibration={calibration}", program, data)
    assert snr_db(program(data)[0], result(data)[0]) > 25


LAYERS = 16


class Deep(nn.Module):
    """Many layers, of which one breaks in integers: a channel hides the others, in weights or in activations."""

    def __init__(self, broken: str) -> None:
        super().__init__()
        convs = broken == "written"
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 1) if convs else nn.Linear(16, 16) for _ in range(LAYERS))
        for one in self.layers:
            nn.init.orthogonal_(one.weight)
            one.bias.data.zero_()
        before, after = self.layers[10], self.layers[11]
        if broken == "weight":  # large weights on a channel that is always zero
            before.bias.data[3] = -1e3
            after.weight.data[:, 3] = 1e3
        else:  # a large channel that the next layer hardly reads
            before.weight.data[3] *= 1e3
            after.weight.data[:, 3] = 1e-4

    def forward(self, x: Tensor) -> Tensor:
        for index, one in enumerate(self.layers):
            x = torch.relu(one(x)) if index == 10 else one(x)
        return x


@pytest.mark.parametrize(
    ("broken", "culprits"),
    [("weight", {"layers.11"}), ("read", {"layers.11"}), ("written", {"layers.10", "layers.11"})],
)
def test_the_layer_that_breaks_is_found_in_few_trials_and_no_other_is_float(broken: str, culprits: set[str]) -> None:
    torch.manual_seed(3)
    size = (16, 2, 2) if broken == "written" else (16,)
    program = Program.capture(Deep(broken).eval(), (noise(2, *size),))
    data, trials = noise(64, *size, seed=4), []

    def drop(candidate: Program) -> float:
        trials.append(candidate)
        return max(0.0, 15 - snr_db(program(data)[0], candidate(data)[0]))

    result, step = quantized("bias_correction=False, smooth=False", program, data, max_drop=0.5, drop=drop)
    assert len(trials) <= 2 * math.log2(LAYERS) + 3
    assert step.stats["search_trials"] == len(trials)
    assert drop(trials[0]) > 5
    assert drop(result) <= 0.5
    assert float_layers(result) == culprits
    assert step.stats["quantized_layers"] == LAYERS - len(culprits)
    assert {n for n in step.notes if "stays float" in n} == {
        f"{name} stays float: its noise costs the drop budget" for name in culprits
    }


def test_a_budget_that_holds_costs_one_trial_and_one_that_cannot_hold_says_so() -> None:
    trials: list[Program] = []

    def drop(candidate: Program) -> float:
        trials.append(candidate)
        return 0.25 * len(integers(candidate)) + 1

    _, step = quantized("", max_drop=2.0, drop=drop)
    assert len(trials) == 1
    assert step.stats["float_layers"] == 0
    trials.clear()
    result, step = quantized("", max_drop=1.5, drop=drop)
    assert len(integers(result)) == 2
    trials.clear()
    _, step = quantized("", max_drop=0.5, drop=drop)
    assert len(trials) <= 2 * math.log2(4) + 3
    assert "no choice of float layers stays within 0.5 points; the best loses 1.00" in step.notes


def test_bias_correction_brings_the_mean_back() -> None:
    data = DATA[id(CNN)]
    wanted = CNN(data)[0].mean(0)
    options = "reduce_range=yes, layers=(('*', per_tensor),)"
    plain, corrected = (quantized(f"bias_correction={on}, {options}")[0] for on in (False, True))
    assert (corrected(data)[0].mean(0) - wanted).abs().mean() < 0.7 * (plain(data)[0].mean(0) - wanted).abs().mean()


@pytest.mark.slow
def test_nothing_of_the_libraries_reaches_the_terminal() -> None:
    code = (
        "from edgecompile.passes import quantize, _observers, _calibrate\n"
        "from tests.passes.test_quantize import quantized\n"
        "quantized('calibration=mse'); quantized()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("", "")
