"""Hugging Face folders: written by transformers, read back to the same outputs; code and pickles refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgecompile.data import open_dataset
from edgecompile.errors import InputError, Refused
from edgecompile.models.loaders import load

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def written(folder: Path, name: str, **options: Any) -> Any:
    """A small seeded model of transformers, saved into `folder`."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**SMALL, **options)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("name", "options", "output"),
    [
        ("BertModel", {"vocab_size": 50}, "last_hidden_state"),
        ("BertForSequenceClassification", {"vocab_size": 50, "num_labels": 3}, "logits"),
        ("RobertaModel", {"vocab_size": 50, "max_position_embeddings": 66}, "last_hidden_state"),
        ("DistilBertModel", {"vocab_size": 50}, "last_hidden_state"),
        ("LlamaForCausalLM", {"vocab_size": 50}, "logits"),
    ],
)
def test_text_models_give_their_own_outputs(name: str, options: dict[str, Any], output: str, tmp_path: Path) -> None:
    model = written(tmp_path, name, **options)
    teacher = load(str(tmp_path))
    program = teacher.program
    assert program.input_names == ("input_ids", "attention_mask")
    assert program.output_names[0] == output
    assert teacher.classes == (name == "BertForSequenceClassification")
    length = program.inputs[0].shape[1]
    assert length == (64 if name == "RobertaModel" else 128)
    ids = torch.randint(3, 50, (3, length))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask, use_cache=False)[output]
    found = program(ids, mask)[0]
    keep = mask.bool() if want.dim() == 3 else torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(found[keep], want[keep], atol=1e-4, rtol=1e-4)


def test_vision_models_and_their_pictures(tmp_path: Path) -> None:
    from PIL import Image

    model = written(tmp_path, "ViTForImageClassification", image_size=32, patch_size=8, num_labels=4)
    teacher = load(str(tmp_path))
    assert teacher.classes
    assert teacher.program.interface[0] == "pixel_values: float32[batch, 3, 32, 32]"
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(teacher.program(x)[0], model(x).logits, atol=1e-4, rtol=1e-4)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (50, 40), "teal").save(photographs / "a.png")
    with pytest.raises(InputError, match="nobody said how pictures are resized"):
        open_dataset(str(photographs), teacher.program, teacher.preprocessing)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    teacher = load(str(tmp_path))
    (x,) = next(iter(open_dataset(str(photographs), teacher.program, teacher.preprocessing))).inputs
    assert x.shape == (1, 3, 32, 32)
    assert load(str(tmp_path), inputs=["pixel_values=2x3x32x32"]).program.batch is None


def test_shards_and_a_lost_pooler(tmp_path: Path) -> None:
    model = written(tmp_path / "a", "BertForMaskedLM", vocab_size=50)
    model.save_pretrained(tmp_path / "s", max_shard_size="20KB")
    assert (tmp_path / "s" / "model.safetensors.index.json").exists()
    x = torch.ones(1, 128, dtype=torch.int64)
    torch.testing.assert_close(load(str(tmp_path / "s")).program(x, x)[0], load(str(tmp_path / "a")).program(x, x)[0])
    shard = sorted((tmp_path / "s").glob("model-*.safetensors"))[0]
    shard.rename(tmp_path / "kept")
    with pytest.raises(InputError, match=f"names {shard.name}, which is not there"):
        load(str(tmp_path / "s"))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    teacher = load(str(tmp_path / "a"))
    assert teacher.program.output_names == ("last_hidden_state",)
    assert "pooler_output left out: the folder has no weights for it" in teacher.notes


def changed(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_pickles_and_paths_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "BertModel", vocab_size=50)
    marker = tmp_path / "fired"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    saved = (tmp_path / "config.json").read_text()
    changed(tmp_path, "config.json", auto_map={"AutoModel": "evil.Evil"})
    with pytest.raises(Refused) as caught:
        load(str(tmp_path))
    assert (caught.value.rule, caught.value.exit_code) == ("EC-HF-001", 8)
    assert "module:function" in str(caught.value)
    (tmp_path / "config.json").write_text(saved)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.keep")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Refused) as caught:
        load(str(tmp_path))
    assert caught.value.rule == "EC-HF-002"
    assert "pytorch_model.bin refused" in str(caught.value)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(Refused) as caught:
        load(str(tmp_path))
    assert caught.value.rule == "EC-HF-003"
    assert not marker.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertModell"]}, "has no architecture 'BertModell'; did you mean BertModel?"),
        ({"architectures": ["os"]}, "has no architecture 'os'"),
        (
            {"quantization_config": {"bits": 4}},
            "already quantized (quantization_config): give the float model",
        ),
        ({"num_hidden_layers": 3}, "the weights lack or misfit 16 tensors of BertModel: "),
        ({"hidden_size": 64}, "transformers cannot read it: "),
    ],
)
def test_bad_configurations(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    written(tmp_path, "BertModel", vocab_size=50)
    changed(tmp_path, "config.json", **changes)
    with pytest.raises(InputError) as caught:
        load(str(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_folders(tmp_path: Path) -> None:
    written(tmp_path, "BertModel", vocab_size=50)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: "):
        load(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors in it: copy the weights too"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"config\.json: cannot be read as JSON"):
        load(str(tmp_path))


def test_audio_asks_for_its_inputs(tmp_path: Path) -> None:
    options = {
        "conv_dim": (8, 8),
        "conv_stride": (5, 4),
        "conv_kernel": (10, 8),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "vocab_size": 12,
    }
    written(tmp_path, "Wav2Vec2ForCTC", **options)
    with pytest.raises(InputError, match=r"takes input_values, of a shape .* --input input_values=1x16000:float32"):
        load(str(tmp_path))
    with pytest.raises(InputError, match="brings its own weights: drop --weights"):
        load(str(tmp_path), weights=tmp_path / "model.safetensors")
