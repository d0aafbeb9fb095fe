"""A Hugging Face folder as a teacher: configuration, safetensors, tokenizer or preprocessor; never code."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgecompile.data.preprocess import Image, image_from_huggingface
from edgecompile.errors import InputError, Refused
from edgecompile.ingest import text_safe, vet

RULES = {
    "EC-HF-001": "A Hugging Face folder may not name code of its own (auto_map).",
    "EC-HF-002": "The weights of a Hugging Face folder are safetensors, never pickles.",
    "EC-HF-003": "The shards of an index are plain file names in the folder.",
}
LENGTH = 128
_OWN_CODE = "write a function that builds the model and name it: module:function"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")


class _Text(nn.Module):
    """The tensors that a text model returns, by name; caches and everything else dropped."""

    def __init__(self, model: nn.Module, drop: frozenset[str]) -> None:
        super().__init__()
        self.model, self.drop = model, drop

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return _tensors(self.model(input_ids=input_ids, attention_mask=attention_mask), self.drop)


class _Vision(nn.Module):
    """The tensors that a vision model returns, by name."""

    def __init__(self, model: nn.Module, drop: frozenset[str]) -> None:
        super().__init__()
        self.model, self.drop = model, drop

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return _tensors(self.model(pixel_values=pixel_values), self.drop)


def read_folder(folder: Path, inputs: Mapping[str, Tensor] | None = None, length: int = LENGTH) -> dict[str, Any]:
    """The model, its example inputs (batch of 2), `preprocessing`, `classes` and `notes`.

    `inputs` replace the examples that are otherwise made from the configuration. Raises `Refused` for code
    and pickles, `InputError` for what is damaged, unknown to transformers, or has inputs that cannot be
    guessed.
    """
    config = _json(folder / "config.json")
    _no_code(config, folder)
    _safetensors(folder)
    model, drop, notes = _model(folder, config)
    image = _image(folder)
    tokenizer = folder / "tokenizer.json"
    preprocessing: dict[str, Any] = {}
    if inputs is not None:
        return _result(model, dict(inputs), preprocessing, config, notes)
    main = str(getattr(model, "main_input_name", ""))
    if main == "pixel_values":
        examples = {main: torch.zeros(2, *_picture(model, image, folder))}
        if image is not None:
            preprocessing["image"] = image.as_dict()
        return _result(_Vision(model, drop), examples, preprocessing, config, notes)
    takes = inspect.signature(model.forward).parameters
    if main != "input_ids" or "attention_mask" not in takes or getattr(model.config, "is_encoder_decoder", False):
        raise InputError(
            f"{folder}: a {type(model).__name__} takes {main or 'unknown inputs'}, of a shape that"
            " config.json does not tell:"
            f" give it, e.g. --input {main or 'NAME'}=1x16000:float32; for encoder-decoder models {_OWN_CODE}"
        )
    length = min(length, _positions(model.config))
    # token 1 is in every vocabulary; 0 is often padding, on which position numbers may depend
    ids = torch.ones(2, length, dtype=torch.int64)
    if tokenizer.is_file():
        preprocessing["text"] = {"tokenizer": str(tokenizer), "length": length}
    examples = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return _result(_Text(model, drop), examples, preprocessing, config, notes)


def _result(
    model: nn.Module,
    inputs: dict[str, Tensor],
    preprocessing: dict[str, Any],
    config: Mapping[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    name = str((config.get("architectures") or [""])[0])
    classes = name.endswith(("ForImageClassification", "ForSequenceClassification"))
    return {
        "model": model,
        "inputs": inputs,
        "preprocessing": preprocessing,
        "classes": classes,
        "notes": notes,
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 16 << 20:
            raise InputError(f"{path}: larger than 16 MB: not a configuration")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent}: no {path.name}, so it is no Hugging Face folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__} where an object is expected")
    return value


def _no_code(config: Mapping[str, Any], folder: Path) -> None:
    where = f"{folder / 'config.json'}"
    if "auto_map" in config or "custom_pipelines" in config:
        named = text_safe(json.dumps(config.get("auto_map", config.get("custom_pipelines"))))
        raise Refused("EC-HF-001", where, "no code from a model folder", f"auto_map {named}", _OWN_CODE)
    if "quantization_config" in config:
        raise InputError(f"{where}: already quantized (quantization_config): give the float model")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder}: holds an adapter (adapter_config.json): merge it into its model and save that")


def _safetensors(folder: Path) -> None:
    """Vet every file that the weights are read from."""
    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"]
    if not files[0].exists() and index.exists():
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise InputError(f"{index}: has no weight_map")
        names = sorted({str(name) for name in shards.values()})
        for name in names:
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise Refused("EC-HF-003", str(index), "plain names", text_safe(name), "there is no way round")
        files = [folder / name for name in names]
        if missing := [file.name for file in files if not file.is_file()]:
            raise InputError(f"{index}: names {missing[0]}, which is not there ({len(missing)} such): copy it too")
    elif not files[0].exists():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        if pickles:
            how = "convert it: model.save_pretrained(folder) writes safetensors"
            raise Refused("EC-HF-002", str(folder), "safetensors only", pickles[0], how)
        raise InputError(f"{folder}: no model.safetensors in it: copy the weights too")
    for file in files:
        vet(file)


def _model(folder: Path, config: Mapping[str, Any]) -> tuple[Any, frozenset[str], list[str]]:
    """The model with its weights, outputs that rest on weights the folder lacks, and notes."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"{folder}: transformers is not installed: pip install 'edgecompile[hf]'") from error
    names = config.get("architectures") or ["AutoModel"]
    name = names[0] if isinstance(names, list) and isinstance(names[0], str) else ""
    kind = getattr(transformers, name, None) if name.isidentifier() else None
    known = name == "AutoModel" or (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel))
    if not known or kind is None:
        close = difflib.get_close_matches(name, dir(transformers), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        where = f"{folder / 'config.json'}: transformers {transformers.__version__}"
        raise InputError(f"{where} has no architecture {text_safe(name)!r}{hint}")
    options = {
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        "dtype": torch.float32,
    }
    with _quiet():
        try:
            model, info = kind.from_pretrained(str(folder), attn_implementation="sdpa", **options)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise _unreadable(folder, error) from error
            model, info = kind.from_pretrained(str(folder), attn_implementation="eager", **options)
        except (OSError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
            raise _unreadable(folder, error) from error
    model.config.use_cache = False
    model.config.return_dict = True
    missing = sorted(info.get("missing_keys") or ())
    wrong = [str(entry) for entry in info.get("mismatched_keys") or ()]
    lost = [key for key in missing if "pooler" not in key.split(".")]
    if lost or wrong:
        listed = ", ".join(text_safe(key) for key in (lost + wrong)[:5])
        raise InputError(f"{folder}: the weights lack or misfit {len(lost) + len(wrong)} tensors of {name}: {listed}")
    drop = frozenset({"pooler_output"}) if missing else frozenset()
    return model.eval(), drop, ["pooler_output left out: the folder has no weights for it"] if missing else []


def _unreadable(folder: Path, error: Exception) -> InputError:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return InputError(f"{folder}: transformers cannot read it: {type(error).__name__}: {text_safe(line, 240)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and logging what is reported anyway."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _image(folder: Path) -> Image | None:
    path = folder / "preprocessor_config.json"
    return image_from_huggingface(path) if path.is_file() and "input" not in _json(path) and _is_image(path) else None


def _is_image(path: Path) -> bool:
    """Audio models have a preprocessor_config.json as well."""
    config = _json(path)
    return any(key in config for key in ("size", "crop_size", "image_mean", "do_resize"))


def _picture(model: Any, image: Image | None, folder: Path) -> tuple[int, int, int]:
    channels = int(getattr(model.config, "num_channels", 3))
    if image is not None:
        return (channels, *image.size)
    match getattr(model.config, "image_size", None):
        case int(side):
            return channels, side, side
        case [int(height), int(width)]:
            return channels, height, width
    raise InputError(f"{folder}: the size of its pictures is in no file: give --input pixel_values=1x3x224x224:float32")


def _positions(config: Any) -> int:
    """How many tokens the position table has, less RoBERTa's offset for padding."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or LENGTH
    offset = (
        int(config.pad_token_id) + 1 if limit % 64 and isinstance(getattr(config, "pad_token_id", None), int) else 0
    )
    return max(1, int(limit) - offset)


def _tensors(found: Any, drop: frozenset[str]) -> dict[str, Tensor]:
    return {k: v for k, v in found.items() if isinstance(v, Tensor) and k not in drop}
