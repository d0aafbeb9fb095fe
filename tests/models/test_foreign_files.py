"""`.pt` and `.pt2` files through vetting and the child: what comes back is what was saved."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from edgecompile.errors import InputError, Refused
from edgecompile.ingest import ChildLimits, parse_in_child, read_status, vet
from edgecompile.models import torch_weights
from edgecompile.program_file import load
from tests.ingest import makers

LIMITS = ChildLimits(wall_s=100)


def weights(path: Path, trust: bool = False) -> Path:
    vet(path, trust=trust)
    return parse_in_child("torch_weights", {"path": path, "trust": trust}, path.parent / "out", LIMITS)


def test_a_state_dict_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = makers.state_dict() | {"../../name": torch.ones(1), "line\nbreak": torch.ones(0, 3)}
    torch.save(state, tmp_path / "w.pth")
    out = weights(tmp_path / "w.pth")
    found = torch_weights.read(out)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        assert torch.equal(found[name], value.detach())
        assert found[name].dtype == value.dtype
    assert read_status(out).result == {"notes": ["2 entries are no tensors and were left out: epoch, size"]}
    assert sorted(p.name for p in out.iterdir()) == ["names.json", "status.json", "weights.safetensors"]


def test_a_checkpoint_is_unwrapped(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(2)}}, tmp_path / "w.pt")
    out = weights(tmp_path / "w.pt")
    assert list(torch_weights.read(out)) == ["a"]
    assert read_status(out).result == {"notes": ["the state dict under 'state_dict'"]}


def test_a_view_of_2_to_the_40_elements_is_refused(tmp_path: Path) -> None:
    torch.save({"small": torch.ones(3), "huge": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "w.pt")
    with pytest.raises(Refused) as caught:
        weights(tmp_path / "w.pt")
    assert caught.value.rule == "EC-IN-007"
    assert "(tensor 'huge'): 4,398,046,511,116 declared bytes refused" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([torch.ones(1)], "a list, not a state dict; save model.state_dict() with torch.save"),
        ({"epoch": 3}, "no tensors in it; save model.state_dict() with torch.save"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, value: object, text: str) -> None:
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(InputError) as caught:
        weights(tmp_path / "w.pt")
    assert str(caught.value) == f"{tmp_path / 'w.pt'}: {text}"


def test_a_trusted_module(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / "w.pt")
    with pytest.raises(Refused):
        weights(tmp_path / "w.pt")
    assert list(torch_weights.read(weights(tmp_path / "w.pt", trust=True))) == ["weight", "bias"]


def test_a_missing_storage_is_one_line(tmp_path: Path) -> None:
    data = makers.saved({"a": torch.ones(2), "b": torch.ones(3)})
    path = makers.write(tmp_path / "w.pt", makers.replaced(data, "data/1", lambda _: None))
    with pytest.raises(InputError, match=r"w.pt: the file could not be parsed: RuntimeError: ") as caught:
        weights(path)
    assert str(caught.value).isprintable()


@pytest.mark.slow
def test_an_exported_program_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = makers.Small().eval()
    x = torch.randn(2, 3, 8, 8)
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: batch},)), tmp_path / "m.pt2")
    assert vet(tmp_path / "m.pt2").kind == "pt2"
    program = load(parse_in_child("pt2", {"path": tmp_path / "m.pt2"}, tmp_path / "out", LIMITS))
    other = torch.randn(5, 3, 8, 8)
    assert torch.equal(program(other)[0], model(other))
    assert program.batch is None
    assert set(program.weights()) >= {"conv.weight", "norm.running_mean", "scale"}
    assert torch.equal(program.inputs[0], x)


class Named(torch.nn.Module):
    """Takes one input by position and one by name."""

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        return x * mask


@pytest.mark.slow
def test_named_inputs(tmp_path: Path) -> None:
    args, kwargs = (torch.ones(2, 3),), {"mask": torch.full((2, 3), 2.0)}
    torch.export.save(torch.export.export(Named(), args, kwargs), tmp_path / "m.pt2")
    program = load(parse_in_child("pt2", {"path": tmp_path / "m.pt2"}, tmp_path / "out", LIMITS))
    assert torch.equal(program(*program.inputs)[0], torch.full((2, 3), 2.0))


@pytest.mark.slow
def test_a_program_that_cannot_be_held(tmp_path: Path) -> None:
    args, kwargs = (torch.randn(4, 8), torch.randn(8, 8)), {"k": [torch.ones(1), None]}
    torch.export.save(torch.export.export(makers.Shapes(), args, kwargs), tmp_path / "m.pt2")
    with pytest.raises(InputError, match=r"m.pt2: example input 2: expected a tensor, got list"):
        parse_in_child("pt2", {"path": tmp_path / "m.pt2"}, tmp_path / "out", LIMITS)


def test_even_a_trusted_payload_writes_nowhere_else(tmp_path: Path) -> None:
    """Containment holds where permission was given by mistake."""
    torch.export.save(torch.export.export(makers.Small().eval(), (torch.randn(2, 3, 8, 8),)), tmp_path / "m.pt2")
    data = (tmp_path / "m.pt2").read_bytes()
    payload = pickle.dumps(makers.Touch(tmp_path / "marker"), 2)
    path = makers.write(tmp_path / "m.pt2", makers.replaced(data, "sample_inputs/model.pt", lambda _: payload))
    assert vet(path, trust=True).trusted
    with pytest.raises(InputError, match="the file could not be parsed"):
        parse_in_child("pt2", {"path": path, "trust": True}, tmp_path / "out", LIMITS)
    if any(note.startswith("writes not confined") for note in read_notes(tmp_path / "out")):
        pytest.skip("this kernel has no Landlock")
    assert not (tmp_path / "marker").exists()


def read_notes(out: Path) -> tuple[str, ...]:
    return read_status(out).notes
