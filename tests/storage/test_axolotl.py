import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from storage.codec import labels_from_arrow
from storage.errors import ForeignDataError
from storage.importing import import_labels
from storage.table import Table
from storage.verify import verify
from tests.storage.make_rows import sample
from tests.storage.test_foreign import GEMMA, axolotl

K = 8


def rows(first, count, *, form="token_id"):
    """Distributions of the tokens first … first + count − 1, as vLLM's answers keep them; the realised one is added."""
    data, found = sample(), []
    for token in range(first, first + count):
        pairs = dict(zip(data["ids"][token - 1, :K].tolist(), data["logprobs"][token - 1, :K].tolist(), strict=True))
        pairs = {int(data["input_ids"][token]): pairs.get(int(data["input_ids"][token]), -20.0)} | pairs
        found.append([{"token": f"token_id:{i}", "logprob": p} for i, p in pairs.items()])
    return found


@pytest.fixture
def tokenizer(tmp_path):
    """A tokenizer whose words are the ids of the sample, and a template that puts a word before each answer."""
    words = {f"t{i}": int(i) for i in sample()["input_ids"][:64]}
    made = Tokenizer(models.WordLevel(words, unk_token="t0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "teacher").mkdir()
    path = tmp_path / "teacher" / "tokenizer.json"
    made.save(str(path))
    bos = f"t{sample()['input_ids'][0]}"
    template = "{{ bos_token }} {% for m in messages %}{% if m.role == 'x' %}{{ raise_exception('no x') }}{% endif %}"
    template += "{{ m.content }} {% endfor %}"
    (path.with_name("tokenizer_config.json")).write_text(json.dumps({"bos_token": bos, "chat_template": template}))
    return path


def chat(**changes):
    text = [f"t{i}" for i in sample()["input_ids"][:40]]
    messages = [
        {"role": "user", "content": " ".join(text[1:10])},
        {"role": "assistant", "content": " ".join(text[10:])},
    ]
    return {"messages": messages, "logprobs": rows(10, 30)} | changes


def written(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def imported(path):
    stored = [pq.ParquetFile(file.path).read() for file in Table.open(path).files()]
    assert verify(path).problems == ()
    return stored[0].sort_by("prompt_id")


def test_a_raw_set_is_tokenized_by_the_teachers_own_template(tmp_path, tokenizer):
    sharegpt = [{"from": "human", "value": "t2"}, {"from": "x", "value": ""}]
    source = written(
        tmp_path / "set.jsonl",
        chat(),
        {"messages_combined": chat()["messages"], "llm_text_generation_vllm_logprobs": [None, *rows(12, 28)]},
        chat(logprobs=[*rows(10, 20), None, *rows(31, 9)]),
        chat(logprobs=rows(1, 60)),
        chat(logprobs=[[{"token": "hello", "logprob": 0.0}]]),
        {"conversations": sharegpt, "logprobs": rows(1, 3)},
    )
    done = import_labels(source, tmp_path / "labels", replace(GEMMA, tokenizer=tokenizer))
    assert (done.rows, done.rejects) == (2, 4)
    stored, data = imported(tmp_path / "labels"), sample()
    for row, first in zip(range(2), (10, 12), strict=True):
        labels = labels_from_arrow(stored)[row]
        assert stored["prompt_token_ids"][row].as_py() == data["input_ids"][:first].tolist()
        assert (labels.token_ids == data["input_ids"][first:40]).all() and labels.k == K
        assert (labels.top_ids == data["ids"][first - 1 : 39, :K]).all()
        assert np.allclose(labels.top_logprobs, data["logprobs"][first - 1 : 39, :K], rtol=2**-8)
        beyond = ~(labels.top_ids == labels.token_ids[:, None]).any(axis=1)
        assert beyond.any() and (labels.token_ranks[beyond] == 0).all(), "a rank beyond the candidates is not known"
    details = Table.open(tmp_path / "labels").rejects.read()["detail"].to_pylist()
    assert sorted(text.split(":")[0] for text in details) == [
        "60 distributions for 40 tokens",
        "it is not of Axolotl's form",
        "it is not of Axolotl's form",
        "its targets are not one run of tokens to the end",
    ]
    assert any("no x" in text for text in details)


def test_a_raw_set_with_ids_needs_no_tokenizer(tmp_path):
    pairs = [[(int(c["token"][9:]), c["logprob"]) for c in row] for row in rows(1, 39)]
    line = {
        "input_ids": sample()["input_ids"][:40].tolist(),
        "logprobs": [[], *[[p for _, p in row] for row in pairs]],
        "target_token_ids": [[], *[[i for i, _ in row] for row in pairs]],
    }
    done = import_labels(written(tmp_path / "set.jsonl", line), tmp_path / "labels", GEMMA)
    assert (done.rows, done.rejects) == (1, 0)
    [labels] = labels_from_arrow(imported(tmp_path / "labels"))
    assert (labels.top_ids == sample()["ids"][:39, :K]).all()


def test_shifted_distributions_are_refused(tmp_path, tokenizer):
    source = written(tmp_path / "set.jsonl", chat(logprobs=rows(9, 30)))
    with pytest.raises(ForeignDataError, match="do not fit their own tokens best"):
        import_labels(source, tmp_path / "labels", replace(GEMMA, tokenizer=tokenizer))


def test_a_padded_place_of_a_prepared_set_is_no_candidate(tmp_path):
    data = sample()
    mask = [[int(j >= 9), *[int(j >= 9)] * 6, int(j >= 9 and j % 2)] for j in range(39)] + [[0] * 8]
    logprobs = [
        [*data["logprobs"][j, :7].tolist(), -1e4 if not j % 2 else float(data["logprobs"][j, 7])] for j in range(39)
    ]
    source = axolotl(tmp_path / "set.jsonl")
    line = json.loads(source.read_text().splitlines()[0]) | {
        "target_mask": mask,
        "target_logprobs": [*logprobs, [0.0] * 8],
    }
    import_labels(written(source, line), tmp_path / "labels", GEMMA)
    [labels] = labels_from_arrow(imported(tmp_path / "labels"))
    assert (labels.top_ids[:, 7] == -1).sum() == 15 and (labels.top_ids[:, 6] >= 0).all()


def test_what_a_tokenizer_lacks_is_said(tmp_path, tokenizer):
    source = written(tmp_path / "set.jsonl", chat())
    tokenizer.with_name("tokenizer_config.json").unlink()
    with pytest.raises(ForeignDataError, match="no chat template beside"):
        import_labels(source, tmp_path / "labels", replace(GEMMA, tokenizer=tokenizer))
    tokenizer.with_name("chat_template.jinja").write_text("{% for m in")
    with pytest.raises(ForeignDataError, match="cannot be used"):
        import_labels(source, tmp_path / "labels", replace(GEMMA, tokenizer=tokenizer))
    assert not (tmp_path / "labels").exists()
